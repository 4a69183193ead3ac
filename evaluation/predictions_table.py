"""predictions.csv: every image with patient, split, labels and probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from evaluation.scored_split import ScoredSplit
from utils.csv_cells import csv_text, probability_text


def predictions_csv(
    scored: ScoredSplit,
    images: Sequence[str],
    patients: Sequence[str],
    splits: Sequence[str],
    findings: Sequence[str] | None = None,
    thresholds: Sequence[float] = (),
) -> str:
    """The table as text.

    Columns: image, patient_id, split, 'probability <class>' for each class, 'label <class>' for each class, and
    'findings', what is called, as predict.py writes it ('A|B'), where `findings` has N texts.
    Probabilities have nine digits (see `probability_text`), and more where a rounded one would be on another side of
    its threshold; labels are 1, 0, or empty where unknown. images, patients, splits: N texts each; patients and splits
    may be ''. thresholds: K, nan where a class has none, or none at all; a split's own thresholds go before them.
    """
    names = scored.class_names
    rows_limits = [thresholds] * len(images) if scored.own_thresholds is None else scored.own_thresholds.tolist()
    heads = [f"{kind} {name}" for kind in ("probability", "label") for name in names]
    rows = [["image", "patient_id", "split", *heads, *([] if findings is None else ["findings"])]]
    for row, start in enumerate(zip(images, patients, splits, strict=True)):
        limits = [[] if math.isnan(limit) else [float(limit)] for limit in rows_limits[row]] or [[]] * len(names)
        figures = map(probability_text, scored.probabilities[row].tolist(), limits)
        rows.append([*start, *figures, *_labels(scored, row), *([] if findings is None else [findings[row]])])
    return csv_text(rows)


def _labels(scored: ScoredSplit, row: int) -> Iterator[str]:
    for target, known in zip(np.asarray(scored.targets)[row], scored.mask[row]):
        yield str(int(target)) if known else ""
