"""YAML files, both spellings of them, and command-line overrides → a checked Config, all problems told at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from configs.default_config import Config
from configs.errors import ConfigError, shortened
from configs.section import Section, describe_errors, unknown_name
from configs.strict_yaml import MAX_CHARACTERS, parse_yaml

SECTIONS = tuple(Config.model_fields)
_SECTION_NAMES = {name.lower(): name for name in SECTIONS} | {"training": "TRAIN"}
_BACKBONE_KEYS = {
    "type": "backbone",
    "pretrained": "pretrained",
    "feature_dim": "fusion_channels",
    "gradient_checkpointing": "gradient_checkpointing",
}
_MOST_BASES, _MOST_PARTS, _MOST_PROBLEMS = 20, 8, 50
Settings = dict[str, dict[str, Any]]


def load_config(path: str | Path | None, overrides: Iterable[str] = ()) -> Config:
    """The defaults, then the file with its `base`, then the overrides.

    Raises ConfigError with one line for each problem.
    """
    problems: list[str] = []
    settings = _read_with_base(Path(path), problems) if path is not None else {}
    return _checked(settings, overrides, problems, "" if path is None else f"{path}: ")


def config_from_values(values: Any, overrides: Iterable[str] = (), source: str = "") -> Config:
    """A Config from {'MODEL': {…}, …} as a checkpoint carries it, then the overrides. Raises ConfigError."""
    problems: list[str] = []
    return _checked(normalise(values, problems), overrides, problems, source and f"{source}: ")


def _checked(settings: Settings, overrides: Iterable[str], problems: list[str], source: str) -> Config:
    for override in overrides:
        _merge(settings, _parse_override(override, problems))
    config = build_config(settings, problems)
    problems += config.problems()
    if problems:
        lines = [shortened(problem) for problem in problems[:_MOST_PROBLEMS]]
        if len(problems) > _MOST_PROBLEMS:
            lines.append(f"and {len(problems) - _MOST_PROBLEMS} more")
        raise ConfigError(source + "\n  ".join(["the configuration has problems:", *lines]))
    return config


def build_config(settings: Mapping[str, Any], problems: list[str]) -> Config:
    """A Config from {'MODEL': {...}, ...}; what is wrong is added to `problems` and left at its default."""
    sections = {}
    for name, values in settings.items():
        model = cast(type[Section], Config.model_fields[name].default_factory)
        try:
            sections[name] = model(**values)
        except ValidationError as error:
            problems += describe_errors(error, model, name)
            wrong = {str(detail["loc"][0]) for detail in error.errors()}
            sections[name] = model(**{key: value for key, value in values.items() if key not in wrong})
    return Config(**cast(Any, sections))


def normalise(raw: Any, problems: list[str]) -> Settings:
    """Section names in either case and the nested spelling → {'MODEL': {'backbone': ...}, ...}."""
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        problems.append(f"a configuration is a mapping of sections, this is {type(raw).__name__}")
        return {}
    settings: Settings = {}
    for key, values in raw.items():
        section = _SECTION_NAMES.get(str(key).lower())
        if section is None:
            problems.append(unknown_name(str(key), str(key), [*SECTIONS, "training", "base"]))
        elif values is not None and not isinstance(values, dict):
            problems.append(f"{section}: {values!r} is not allowed: a mapping of settings")
        else:
            _add_section(settings, section, values or {}, problems)
    return settings


def _add_section(settings: Settings, section: str, values: dict, problems: list[str]) -> None:
    flat = _flatten_backbone(values, problems) if section == "MODEL" else {str(k): v for k, v in values.items()}
    target = settings.setdefault(section, {})
    for key, value in flat.items():
        if key in target and target[key] != value:
            problems.append(f"{section}.{key} is given twice: {target[key]!r} and {value!r}")
        target[key] = value


def _flatten_backbone(values: dict, problems: list[str]) -> dict[str, Any]:
    """backbone: {type, pretrained, feature_dim, gradient_checkpointing} → the flat keys of MODEL."""
    flat = {str(key): value for key, value in values.items()}
    nested = flat.get("backbone")
    if not isinstance(nested, dict):
        return flat
    del flat["backbone"]
    for key, value in nested.items():
        name = _BACKBONE_KEYS.get(str(key))
        if name is None:
            problems.append(unknown_name(f"MODEL.backbone.{key}", str(key), _BACKBONE_KEYS))
        elif name in flat and flat[name] != value:
            problems.append(f"MODEL.{name} and MODEL.backbone.{key} differ: {flat[name]!r} and {value!r}")
        else:
            flat[name] = value
    return flat


def _read_with_base(path: Path, problems: list[str], seen: tuple[Path, ...] = ()) -> Settings:
    try:
        resolved = path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, links that go round in a circle
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error}") from None
    if resolved in seen or len(seen) == _MOST_BASES:
        chain = " → ".join(p.name for p in (*seen, resolved))
        why = "goes round in a circle" if resolved in seen else f"goes through more than {_MOST_BASES} files"
        raise ConfigError(f"'base' {why}: {chain}")
    raw = _read_yaml(path)
    base = raw.pop("base", None) if isinstance(raw, dict) else None
    settings: Settings = {}
    if isinstance(base, str) and base.lower().endswith((".yaml", ".yml")):
        settings = _read_with_base(path.parent / base, problems, (*seen, resolved))
    elif base is not None:
        problems.append(f"base: {base!r} is not allowed: one file name that ends in .yaml or .yml")
    _merge(settings, normalise(raw, problems))
    return settings


def _read_yaml(path: Path) -> Any:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ConfigError(f"config file '{path}' is a pipe or a device, not a file")
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        there = f"; in {path.parent} there are: {', '.join(near)}" if near else ""
        raise ConfigError(f"config file '{path}' does not exist{there}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file '{path}' cannot be read: {error}") from None
    return parse_yaml(text, f"config file '{path}'")


def _parse_override(text: str, problems: list[str]) -> Settings:
    """'TRAIN.batch_size=16' → {'TRAIN': {'batch_size': 16}}; the value is read as YAML."""
    name, equals, value = text.partition("=")
    parts = name.strip().split(".")
    if not equals or not 2 <= len(parts) <= _MOST_PARTS or not all(part.isprintable() and part for part in parts):
        problems.append(f"override {text!r}: write SECTION.key=value, for example TRAIN.batch_size=16")
        return {}
    try:
        nested: Any = parse_yaml(value, f"the value of override '{text}'")
    except ConfigError as error:
        problems.append(str(error))
        return {}
    for part in reversed(parts):
        nested = {part: nested}
    return normalise(nested, problems)


def _merge(target: dict, update: Mapping) -> None:
    """Settings of `update` win; sub-sections are merged key by key, other values replaced as a whole."""
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict) and key != "coarse_groups":
            _merge(target[key], value)
        else:
            target[key] = value
