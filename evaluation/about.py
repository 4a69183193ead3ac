"""What was evaluated, for the report and metrics.json."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from configs.default_config import Config
from evaluation.report import About
from utils.environment import describe_environment


class Network(Protocol):
    """What is said about a network."""

    @property
    def attention_mode(self) -> str: ...

    def parameters(self) -> Iterable[Weights]: ...


class Weights(Protocol):
    """A tensor."""

    def numel(self) -> int: ...


class SavedNetwork(Protocol):
    """A checkpoint as read: models' SavedModel."""

    @property
    def model(self) -> Network: ...

    @property
    def config(self) -> Config: ...

    @property
    def class_names(self) -> tuple[str, ...] | None: ...

    @property
    def preprocessing(self) -> Mapping[str, object] | None: ...

    # Any: plain values of a file.
    @property
    def description(self) -> Mapping[str, Any]: ...


class Split(Protocol):
    """Which images are in which split: data's SavedSplit."""

    @property
    def source(self) -> str: ...

    @property
    def warnings(self) -> Sequence[str]: ...

    def rows(self, split: str) -> np.ndarray: ...

    def concerns(self, split: str) -> list[str]: ...


class Data(Protocol):
    """The images that a model is evaluated on: data's EvaluationData."""

    @property
    def location(self) -> str: ...

    @property
    def split(self) -> Split: ...

    def patients(self, index: np.ndarray) -> list[str]: ...


def about_evaluation(
    path: Path,
    saved: SavedNetwork,
    data: Data,
    split: str,
    index: np.ndarray,
    execution: tuple[str, str],
    notes: Sequence[str],
) -> About:
    """path: the checkpoint. saved: what was read from it. split: its name; index: the rows scored.

    place: names of device and precision. notes: further sentences.
    """
    left_out = len(data.split.rows(split)) - len(index)
    facts = {
        **model_facts(path, saved),
        "data": str(data.location),
        "split": f"{split}, as {data.split.source} says" if split != "all" else "all images",
        "images": f"{len(index):,}" + (f"; {left_out:,} could not be read and are left out" if left_out else ""),
        "patients": _patients(data.patients(index)),
        **_environment(*execution),
    }
    warnings = [*_source_warnings(saved), *data.split.warnings, *data.split.concerns(split)]
    warnings += unread_warnings(left_out)
    titles = saved.config.DATA.class_titles or {}
    return About(f"{path.parent.name or path.stem} on {split}", facts, warnings, list(notes), titles)


def about_models(
    folder: Path,
    members: Sequence[Mapping[str, str]],
    data: Data,
    split: str,
    index: np.ndarray,
    execution: tuple[str, str],
) -> About:
    """Of the models of a cross-validation. members: `model_facts` of each. split: in words. index: the rows scored."""
    several = {name: list(dict.fromkeys(one[name] for one in members)) for name in members[0]}
    facts = {
        "cross-validation": str(folder),
        "models": f"{len(members)}: {'; '.join(several.pop('checkpoint'))}",
        **{name: "; ".join(texts) for name, texts in several.items()},
        "data": str(data.location),
        "split": split,
        "images": f"{len(index):,}",
        "patients": _patients(data.patients(index)),
        **_environment(*execution),
    }
    return About(folder.name, facts)


def unread_warnings(count: int) -> list[str]:
    """What is to be said of images that could not be read."""
    return [f"{count:,} images could not be read and are left out."] if count else []


def model_facts(path: Path, saved: SavedNetwork) -> dict[str, str]:
    """What is said of a checkpoint and its network."""
    settings, epoch = saved.config.MODEL, (saved.description.get("metrics") or {}).get("epoch")
    preprocessing = saved.preprocessing or {}
    millions = sum(parameter.numel() for parameter in saved.model.parameters()) / 1e6
    parts = [
        settings.name,
        settings.backbone,
        f"attention {saved.model.attention_mode}",
        f"{millions:.1f} M parameters",
    ]
    return {
        "checkpoint": f"{path} (SHA-256 {_digest(path)[:16]}…)",
        "model": ", ".join([*parts, *([f"weights of epoch {epoch}"] if epoch else [])]),
        "task": f"{settings.task}, {settings.num_classes} {'class' if settings.num_classes == 1 else 'classes'}",
        "preprocessing": "; ".join(
            f"{name.replace('_', ' ')} {_display(value)}" for name, value in preprocessing.items()
        )
        or "as the settings and the backbone say: the file does not",
    }


def _source_warnings(saved: SavedNetwork) -> list[str]:
    warnings = []
    if saved.class_names is None:
        warnings.append(
            "The file does not name its classes: those of the data were taken, in their order. If the model was "
            "trained with another order, every figure is wrong; DATA.class_names gives it."
        )
    if saved.preprocessing is None:
        warnings.append("The file does not say how images are preprocessed: its settings and the backbone's were used.")
    return warnings


def _environment(device: str, precision: str) -> dict[str, str]:
    environment = describe_environment(device, precision)
    versions = [
        f"{name} {version}" for name in ("torch", "timm", "numpy") if (version := environment["packages"][name])
    ]
    commit = [f"source {environment['git_commit'][:12]}"] if environment["git_commit"] else []
    return {
        "computed on": f"{device}, {precision}",
        "made": f"{environment['time']}, Python {environment['python']}, {', '.join([*versions, *commit])}",
    }


def _patients(names: Sequence[str]) -> str:
    named = {name for name in names if name}
    unnamed = sum(not name for name in names)
    if not unnamed:
        return f"{len(named):,}"
    return f"{len(named):,}, and {unnamed:,} images that name no patient: each counts as one"


def _display(value: object) -> str:
    if isinstance(value, (list, tuple)):
        sign = " × " if all(isinstance(item, int) for item in value) else ", "
        return sign.join(_display(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
