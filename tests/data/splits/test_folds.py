"""Folds: patients whole, classes spread as by scikit-learn and iterative-stratification, sizes that fit."""

import dataclasses

import numpy as np
import pytest
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from configs.errors import DataError
from data.splits.folds import NO_FOLD, composition_table, draw_folds, fold_notes, of_assignments, one_fold
from tests.data.splits.test_assignment import dataset_index_of, random_dataset_index

SHARE = 0.15 / 0.85


def all_train(index):
    return np.full(len(index.studies), "train")


def draw(index, count=5, seed=0, **options):
    return draw_folds(index, all_train(index), count, seed, SHARE, **options)


def unevenness(labels: np.ndarray, fold: np.ndarray, count: int) -> float:
    """How far each class's share in a fold is from 1 / count, on average."""
    shares = np.stack([labels[fold == one].sum(axis=0) for one in range(count)]) / labels.sum(axis=0)
    return float(np.abs(shares - 1 / count).mean())


def exclusive_index(seed: int):
    """120 patients of 1 to some images, five classes of 50 % to 3 %, mostly one class a patient."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(120), rng.geometric(0.4, 120))
    own = rng.choice(5, 120, p=[0.5, 0.25, 0.15, 0.07, 0.03])[patients]
    classes = np.where(rng.random(len(patients)) < 0.8, own, rng.choice(5, len(patients)))
    return dataset_index_of(np.eye(5)[classes], patients), classes, patients


def test_every_study_is_held_out_once_and_no_patient_is_on_two_sides():
    index = random_dataset_index(600)
    folds = draw(index)
    assert sorted(np.concatenate([folds.rows(fold) for fold in range(5)])) == list(range(600))
    groups = np.array([study.group for study in index.studies])
    for fold, run in enumerate(folds.runs):
        assert set(np.flatnonzero(run == "test")) == set(folds.rows(fold))
        sides = [set(groups[run == split]) for split in ("train", "val", "test")]
        assert all(sides) and not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
        assert abs((run == "val").sum() / (run != "test").sum() - SHARE) < 0.02
    assert folds.scored == "test" and set(folds.together) == {"train"}


@pytest.mark.parametrize("seed", range(3))
def test_exclusive_classes_are_spread_about_as_scikit_learn_spreads_them(seed):
    index, classes, patients = exclusive_index(seed)
    labels = np.eye(5)[classes]

    def by(splitter) -> float:
        fold = np.empty(len(classes), int)
        for number, (_, held) in enumerate(splitter.split(labels, classes, patients)):
            fold[held] = number
        return unevenness(labels, fold, 5)

    ours = unevenness(labels, draw(index, seed=seed).held, 5)
    assert ours < by(StratifiedGroupKFold(5, shuffle=True, random_state=seed)) + 0.02
    assert ours < by(GroupKFold(5, shuffle=True, random_state=seed)) / 2  # which does not look at classes


@pytest.mark.parametrize("seed", range(3))
def test_several_labels_are_spread_as_by_iterative_stratification(seed):
    """Sechidis et al. 2011 deal images; so each is a patient here."""
    labels = (np.random.default_rng(seed).random((400, 6)) < [0.02, 0.05, 0.1, 0.2, 0.3, 0.5]).astype(np.float32)
    other = np.empty(400, int)
    splitter = MultilabelStratifiedKFold(5, shuffle=True, random_state=seed)
    for number, (_, held) in enumerate(splitter.split(labels, labels)):
        other[held] = number
    held = draw(dataset_index_of(labels), seed=seed).held
    assert unevenness(labels, held, 5) < unevenness(labels, other, 5) + 0.005
    assert np.ptp(np.bincount(held)) <= 4


def test_folds_depend_on_names_labels_and_seed_and_not_on_the_order_of_rows():
    index = random_dataset_index(300)
    order = np.random.default_rng(1).permutation(300)
    shuffled = dataclasses.replace(index, studies=tuple(index.studies[row] for row in order))
    first, second = draw(index), draw(shuffled)
    assert (first.held[order] == second.held).all()
    assert all((one[order] == other).all() for one, other in zip(first.runs, second.runs))
    assert (draw(index, seed=1).held != first.held).any()


def test_what_is_no_part_of_the_folds_is_in_none_of_their_splits():
    index = random_dataset_index(300)
    groups = np.array([int(study.patient_id) for study in index.studies])
    given = np.where(groups % 7 == 0, "test", np.where(groups % 7 == 1, "val", "train"))
    folds = draw_folds(index, given, 3, 0, SHARE)
    assert (folds.held[given != "train"] == NO_FOLD).all() and (folds.held[given == "train"] >= 0).all()
    assert all((run[given != "train"] == "").all() for run in folds.runs)
    assert (folds.together == given).all()


def test_the_simpler_scheme_validates_on_what_it_holds_out():
    folds = draw(random_dataset_index(200), inner=False)
    assert folds.scored == "val"
    for fold, run in enumerate(folds.runs):
        assert set(run) == {"train", "val"} and set(np.flatnonzero(run == "val")) == set(folds.rows(fold))


def test_one_fold_is_a_split_as_it_is():
    split = np.array(["train", "val", "test", "train", "test"])
    assert one_fold(split).held.tolist() == [-1, -1, 0, -1, 0]
    without = one_fold(np.array(["train", "val", "val"]))
    assert without.scored == "val" and without.held.tolist() == [-1, 0, 0]


def test_folds_come_back_from_the_splits_of_their_runs():
    for inner in (True, False):
        folds = draw(random_dataset_index(200), inner=inner)
        again = of_assignments(folds.runs, folds.together, inner)
        assert (again.held == folds.held).all() and again.scored == folds.scored


@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_more_folds_than_patients_are_refused(count):
    index = dataset_index_of(np.eye(2)[[0, 1] * 6], [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3])
    with pytest.raises(DataError, match=f"--folds {count}: the folds are of 3 patients"):
        draw(index, count)


def test_patients_too_few_for_a_validation_part_are_one_error():
    index = dataset_index_of(np.eye(2)[[0, 1]], [1, 2])
    with pytest.raises(DataError, match=r"none is left for its validation part .18%.*--validation held-out"):
        draw(index, 2)
    assert draw(index, 2, inner=False).scored == "val"


def test_rare_classes_missing_patients_and_large_ones_are_named():
    labels = np.zeros((40, 3))
    labels[0, 0] = labels[::2, 1] = 1
    patients = ["big"] * 20 + [f"p{n}" for n in range(10)] + [""] * 10
    index = dataset_index_of(labels, patients)
    notes = " ".join(fold_notes(index, draw(index, 4)))
    assert "10 of 40 studies name no patient" in notes
    assert "'c0' is present in 1 patient only" in notes and "none to train on, never learnt there" in notes
    assert "none held out, figures undefined there" in notes and "'c2' has no positive study" in notes
    assert "more studies than a fold should" in notes and "big" in notes
    assert fold_notes(random_dataset_index(3000), draw(random_dataset_index(3000), 3)) == []


def test_the_composition_counts_patients_studies_and_positives():
    index = random_dataset_index(200)
    table = composition_table(index, draw(index, 3))
    assert table[0] == ["fold", "part", "patients", "studies", *index.class_names] and len(table) == 10
    totals = (index.label_matrix() == 1).sum(axis=0)
    for fold in range(3):
        rows = [row for row in table[1:] if row[0] == str(fold)]
        assert [row[1] for row in rows] == ["train", "val", "held out"]
        assert sum(int(row[3]) for row in rows) == 200
        assert [sum(int(row[4 + k]) for row in rows) for k in range(5)] == totals.tolist()
