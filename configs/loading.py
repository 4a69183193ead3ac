"""YAML files, both spellings of them, and command-line overrides → checked settings, all problems reported at once."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import yaml

from configs.errors import ConfigError, shortened
from configs.previous_release import restore
from configs.section import Section, unknown_name
from configs.strict_yaml import MAX_CHARACTERS, parse_yaml

_OTHER_NAMES = {"training": "TRAIN"}
_BACKBONE_KEYS = {
    "type": "backbone",
    "pretrained": "pretrained",
    "feature_dim": "fusion_channels",
    "gradient_checkpointing": "gradient_checkpointing",
}
_MOST_BASES, _MOST_PARTS, _MOST_PROBLEMS = 20, 8, 50
Settings = dict[str, dict[str, object]]
Root = TypeVar("Root", bound="RootSection")


class RootSection(Section):
    """Sections that are read from files and overrides as a whole, and written to files."""

    @classmethod
    def from_yaml(cls: type[Root], path: str | Path, overrides: Iterable[str] = (), saved: bool = False) -> Root:
        """The defaults, then a YAML file with its `base`, then overrides such as 'TRAIN.batch_size=16'.

        saved: of a run that is looked at and not gone on with, see `problems_of_saved`.
        Raises ConfigError that lists every problem of file and overrides at once.
        """
        problems: list[str] = []
        settings = _Reader(cls, problems).file(Path(path))
        return _checked(cls, settings, overrides, problems, f"{path}: ", saved)

    @classmethod
    def from_overrides(cls: type[Root], overrides: Iterable[str]) -> Root:
        """The defaults with overrides such as 'MODEL.backbone=resnet50'. Raises ConfigError."""
        return _checked(cls, {}, overrides, [], "")

    @classmethod
    def from_values(cls: type[Root], values: object, overrides: Iterable[str] = (), source: str = "") -> Root:
        """{'MODEL': {…}, …} as a checkpoint carries it, then the overrides. Raises ConfigError."""
        problems: list[str] = []
        settings = _Reader(cls, problems).normalise(values)
        return _checked(cls, settings, overrides, problems, source and f"{source}: ", saved=True)

    @classmethod
    def override_keys(cls, overrides: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Override → the settings it names, in the spelling of the definitions: 'train.epochs=3' → ('TRAIN.epochs',).

        Several where its value is a mapping. Raises ConfigError with one line for each that is wrong in itself;
        contradictions are not looked for, as they depend on the other settings.
        """
        problems: list[str] = []
        reader = _Reader(cls, problems)
        named = {text: reader.override(text) for text in overrides}
        for settings in named.values():
            build(cls, settings, problems)
        _raise(problems, "")
        return {text: tuple(_leaves(cls, settings)) for text, settings in named.items()}

    @classmethod
    def keys_of_files(cls, path: str | Path) -> list[tuple[Path, tuple[str, ...]]]:
        """(file, the settings it names) of a YAML file and its `base`s, the farthest first. Raises ConfigError."""
        problems: list[str] = []
        reader = _Reader(cls, problems)
        for settings in (reader.file(Path(path)), *(settings for _, settings in reader.read)):
            build(cls, settings, problems)
        _raise([*dict.fromkeys(problems)], f"{path}: ")
        return [(file, tuple(_leaves(cls, settings))) for file, settings in reader.read]

    @classmethod
    def peek(cls, path: str | Path, section: str, key: str) -> str | None:
        """What a YAML file, or its `base`, says of one setting, unchecked; None where it is silent or unreadable."""
        try:
            found = _Reader(cls, []).file(Path(path)).get(section, {}).get(key)
        except ConfigError:
            return None
        return found if isinstance(found, str) else None

    def __setstate__(self, state: dict[str, object]) -> None:
        """From a pickle: of this release's Config, which is empty before, or of the previous release's plain object."""
        if not self.__dict__ and "__dict__" in state:
            super().__setstate__(state)
        else:
            restore(self, state)

    def to_yaml(self) -> str:
        """Every setting, as YAML that `from_yaml` reads back to equal settings."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def problems(self) -> list[str]:
        """Contradictions between settings that are each fine alone; empty where there are none."""
        return []

    def problems_of_saved(self) -> list[str]:
        """Those of them that matter where a model is trained already: a file may say what is refused today."""
        return self.problems()

    def check(self: Root, source: str = "") -> Root:
        """Itself. Raises ConfigError that lists all contradictions; source: what the sentence begins with."""
        _raise(self.problems(), source)
        return self


def _checked(
    root: type[Root],
    settings: Settings,
    overrides: Iterable[str],
    problems: list[str],
    source: str,
    saved: bool = False,
) -> Root:
    for override in overrides:
        _merge(settings, _Reader(root, problems).override(override))
    config = build(root, settings, problems)
    problems += config.problems_of_saved() if saved else config.problems()
    _raise(problems, source)
    return config


def _raise(problems: list[str], source: str) -> None:
    """One ConfigError for all problems, if there are any."""
    if not problems:
        return
    lines = [shortened(problem) for problem in problems[:_MOST_PROBLEMS]]
    if len(problems) > _MOST_PROBLEMS:
        lines.append(f"and {len(problems) - _MOST_PROBLEMS} more")
    raise ConfigError(source + "\n  ".join(["the configuration has problems:", *lines]))


def build(root: type[Root], settings: Mapping[str, Mapping[str, object]], problems: list[str]) -> Root:
    """Settings {'MODEL': {...}, ...} over the defaults; what is wrong is added to `problems`, its default stays."""
    config = root()
    for name, values in settings.items():
        section = config[name]
        for key, value in values.items():
            try:
                section[key] = _over(section[key], value)
            except ConfigError as error:
                problems.append(str(error))
    return config


def _over(default: object, value: object) -> object:
    """A value; a mapping for a sub-section with the defaults of what it leaves out."""
    return {**default.model_dump(), **value} if isinstance(default, Section) and isinstance(value, dict) else value


def _leaves(section: type[Section], settings: Mapping[str, object], prefix: str = "") -> Iterable[str]:
    for key, value in settings.items():
        nested = section.model_fields[key].annotation
        if isinstance(nested, type) and issubclass(nested, Section) and isinstance(value, Mapping):
            yield from _leaves(nested, value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


class _Reader:
    """Reads what users write for the sections of `root`; what is wrong is added to `problems`."""

    def __init__(self, root: type[Section], problems: list[str]) -> None:
        self.names = {name.lower(): name for name in root.model_fields} | _OTHER_NAMES
        self.problems = problems
        self.read: list[tuple[Path, Settings]] = []  # each file's own settings, a base before what is over it

    def normalise(self, raw: object) -> Settings:
        """Section names in either case and the nested spelling → {'MODEL': {'backbone': ...}, ...}."""
        if raw is None:
            return {}
        if not isinstance(raw, dict):
            self.problems.append(f"a configuration is a mapping of sections, this is {type(raw).__name__}")
            return {}
        settings: Settings = {}
        for key, values in raw.items():
            section = self.names.get(str(key).lower())
            if section is None:
                known = [*dict.fromkeys(self.names.values()), *_OTHER_NAMES, "base"]
                self.problems.append(unknown_name(str(key), str(key), known))
            elif values is not None and not isinstance(values, dict):
                self.problems.append(f"{section}: {values!r} is not allowed: a mapping of settings")
            else:
                self._add_section(settings, section, values or {})
        return settings

    def _add_section(self, settings: Settings, section: str, values: dict) -> None:
        flat = self._flatten_backbone(values) if section == "MODEL" else {str(k): v for k, v in values.items()}
        target = settings.setdefault(section, {})
        for key, value in flat.items():
            if key in target and target[key] != value:
                self.problems.append(f"{section}.{key} is given twice: {target[key]!r} and {value!r}")
            target[key] = value

    def _flatten_backbone(self, values: dict) -> dict[str, object]:
        """backbone: {type, pretrained, feature_dim, gradient_checkpointing} → the flat keys of MODEL."""
        flat = {str(key): value for key, value in values.items()}
        nested = flat.get("backbone")
        if not isinstance(nested, dict):
            return flat
        del flat["backbone"]
        for key, value in nested.items():
            name = _BACKBONE_KEYS.get(str(key))
            if name is None:
                self.problems.append(unknown_name(f"MODEL.backbone.{key}", str(key), _BACKBONE_KEYS))
            elif name in flat and flat[name] != value:
                self.problems.append(f"MODEL.{name} and MODEL.backbone.{key} differ: {flat[name]!r} and {value!r}")
            else:
                flat[name] = value
        return flat

    def file(self, path: Path, seen: tuple[Path, ...] = ()) -> Settings:
        """Settings of a YAML file over those of its `base`."""
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
            settings = self.file(path.parent / base, (*seen, resolved))
        elif base is not None:
            self.problems.append(f"base: {base!r} is not allowed: one file name that ends in .yaml or .yml")
        own = self.normalise(raw)
        self.read.append((path, copy.deepcopy(own)))
        _merge(settings, own)
        return settings

    def override(self, text: str) -> Settings:
        """'TRAIN.batch_size=16' → {'TRAIN': {'batch_size': 16}}; the value is read as YAML."""
        name, equals, value = text.partition("=")
        parts = name.strip().split(".")
        if not equals or not 2 <= len(parts) <= _MOST_PARTS or not all(part.isprintable() and part for part in parts):
            self.problems.append(f"override {text!r}: write SECTION.key=value, for example TRAIN.batch_size=16")
            return {}
        try:
            nested = parse_yaml(value, f"the value of override '{text}'")
        except ConfigError as error:
            self.problems.append(str(error))
            return {}
        for part in reversed(parts):
            nested = {part: nested}
        return self.normalise(nested)


def _read_yaml(path: Path) -> object:
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


# Mappings that are one value: part of one and part of another would be neither.
_WHOLE = (".MODEL.coarse_groups", ".MODEL.table_columns", ".DATA.view_kinds", ".DATA.table.columns")


def _merge(target: dict, update: Mapping, within: str = "") -> None:
    """Settings of `update` win; sub-sections are merged key by key, other values replaced as a whole."""
    for key, value in update.items():
        whole = f"{within}.{key}" in _WHOLE
        if isinstance(value, dict) and isinstance(target.get(key), dict) and not whole:
            _merge(target[key], value, f"{within}.{key}")
        else:
            target[key] = value
