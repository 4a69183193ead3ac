"""Where each setting has its value from, and all of them as YAML that says so beside every line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from configs.default_config import Config
from configs.section import Section

DEFAULT, DERIVED, OF_DATA = "default", "from other settings", "from the data"
# Null that nothing but the data fills, though there are stand-ins for a network without data.
_FILLED_FROM_DATA = ("MODEL.task", "MODEL.num_classes", "MODEL.num_coarse_classes", "LOSS.type")


def origins(path: str | Path | None, overrides: Mapping[str, str]) -> dict[str, str]:
    """'SECTION.key' → 'default', the file that says it, or what an override is called.

    overrides: 'SECTION.key=value' → its name, such as '--set'. Settings of a mapping are one.
    """
    found = dict.fromkeys(leaves(Config()), DEFAULT)
    for file, keys in Config.keys_of_files(path) if path else ():
        found |= dict.fromkeys(keys, str(file))
    for override, keys in Config.override_keys(overrides).items():
        found |= dict.fromkeys(keys, overrides[override])
    return found


def leaves(section: Section, prefix: str = "") -> dict[str, object]:
    """'SECTION.key' → value, sub-sections taken apart."""
    found: dict[str, object] = {}
    for key, value in section.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, Section) else {f"{prefix}{key}": value}
    return found


def resolved(config: Config, of: dict[str, str], with_data: Config | None = None) -> tuple[Config, dict[str, str]]:
    """(a copy in which is written out what is null and follows from something else, where each value is from).

    with_data: the same settings after `Config.resolve`; without it, what only the data decide stays null.
    """
    completed = with_data or config.complete()
    if with_data is None:
        for key in _FILLED_FROM_DATA:
            section, name = key.split(".")
            completed[section][name] = config[section][name]
    before, after, apart = leaves(config), leaves(completed), leaves(config.complete())
    changed = [key for key in after if after[key] != before[key]]
    why = {key: OF_DATA if key in _FILLED_FROM_DATA or after[key] != apart[key] else DERIVED for key in changed}
    return completed, of | why


def annotated_yaml(config: Config, of: Mapping[str, str]) -> str:
    """All settings, section by section, each with where it is from; `Config.from_yaml` reads it back to the same."""
    return "\n".join(_lines(config, of, "", ""))


def _lines(section: Section, of: Mapping[str, str], prefix: str, indent: str) -> Iterable[str]:
    plain = section.model_dump(mode="json")
    for key, value in section.items():
        if isinstance(value, Section):
            yield f"{indent}{key}:"
            yield from _lines(value, of, f"{prefix}{key}.", indent + "  ")
        else:
            yield f"{indent}{key}: {_flow(plain[key])}  # {_comment(of[prefix + key])}"


def _comment(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _flow(value: object) -> str:
    """A value on one line; characters beyond what a terminal is to be shown are written as YAML's own escapes."""
    plain = yaml.safe_dump(value, default_flow_style=True, width=2**30, allow_unicode=True)
    text = plain.removesuffix("\n").removesuffix("\n...")
    if text.isprintable():
        return text
    return yaml.safe_dump(value, default_flow_style=True, width=2**30).removesuffix("\n").removesuffix("\n...")
