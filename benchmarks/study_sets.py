"""The two sets of real studies that `benchmarks.studies` trains on, in folds by patient."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

AGGREGATORS = ("mean", "max", "attention", "cross_attention", "learned_weight")
FOLDS, SEED = 5, 0
Row = dict[str, str]


@dataclass(frozen=True)
class DataSet:
    """A set of studies, and what is asked of it.

    rows: the labels table with study_id, patient_id and view, written anew for each fold. classes: the first is the one
    that is reported. columns: of the clinical table, in the labels table where `clinical` is ''.
    """

    name: str
    folder: Path
    rows: list[Row]
    classes: tuple[str, ...]
    columns: Mapping[str, str]
    clinical: str
    view_kinds: Mapping[str, list[str]] | None
    aggregators: tuple[str, ...]


def covid_studies(folder: Path) -> DataSet:
    """Chest radiographs, one or several a study; age, sex, days since onset, SpO2."""
    columns = {"age": "numeric", "sex": "categorical", "days_since_onset": "numeric", "spo2_percent": "numeric"}
    kinds = {"frontal": ["PA", "AP", "AP supine"], "lateral": ["lateral"]}
    classes = ("ICU", "COVID", "Bacterial", "Intubated", "Died")
    rows = read_rows(folder / "labels.csv")
    return DataSet("covid_studies", folder, rows, classes, columns, "clinical.csv", kinds, AGGREGATORS)


def ph2(folder: Path) -> DataSet:
    """Dermoscopic images: common nevi against the rest; asymmetry as a dermatologist saw it."""
    rows = []
    for row in read_rows(folder / "labels.csv"):
        own = {
            "image": row["image"],
            "study_id": row["image"],
            "patient_id": row["image"],
            "view": "lesion",
        }
        rows.append({**own, "common": str(int(row["labels"] == "common")), "asymmetry": row["asymmetry"]})
    return DataSet("ph2", folder, rows, ("common",), {"asymmetry": "categorical"}, "", None, ("mean",))


SETS: dict[str, Callable[[Path], DataSet]] = {"covid_studies": covid_studies, "ph2": ph2}


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[Row]:
    """A CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def fold_of_patients(rows: Sequence[Row]) -> dict[str, int]:
    """Patient → fold, in which neither images nor positives of the first label that varies are bunched: by chance."""
    patients = sorted({row["patient_id"] for row in rows})
    order = np.random.default_rng(SEED).permutation(len(patients))
    return {patients[number]: place % FOLDS for place, number in enumerate(order)}


def write_fold(data: DataSet, fold: int, folder: Path) -> None:
    """labels.csv with the fold as test; a fifth of the other patients as val."""
    folds = fold_of_patients(data.rows)
    others = sorted(patient for patient, own in folds.items() if own != fold)
    rng = np.random.default_rng([SEED, fold])
    val = set(rng.permutation(others)[: len(others) // 5].tolist())
    split = {patient: "test" if own == fold else "val" if patient in val else "train" for patient, own in folds.items()}
    dropped = {"split", "license", "source"}
    rows = [{key: cell for key, cell in row.items() if key not in dropped} for row in data.rows]
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "labels.csv", [{**row, "split": split[row["patient_id"]]} for row in rows])
