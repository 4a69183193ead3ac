"""Configs of any text: a ConfigError or a Config that survives being written and read. FUZZ_EXAMPLES=20000 is more."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from configs.default_config import Config
from configs.errors import ConfigError
from tests.faults import ROOT, fuzz

PRESETS = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "configs").glob("*.yaml"))]
SECTIONS = list(Config.model_fields)
ENDED: Counter[str] = Counter()


def load(path: Path, overrides: tuple[str, ...] = ()) -> None:
    """Only a ConfigError may leave; a Config must come back equal from its own YAML."""
    try:
        config = Config.from_yaml(path, overrides)
    except ConfigError as error:
        assert str(error)
        ENDED["refused"] += 1
        return
    ENDED["loaded"] += 1
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert Config.from_yaml(path).model_dump() == config.model_dump()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "config.yaml"


def settings_of(section: str) -> list[str]:
    return [*Config.model_fields[section].default_factory.model_fields]  # type: ignore[union-attr, misc, call-arg]


words = st.sampled_from(
    ["auto", "true", "null", "1e-3", ".inf", "012", "1:30", "adamw", "convnext_tiny", "*a", "&a", ""]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | words
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | words, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Our sections and settings, in either case; half of the documents have defaults and small numbers for values."""
    document: dict[str, Any] = {}
    defaults = Config().model_dump(mode="json")
    for section in draw(st.lists(st.sampled_from(SECTIONS), max_size=3, unique=True)):
        ours = list(defaults[section].values())
        fitting = st.sampled_from(ours) | st.integers(1, 64) | st.booleans() | st.floats(0, 1) | st.none()
        keys = st.sampled_from([*defaults[section]]) | st.sampled_from([*defaults[section], "backbone", "typo", "self"])
        name = draw(st.sampled_from([section, section.lower()]))
        document[name] = draw(st.dictionaries(keys, fitting if draw(st.booleans()) else values, max_size=4))
    return document


yaml_words = [
    "{",
    "}",
    "[",
    "]",
    ": ",
    "- ",
    "? ",
    "&a ",
    "*a",
    "<<: ",
    "!!int ",
    "!!bool ",
    "!!timestamp ",
    "!!set ",
    "'",
]
yaml_words += [
    "\n",
    "  ",
    "# ",
    "|\n",
    ">\n",
    "---\n",
    "...\n",
    "%YAML 1.1\n",
    "0x",
    "0b",
    "1_0",
    "=",
    "~",
    '"\\ud800"',
    "\t",
]
yaml_words += [
    "2024-01-01",
    "1e999",
    ".nan",
    "TRAIN: ",
    "MODEL: ",
    "batch_size: ",
    "base: ",
    "config.yaml",
    "a",
    "1",
    ", ",
]


@st.composite
def changed_presets(draw: st.DrawFn) -> str:
    """A preset in which some characters, words or lines are others, double or gone."""
    text = draw(st.sampled_from(PRESETS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 30)))
        text = text[:start] + draw(st.text(max_size=6) | words | st.just(text[start:end] * 2)) + text[end:]
    return text


@fuzz(fraction=0.1)
@given(text=st.text(max_size=200))
def test_any_text(path, text):
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    load(path)


@fuzz(fraction=0.1)
@given(content=st.binary(max_size=200))
def test_any_bytes(path, content):
    path.write_bytes(content)
    load(path)


@fuzz(fraction=0.3)
@given(document=documents())
def test_our_keys_with_any_values(path, document):
    path.write_text(yaml.dump(document, allow_unicode=True), encoding="utf-8")
    load(path)


@fuzz(fraction=0.2)
@given(parts=st.lists(st.sampled_from(yaml_words), max_size=14))
def test_pieces_of_yaml(path, parts):
    path.write_text("".join(parts), encoding="utf-8")
    load(path)


@fuzz(fraction=0.2)
@given(text=changed_presets())
def test_changed_presets(path, text):
    (path.parent / "default.yaml").write_text(PRESETS[0], encoding="utf-8")
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    load(path)


names = st.builds(lambda section, key: f"{section}.{key}", st.sampled_from(SECTIONS), st.text(max_size=5))
known = st.sampled_from([f"{section}.{key}" for section in SECTIONS for key in settings_of(section)])


@fuzz(fraction=0.1)
@given(overrides=st.lists(st.text(max_size=30) | st.builds("{}={}".format, names | known, values), max_size=4))
def test_any_overrides(path, overrides):
    path.write_text("{}", encoding="utf-8")
    load(path, tuple(overrides))


def test_most_examples_reached_something():
    """Counts of the tests above: a generator that only makes rubbish, or only what is sound, would find nothing."""
    if not ENDED:
        pytest.skip("counts what the tests above did")
    print(f"{ENDED.total()} random configs: {dict(ENDED)}")
    assert ENDED["refused"] > 0.2 * ENDED.total() and ENDED["loaded"] > 0.02 * ENDED.total()
