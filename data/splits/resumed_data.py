"""What may have changed in a run's data since it began: labels and splits, looked at when it is resumed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.errors import DataError
from data.readers.tables import some
from data.study import SPLITS, DatasetIndex

logger = logging.getLogger("train")

# How the codes of Study.labels are written: uncertain ones and unknown ones too are one character.
_PRESENT, _ABSENT, _UNCERTAIN, _UNKNOWN = "1", "0", "u", "?"
_MOST_SHOWN = 3


@dataclass(frozen=True)
class LabelRecord:
    """The labels of a run's images. codes: image → a character for each class: 1, 0, u (uncertain) or ? (unknown)."""

    class_names: tuple[str, ...]
    codes: dict[str, str]

    @classmethod
    def of(cls, dataset_index: DatasetIndex) -> LabelRecord:
        labels = dataset_index.label_matrix()
        letters = np.full(labels.shape, _UNKNOWN, "<U1")
        for code, letter in ((1.0, _PRESENT), (0.0, _ABSENT), (-1.0, _UNCERTAIN)):
            letters[labels == code] = letter
        rows = letters.tolist()
        return cls(
            tuple(dataset_index.class_names),
            dict(sorted((study.name, "".join(row)) for study, row in zip(dataset_index.studies, rows))),
        )

    @property
    def sha256(self) -> str:
        """The same for every order of the images."""
        return hashlib.sha256(self._content().encode()).hexdigest()

    def to_json(self) -> str:
        """What `read` reads: the digest first, then the rest on a line of its own."""
        return f'{{"sha256": "{self.sha256}", "labels":\n{self._content()}\n}}\n'

    @classmethod
    def read(cls, path: Path) -> LabelRecord:
        """What was written as `to_json`. Raises DataError where it is not there, damaged or edited."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            labels = content["labels"]
            record = cls(tuple(map(str, labels["class_names"])), {str(k): str(v) for k, v in labels["codes"].items()})
            if record.sha256 != content["sha256"]:
                raise ValueError
        except FileNotFoundError:
            raise DataError(f"'{path}' is not there") from None
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise DataError(f"'{path}' is damaged or was edited") from None
        return record

    def _content(self) -> str:
        return json.dumps({"class_names": self.class_names, "codes": self.codes}, ensure_ascii=False)


def tell_label_changes(path: Path, digest: object, dataset_index: DatasetIndex, assignment: np.ndarray) -> None:
    """Log which labels are not those that a resumed run's checkpoint was trained with.

    path: the record of the run's beginning. digest: of the labels of the checkpoint, as it says, of any type; None in
    those of earlier versions. assignment: the split of each image.
    """
    if not isinstance(digest, str):
        logger.info("this checkpoint does not say which labels it was trained with: changes of them cannot be told")
        return
    now = LabelRecord.of(dataset_index)
    if now.sha256 == digest:
        return
    try:
        before = LabelRecord.read(path)
    except DataError as error:
        logger.warning("the labels have changed since the checkpoint was written; which ones cannot be told: %s", error)
        return
    words = describe_changes(before, now, {s.name: str(split) for s, split in zip(dataset_index.studies, assignment)})
    logger.warning("the labels have changed since the run began: %s", words or "they are again those of its beginning")


def describe_changes(before: LabelRecord, now: LabelRecord, splits: dict[str, str]) -> str:
    """How many images have other labels, in which splits and classes, and the first few of them; '' where none has.

    Both are of the same images, as a resumed run's split is. splits: image → its split.
    """
    if before.class_names != now.class_names:
        return f"the classes were {', '.join(before.class_names)}"
    changed = [image for image, codes in now.codes.items() if before.codes.get(image) != codes]
    if not changed:
        return ""
    counts = Counter(splits.get(image, "?") for image in changed)
    where = ", ".join(f"{split} {counts[split]}" for split in (*SPLITS, "?") if counts[split])
    moves = Counter(move for image in changed for move in _moves(before, now, image))
    classes = ", ".join(f"{move} {count} times" for move, count in moves.most_common(10))
    text = f"{len(changed)} of {len(now.codes)} images ({where}): {some(changed, _MOST_SHOWN)}; {classes}"
    if counts["val"]:
        text += "; the best score so far was measured with the labels of before"
    return text


def _moves(before: LabelRecord, now: LabelRecord, image: str) -> list[str]:
    """'Mass 0 → 1' for each class of an image that has changed."""
    pairs = zip(now.class_names, before.codes.get(image, _UNKNOWN * len(now.class_names)), now.codes[image])
    return [f"{name} {old} → {new}" for name, old, new in pairs if old != new]


def check_source_split(dataset_index: DatasetIndex, assignment: np.ndarray, path: Path) -> None:
    """DataError where the data themselves name another split for an image than a resumed run has.

    path: the run's split.csv, which `assignment` is from. What the data leave open, or call 'train' where they name no
    'val', the run has drawn.
    """
    named = [study.split for study in dataset_index.studies]
    drawn = "val" not in named
    moved = [
        f"{study.name} ({have} → {study.split})"
        for study, have in zip(dataset_index.studies, assignment)
        if study.split not in (None, "", have) and not (drawn and (study.split, have) == ("train", "val"))
    ]
    if moved:
        raise DataError(
            f"the data name another split than '{path}' for {len(moved)} images: {some(moved, _MOST_SHOWN)}. The run "
            "would be trained on one split and measured on another: restore the data's, or start a new run"
        )
