"""predictions.csv: every image with patient, split, labels and probabilities."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

import numpy as np

from evaluation.scored_split import ScoredSplit
from utils.csv_cells import safe_cell


def predictions_csv(
    scored: ScoredSplit,
    images: Sequence[str],
    patients: Sequence[str],
    splits: Sequence[str],
    findings: Sequence[str] | None = None,
) -> str:
    """The table as text.

    Columns: image, patient_id, split, 'probability <class>' for each class, 'label <class>' for each class, and
    'findings', what is called, as predict.py writes it ('A|B'), where `findings` has N texts.
    Probabilities are written in full, so that they read back as they were; labels are 1, 0, or empty where unknown.
    images, patients, splits: N texts each; patients and splits may be ''.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    names = scored.class_names
    heads = [f"{kind} {name}" for kind in ("probability", "label") for name in names]
    writer.writerow(["image", "patient_id", "split", *heads, *([] if findings is None else ["findings"])])
    for row, (image, patient, split) in enumerate(zip(images, patients, splits, strict=True)):
        start = [safe_cell(image), safe_cell(patient), split]
        end = [] if findings is None else [safe_cell(findings[row])]
        writer.writerow([*start, *map(repr, scored.probabilities[row].tolist()), *_labels(scored, row), *end])
    return text.getvalue()


def _labels(scored: ScoredSplit, row: int) -> Iterator[str]:
    for target, known in zip(np.asarray(scored.targets)[row], scored.mask[row]):
        yield str(int(target)) if known else ""
