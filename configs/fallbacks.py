"""What a setting becomes that is null, where neither other settings nor the data decide it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

Task = Literal["multi_label", "multi_class", "binary"]
LossType = Literal["bce", "focal", "asymmetric", "cross_entropy"]

# For a network built without data, as in a notebook: the previous release's defaults.
TASK: Task = "multi_label"
SHAPE = (224, 224)
CLASSES, COARSE_CLASSES = 14, 3
WARMUP_EPOCHS = 5


@dataclass(frozen=True)
class SampleData:
    """Where the drawn sample data are, how many there are and of which size."""

    folder: str
    count: int
    size: int


SAMPLE_IMAGES = SampleData("./data/sample_chest_xray", 1200, 128)
SAMPLE_VOLUMES = SampleData("./data/sample_chest_ct", 240, 64)
SAMPLE_STUDIES = SampleData("./data/sample_chest_studies", 800, 96)


def is_sample_studies(data_dir: str | None) -> bool:
    """Whether a data_dir is that of the drawn studies."""
    return data_dir is not None and Path(data_dir) == Path(SAMPLE_STUDIES.folder)


class CoarseMeaning(NamedTuple):
    """What a coarse class stands for: the presence of any of its findings, or, negated, of none of them."""

    name: str
    members: frozenset[str]
    negated: bool = False


def coarse_meanings(
    groups: Mapping[str, Sequence[str]] | None, class_names: Sequence[str]
) -> tuple[CoarseMeaning, ...]:
    """The coarse classes that MODEL.coarse_groups makes of these classes, in their order; null: of all findings."""
    if groups:
        return tuple(CoarseMeaning(name, frozenset(members)) for name, members in groups.items())
    every = frozenset(class_names)
    return CoarseMeaning("any finding", every), CoarseMeaning("no finding", every, True)


def class_count(task: Task, class_names: Sequence[str] | None) -> int:
    """As many as are named; else the one of a binary task, or the previous release's 14."""
    return len(class_names or ()) or (1 if task == "binary" else CLASSES)


def loss_of(task: Task) -> LossType:
    """The loss that fits the task."""
    return "cross_entropy" if task == "multi_class" else "bce"


def warmup_epochs(epochs: int) -> float:
    """The usual warm-up; a tenth of a training that is too short for it."""
    return epochs / 10 if epochs < 2 * WARMUP_EPOCHS else WARMUP_EPOCHS
