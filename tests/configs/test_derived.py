"""Settings that follow from others or from the data: whatever value stands there, by whichever way, is meant."""

import ast
import importlib.util
import re
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from pydantic import Field, create_model

from configs import default_config
from configs.default_config import Config
from configs.errors import ConfigError
from configs.section import Section

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(default_config.__file__)
FINDINGS = ("nodule", "mass", "effusion")
VOLUME = (32, 64, 64)
_NUMBERS = count()
Values = dict[str, object]


def edited_module(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """configs/default_config.py as it would be with this text."""
    path = folder / f"edited_config_{next(_NUMBERS)}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module


def with_default(text: str, key: str, value: object) -> str:
    """The text in which a user has replaced the default of a setting, the first argument of its `_setting`."""
    section, name = key.split(".")
    wanted = Config.model_fields[section].annotation.__name__  # type: ignore[union-attr]
    (body,) = [n.body for n in ast.parse(text).body if isinstance(n, ast.ClassDef) and n.name == wanted]
    (call,) = [
        n.value for n in body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and n.target.id == name
    ]
    assert isinstance(call, ast.Call)
    lines, default = text.splitlines(keepends=True), call.args[0]
    assert default.lineno == default.end_lineno
    line = lines[default.lineno - 1].encode()
    lines[default.lineno - 1] = (
        line[: default.col_offset] + repr(value).encode() + line[default.end_col_offset :]
    ).decode()
    return "".join(lines)


def by_source(values: Values, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    text = SOURCE.read_text(encoding="utf-8")
    for key, value in values.items():
        text = with_default(text, key, value)
    return edited_module(text, folder, monkeypatch).Config()


def by_subclass(values: Values, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    config: type[Config] = Config
    for key, value in values.items():
        section, name = key.split(".")
        base = config.model_fields[section].annotation
        assert isinstance(base, type) and issubclass(base, Section)
        mine = create_model("Mine", __base__=base, **{name: (base.model_fields[name].annotation, value)})  # type: ignore[call-overload]
        config = create_model("MyConfig", __base__=config, **{section: (mine, Field(default_factory=mine))})  # type: ignore[call-overload]
    return config.from_overrides([])


def by_assignment(values: Values, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    config = Config()
    for key, value in values.items():
        section, name = key.split(".")
        setattr(config[section], name, value)
    return config


def by_yaml(values: Values, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(nested(values)), encoding="utf-8")
    return Config.from_yaml(path)


def by_override(values: Values, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    return Config.from_overrides(
        [f"{key}={yaml.safe_dump(plain(v), default_flow_style=True)}" for key, v in values.items()]
    )


def by_arguments(values: Values, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    return Config(**nested(values))


WAYS = {way.__name__: way for way in (by_source, by_subclass, by_assignment, by_yaml, by_override, by_arguments)}


def plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def nested(values: Values) -> dict:
    sections: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = plain(value)
    return sections


# Key → (its value, what else is set, whether the data are exclusive, the resolved value); each would be something else
# if the value were not heeded.
HEEDED = [
    ("MODEL.task", "multi_class", {}, False, "multi_class"),
    ("MODEL.task", "multi_label", {}, True, "multi_label"),
    ("MODEL.input_size", (96, 64), {}, False, (96, 64)),
    ("MODEL.input_size", VOLUME, {}, False, VOLUME),
    ("MODEL.num_coarse_classes", 5, {}, False, 5),
    ("DATA.image_size", 96, {}, False, (96, 96)),
    ("DATA.image_size", VOLUME, {}, False, VOLUME),
    ("DATA.data_dir", "/data/chest", {}, False, "/data/chest"),
    ("DATA.sample_count", 77, {}, False, 77),
    ("DATA.sample_count", 1200, {"DATA.image_size": VOLUME}, False, 1200),
    ("DATA.sample_size", 100, {}, False, 100),
    ("DATA.sample_size", 128, {"DATA.image_size": VOLUME}, False, 128),
    ("LOSS.type", "focal", {"MODEL.task": "multi_label"}, True, "focal"),
    ("TRAIN.warmup_epochs", 8, {"TRAIN.epochs": 12}, False, 8),
    ("TRAIN.warmup_epochs", 5, {"TRAIN.epochs": 8}, False, 5),
]
# Key → (its value, what else is set, whether the data are exclusive, words of the error).
CONTRADICTED = [
    ("MODEL.num_classes", 14, {}, False, r"MODEL\.num_classes is 14, but the data have 3 classes"),
    ("MODEL.num_classes", 5, {}, False, r"MODEL\.num_classes is 5, but the data have 3 classes"),
    ("MODEL.task", "binary", {}, False, r"MODEL\.task 'binary' needs one class, the data have 3"),
    ("LOSS.type", "bce", {}, True, r"LOSS\.type: 'bce' does not fit MODEL\.task 'multi_class'"),
    ("LOSS.type", "cross_entropy", {}, False, r"LOSS\.type: 'cross_entropy' does not fit MODEL\.task 'multi_label'"),
    ("MODEL.input_size", 96, {"DATA.image_size": 224}, False, r"DATA\.image_size \(224, 224\) and MODEL\.input_size"),
    ("DATA.image_size", 96, {"MODEL.input_size": (224, 224)}, False, r"MODEL\.input_size \(224, 224\) differ"),
    ("MODEL.num_coarse_classes", 3, {"MODEL.hierarchical": True}, False, r"num_coarse_classes is 3, but .* makes 2"),
    ("DATA.class_names", ["nodule"], {}, False, r"DATA\.class_names are nodule, but the data have nodule, mass"),
]


def case_id(value: object) -> str:
    return str(value)[:24]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("key, value, more, exclusive, expected", HEEDED, ids=case_id)
def test_the_value_that_stands_there_is_meant(
    key, value, more, exclusive, expected, way: Callable, tmp_path, monkeypatch
):
    section, name = key.split(".")
    resolved = way({key: value, **more}, tmp_path, monkeypatch).resolve(FINDINGS, exclusive)
    assert resolved[section][name] == expected
    assert resolved.resolve(FINDINGS, exclusive).model_dump() == resolved.model_dump()
    assert resolved.problems() == []


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("key, value, more, exclusive, words", CONTRADICTED, ids=case_id)
def test_a_value_that_cannot_be_is_one_error(key, value, more, exclusive, words, way: Callable, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=words):
        way({key: value, **more}, tmp_path, monkeypatch).resolve(FINDINGS, exclusive)


def test_every_setting_that_resolving_changes_is_tested_here():
    """A setting that is null until it is resolved, by classes or by other settings."""
    before, after = Config().model_dump(), Config().resolve(FINDINGS).model_dump()
    derived = {f"{s}.{k}" for s in before for k in before[s] if before[s][k] != after[s][k]}
    assert all(before[key.split(".")[0]][key.split(".")[1]] is None for key in derived), "only null is filled"
    assert derived == {key for key, *_ in HEEDED + CONTRADICTED}


def test_resolving_fills_only_null():
    """A resolved config is complete, and nothing in it is replaced by other data."""
    resolved = Config().resolve(FINDINGS, exclusive=True)
    assert resolved.complete() == resolved
    assert all(resolved.MODEL[key] is not None for key in ("task", "input_size", "num_classes", "num_coarse_classes"))
    with pytest.raises(ConfigError):
        resolved.resolve(("other",))


def test_zero_and_what_the_data_say_too_are_values():
    config = Config.from_overrides(
        ["TRAIN.warmup_epochs=0", "MODEL.num_classes=3", "DATA.class_names=[nodule, mass, effusion]"]
    )
    assert config.resolve(FINDINGS).TRAIN.warmup_epochs == 0


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"MODEL.task": "binary"}, 1),
        ({"DATA.class_names": list(FINDINGS)}, 3),
        ({"MODEL.num_classes": 7}, 7),
        ({}, 14),
    ],
    ids=str,
)
def test_classes_without_data(values, expected):
    assert Config(**nested(values)).complete().MODEL.num_classes == expected


def test_an_edited_default_is_checked_like_any_value(tmp_path, monkeypatch):
    text = with_default(SOURCE.read_text(encoding="utf-8"), "TRAIN.lr_scheduler", "cosin")
    module = edited_module(text, tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match=r"TRAIN\.lr_scheduler: 'cosin' .*did you mean 'cosine'"):
        module.Config()


def test_an_edited_default_holds_under_files_and_overrides(tmp_path, monkeypatch):
    """What a file does not say is as the edited class has it, in sub-sections too."""
    text = with_default(SOURCE.read_text(encoding="utf-8"), "TRAIN.warmup_epochs", 8)
    text = text.replace('enabled: bool = _setting(False, "Trade', 'enabled: bool = _setting(True, "Trade')
    config = edited_module(text, tmp_path, monkeypatch).Config
    (tmp_path / "a.yaml").write_text("TRAIN: {epochs: 9}\nMODEL: {gradient_checkpointing: {segments: 3}}")
    read = config.from_yaml(tmp_path / "a.yaml", ["TRAIN.seed=1"])
    assert type(read) is config and (read.TRAIN.warmup_epochs, read.TRAIN.epochs, read.TRAIN.seed) == (8, 9, 1)
    assert read.MODEL.gradient_checkpointing.enabled is True and read.MODEL.gradient_checkpointing.segments == 3


def test_a_run_of_before_means_the_same():
    """Its config.yaml, and the config in its checkpoints, say every setting."""
    saved = Path(__file__).with_name("resolved_before_null.yaml")
    values = yaml.safe_load(saved.read_text(encoding="utf-8"))
    for config in (Config.from_yaml(saved), Config.from_values(values)):
        resolved = config.resolve(FINDINGS, exclusive=True).model_dump(mode="json")
        for section, settings in values.items():
            assert {key: resolved[section][key] for key in settings} == settings
        assert config.MODEL.task == "multi_class" and config.TRAIN.warmup_epochs == 0.4


def test_nothing_asks_whether_a_value_was_set():
    asked = re.compile(r"fields_set|\bis_set\b|exclude_unset")
    folders = ("configs", "data", "models", "training", "evaluation", "inference", "explain", "deployment", "utils")
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    answers = ROOT / "inference" / "serve"  # its pydantic models are answers, no settings
    files = [path for path in files if answers not in path.parents]
    assert len(files) > 100
    assert [str(path) for path in files if asked.search(path.read_text(encoding="utf-8"))] == []
