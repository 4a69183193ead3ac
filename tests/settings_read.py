"""Which settings a command reads once it has its model."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.default_config import Config
from configs.section import Section
from models import saved_model

ROOT = Path(saved_model.__file__).resolve().parents[1]
# Read only where sample data are missing and drawn.
DRAWING = {"DATA.sample_count", "DATA.sample_size"}


def settings_read(work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """'SECTION.key' of every setting that the program reads after `load_models` has come back.

    Reads by configs/ itself (checks, copies) do not count.
    """
    read: set[str] = set()
    load, get = saved_model.load_models, Section.__getattribute__

    def recorded(section: Section, name: str) -> object:
        if name in type(section).model_fields and not isinstance(section, Config):
            reader = Path(sys._getframe(1).f_code.co_filename)
            if reader.is_relative_to(ROOT) and not reader.is_relative_to(ROOT / "configs"):
                read.add(f"{section.section_name}.{name}")
        return get(section, name)

    def load_and_record(*arguments: object) -> object:
        loaded = load(*arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(Section, "__getattribute__", recorded)
        return loaded

    with monkeypatch.context() as patch:
        patch.setattr(saved_model, "load_models", load_and_record)
        try:
            work()
        finally:
            monkeypatch.setattr(Section, "__getattribute__", get)
    return read
