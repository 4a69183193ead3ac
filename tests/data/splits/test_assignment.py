"""Splits: patients whole, classes spread, the source's own kept, the file verified; on NIH's real tables too."""

import csv
import dataclasses
import gzip
import hashlib
import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError
from data.sources.formats import open_source
from data.splits.assignment import (
    assign_splits,
    images_and_patients,
    patient_overlap,
    read_split,
    split_hash,
    split_of_file,
    write_split,
)
from data.splits.stratify import stratify_groups
from data.study import IMAGE, DatasetIndex, Study

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data here")


def no_images(index: int) -> np.ndarray:
    raise AssertionError("a split needs no images")


def dataset_index_of(labels, patients=None, splits=None) -> DatasetIndex:
    labels = np.asarray(labels, np.float32)
    patients = [""] * len(labels) if patients is None else patients
    splits = [None] * len(labels) if splits is None else splits
    studies = tuple(
        Study(f"{index:04d}.png", {IMAGE: f"{index:04d}.png"}, row, str(patient), split)
        for index, (row, patient, split) in enumerate(zip(labels, patients, splits))
    )
    return DatasetIndex(tuple(f"c{index}" for index in range(labels.shape[1])), studies, no_images)


def random_dataset_index(rows: int = 2000, seed: int = 0, splits=None) -> DatasetIndex:
    """Patients of 1 to 12 images, five classes of 0.5 % to 40 %."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(rows), rng.integers(1, 13, rows))[:rows]
    labels = rng.random((rows, 5)) < np.array([0.005, 0.02, 0.1, 0.25, 0.4])
    return dataset_index_of(labels, patients, splits)


def fractions(assignment: np.ndarray) -> dict[str, float]:
    return {split: float((assignment == split).mean()) for split in ("train", "val", "test")}


# ---- drawing


@pytest.mark.parametrize("seed", range(5))
def test_patients_stay_whole_and_classes_are_spread(seed):
    dataset_index = random_dataset_index(seed=seed)
    assignment = assign_splits(dataset_index, seed=seed)
    assert not patient_overlap(dataset_index, assignment)
    labels = dataset_index.label_matrix()
    for split, fraction in zip(("train", "val", "test"), (0.7, 0.15, 0.15)):
        chosen = assignment == split
        assert abs(chosen.mean() - fraction) < 0.01
        for positives, total in zip(labels[chosen].sum(0), labels.sum(0)):
            assert abs(positives - fraction * total) <= max(2, 0.03 * total)


def test_rare_class_reaches_every_split():
    labels = np.zeros((300, 2))
    labels[:7, 0] = 1
    labels[:, 1] = np.arange(300) % 2
    assignment = assign_splits(dataset_index_of(labels))
    assert Counter(assignment[:7].tolist()) == {"train": 5, "val": 1, "test": 1}


def test_same_seed_same_split_and_another_seed_another():
    dataset_index = random_dataset_index()
    first = assign_splits(dataset_index, seed=1)
    np.testing.assert_array_equal(first, assign_splits(dataset_index, seed=1))
    assert (first != assign_splits(dataset_index, seed=2)).mean() > 0.1


def test_images_without_patient_are_their_own():
    labels = np.eye(2)[np.arange(100) % 2]
    assert fractions(assign_splits(dataset_index_of(labels))) == {"train": 0.7, "val": 0.15, "test": 0.15}


def test_one_large_patient_does_not_overfill_a_small_split():
    patients = [0] * 40 + list(range(1, 61))
    for seed in range(10):
        assignment = assign_splits(dataset_index_of(np.ones((100, 1)), patients), seed=seed)
        assert set(assignment[:40]) == {"train"}
        assert fractions(assignment) == {"train": 0.7, "val": 0.15, "test": 0.15}


def test_a_share_of_zero_gets_nothing():
    assignment = assign_splits(random_dataset_index(), (0.8, 0.2, 0.0))
    assert fractions(assignment)["test"] == 0
    assert fractions(assignment)["val"] == pytest.approx(0.2, abs=0.01)


def test_unknown_and_uncertain_labels_do_not_count():
    labels = np.where(np.arange(200)[:, None] % 2 == 0, np.nan, -1.0)
    assert fractions(assign_splits(dataset_index_of(labels)))["train"] == pytest.approx(0.7)


def test_stratify_groups_is_constant_within_groups():
    rng = np.random.default_rng(0)
    groups = [f"g{number}" for number in rng.integers(0, 50, 400)]
    chosen = stratify_groups((rng.random((400, 3)) < 0.2).astype(np.float32), groups, (0.5, 0.3, 0.2), 0)
    assert all(len({chosen[i] for i in range(400) if groups[i] == group}) == 1 for group in set(groups))
    assert set(chosen.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("fractions", [(0.7, 0.2, 0.2), (1.2, -0.1, -0.1), (0.5, 0.5), (float("nan"), 0.5, 0.5)])
def test_fractions_must_sum_to_one(fractions):
    with pytest.raises(DataError, match="sum"):
        assign_splits(random_dataset_index(50), fractions)


# ---- the source's own


def test_given_splits_are_kept():
    given = ["train", "val", "test"] * 20
    assignment = assign_splits(dataset_index_of(np.ones((60, 1)), splits=given))
    assert assignment.tolist() == given
    assert assignment.dtype.kind == "U"


@pytest.mark.parametrize("pool", ["train", None])
def test_val_is_cut_by_patient_where_there_is_none(pool):
    """'train' and 'test' folders, or NIH's official lists, whose train_val images have no split."""
    splits = ["test"] * 400 + [pool] * 1600
    dataset_index = random_dataset_index(splits=splits)
    patients = [int(study.patient_id) + 10_000 * (study.split == "test") for study in dataset_index.studies]
    dataset_index = dataset_index_of(dataset_index.label_matrix(), patients, splits)
    assignment = assign_splits(dataset_index)
    assert (assignment[:400] == "test").all() and not (assignment[400:] == "test").any()
    assert (assignment[400:] == "val").mean() == pytest.approx(0.15 / 0.85, abs=0.01)
    assert not patient_overlap(dataset_index, assignment)


def test_train_alone_gives_no_test():
    assert fractions(assign_splits(dataset_index_of(np.ones((100, 1)), splits=["train"] * 100)))["test"] == 0


def test_what_is_not_val_is_train():
    assignment = assign_splits(dataset_index_of(np.ones((10, 1)), splits=["val"] * 3 + [None] * 7))
    assert assignment.tolist() == ["val"] * 3 + ["train"] * 7


@pytest.mark.parametrize(
    "splits, says",
    [
        (["train"] * 4 + ["val"] * 4 + [None] * 2, "2 of 10 images have no split while others have: 0008.png"),
        (["train"] * 4 + [None] * 6, "6 of 10"),
        (["test"] * 10, "train and val split is empty"),
        (["val"] * 5 + ["test"] * 5, "train split is empty"),
    ],
)
def test_incomplete_splits_are_refused(splits, says):
    with pytest.raises(DataError, match=says):
        assign_splits(dataset_index_of(np.ones((10, 1)), splits=splits))


def test_too_few_patients():
    with pytest.raises(DataError, match="val split is empty"):
        assign_splits(dataset_index_of(np.ones((10, 1)), patients=[1] * 10))
    with pytest.raises(DataError, match="no images"):
        assign_splits(dataset_index_of(np.ones((0, 1))))


def test_patient_in_two_splits(caplog):
    patients = ["p1", "p1", "p2", "p3", "p3", "p4"]
    dataset_index = dataset_index_of(np.ones((6, 1)), patients, ["train", "val", "train", "val", "test", "train"])
    with pytest.raises(DataError) as error:
        assign_splits(dataset_index)
    for words in ("2 patients", "train and val share 1", "val and test share 1", "p1, p3", "allow_patient_overlap"):
        assert words in str(error.value)
    assignment = assign_splits(dataset_index, allow_patient_overlap=True)
    assert patient_overlap(dataset_index, assignment) == {("train", "val"): ["p1"], ("val", "test"): ["p3"]}
    assert "2 patients stand in more than one split" in caplog.text


# ---- the file


def test_split_file_round_trip(tmp_path):
    dataset_index = random_dataset_index(300)
    assignment = assign_splits(dataset_index)
    digest = write_split(tmp_path / "split.csv", dataset_index, assignment)
    np.testing.assert_array_equal(read_split(tmp_path / "split.csv", dataset_index), assignment)
    text = (tmp_path / "split.csv").read_text()
    body, last = text[: text.rindex("#")], text.splitlines()[-1]
    assert last == f"# sha256: {digest}" == f"# sha256: {hashlib.sha256(body.encode()).hexdigest()}"
    assert digest == split_hash(dataset_index, assignment)
    assert next(csv.reader(body.splitlines())) == ["image", "patient_id", "split"]
    assert [path.name for path in tmp_path.iterdir()] == ["split.csv"]
    order = np.random.default_rng(0).permutation(300)
    shuffled = dataclasses.replace(dataset_index, studies=tuple(dataset_index.studies[index] for index in order))
    np.testing.assert_array_equal(read_split(tmp_path / "split.csv", shuffled), assignment[order])
    assert split_hash(shuffled, assignment[order]) == digest
    other = np.where(np.arange(300) == 5, "test", assignment)
    assert split_hash(dataset_index, other) != digest or assignment[5] == "test"


def test_split_file_with_awkward_names(tmp_path):
    studies = tuple(
        Study(name, {IMAGE: name}, np.ones(1, np.float32), "p,1")
        for name in ('a,"b".png', "# sha256: x", "new\nline", "胸.png")
    )
    dataset_index = DatasetIndex(("c",), studies, no_images)
    assignment = np.array(["train", "val", "test", "train"])
    write_split(tmp_path / "split.csv", dataset_index, assignment)
    np.testing.assert_array_equal(read_split(tmp_path / "split.csv", dataset_index), assignment)


FORMULAS = ["=1+1|x", "'=x", "''-y", "@cmd", "\t=z", "+a", "-5", "p'", "心"]


def with_patients(names):
    studies = tuple(
        Study(f"{n}.png", {IMAGE: f"{n}.png"}, np.ones(1, np.float32), name) for n, name in enumerate(names)
    )
    return DatasetIndex(("c",), studies, no_images)


def test_a_split_file_is_safe_in_a_spreadsheet(tmp_path):
    """Cells that would be formulas are texts there, come back as they were, and leave the hash what it was."""
    index, path = with_patients(FORMULAS), tmp_path / "split.csv"
    assignment = np.array(["train", "val", "test"] * 3)
    assert write_split(path, index, assignment) == split_hash(index, assignment)
    text = path.read_text("utf-8")
    assert text.startswith("\ufeff"), "without it Excel does not read 心"
    cells = [row[1] for row in csv.reader(text.splitlines()[1:-1])]
    assert not any(cell.startswith(("=", "+", "@")) for cell in cells)
    np.testing.assert_array_equal(read_split(path, index), assignment)
    assert images_and_patients(path, "train")[1] == {FORMULAS[0], FORMULAS[3], FORMULAS[6]}


def test_split_files_of_before_are_read(tmp_path):
    """They have the cells as they are, and the hash of that."""
    index, path = with_patients(FORMULAS), tmp_path / "split.csv"
    assignment = np.array(["train", "val", "test"] * 3)
    text = io.StringIO(newline="")
    rows = zip([study.name for study in index.studies], FORMULAS, assignment.tolist())
    csv.writer(text, lineterminator="\n").writerows([("image", "patient_id", "split"), *rows])
    digest = hashlib.sha256(text.getvalue().encode()).hexdigest()
    path.write_text(f"{text.getvalue()}# sha256: {digest}\n", "utf-8", newline="")
    np.testing.assert_array_equal(read_split(path, index), assignment)
    assert digest == split_hash(index, assignment)


def test_damaged_split_files(tmp_path):
    dataset_index = random_dataset_index(30)
    path = tmp_path / "split.csv"
    write_split(path, dataset_index, assign_splits(dataset_index))
    whole = path.read_text()
    for damaged in (whole.replace("train", "test", 1), whole[:-30], whole[:200], "", whole.replace("sha256", "sha1")):
        path.write_text(damaged)
        with pytest.raises(DataError, match="damaged or was edited"):
            read_split(path, dataset_index)
    body = "image,split\n0000.png,train\n"
    path.write_text(f"{body}# sha256: {hashlib.sha256(body.encode()).hexdigest()}\n")
    with pytest.raises(DataError, match="not a split file"):
        read_split(path, dataset_index)
    with pytest.raises(DataError, match="cannot read"):
        read_split(tmp_path / "none.csv", dataset_index)


def test_split_of_other_images(tmp_path):
    dataset_index = random_dataset_index(30)
    write_split(tmp_path / "split.csv", dataset_index, assign_splits(dataset_index))
    fewer = dataclasses.replace(dataset_index, studies=dataset_index.studies[:25])
    with pytest.raises(DataError, match=r"5 of its 30 are not in the data \(0025\.png"):
        read_split(tmp_path / "split.csv", fewer)
    write_split(tmp_path / "fewer.csv", fewer, assign_splits(fewer))
    with pytest.raises(DataError, match="5 of the data's 30 are not in it"):
        read_split(tmp_path / "fewer.csv", dataset_index)
    moved = tuple(dataclasses.replace(study, patient_id="x") for study in dataset_index.studies)
    with pytest.raises(DataError, match="another patient for 30 images"):
        read_split(tmp_path / "split.csv", dataclasses.replace(dataset_index, studies=moved))


# ---- the real ones


@needs_data
def test_leaky_split_stops_with_the_patients_named():
    dataset_index = open_source(SHARED / "nih_leaky64")
    with pytest.raises(DataError) as error:
        assign_splits(dataset_index)
    for words in ("train and val share 15", "train and test share 8", "val and test share 9", "nih00116"):
        assert words in str(error.value)
    assignment = assign_splits(dataset_index, allow_patient_overlap=True)
    assert Counter(assignment.tolist()) == {"train": 600, "val": 200, "test": 200}
    without = tuple(dataclasses.replace(study, split=None) for study in dataset_index.studies)
    drawn = dataclasses.replace(dataset_index, studies=without)
    assert not patient_overlap(drawn, assign_splits(drawn))


@needs_data
def test_nih_sample_keeps_its_split():
    dataset_index = open_source(SHARED / "nih_sample")
    assert Counter(assign_splits(dataset_index).tolist()) == {"train": 1099, "val": 265}


@pytest.fixture(scope="module")
def chestxray14(tmp_path_factory) -> DatasetIndex:
    """NIH's own tables and lists over 112,120 empty files in its twelve folders."""
    root = tmp_path_factory.mktemp("chestxray14")
    for name in ("Data_Entry_2017_v2020.csv.gz", "train_val_list.txt.gz", "test_list.txt.gz"):
        (root / name).write_bytes((SHARED / "nih_tables" / name).read_bytes())
    folders = [root / f"images_{number:03d}" / "images" for number in range(1, 13)]
    for folder in folders:
        folder.mkdir(parents=True)
    with gzip.open(root / "Data_Entry_2017_v2020.csv.gz", "rt") as file:
        next(file)
        for number, line in enumerate(file):
            path = f"{folders[number % 12]}/{line.partition(',')[0]}"
            os.close(os.open(path, os.O_CREAT))
    return open_source(root)


@pytest.mark.slow
@needs_data
def test_official_lists(chestxray14):
    assert len(chestxray14.studies) == 112_120 and not chestxray14.notes
    assert Counter(study.split for study in chestxray14.studies) == {None: 86_524, "test": 25_596}
    assert len({study.patient_id for study in chestxray14.studies}) == 30_805
    assignment = assign_splits(chestxray14)
    official = np.array([study.split == "test" for study in chestxray14.studies])
    np.testing.assert_array_equal(assignment == "test", official)
    assert not patient_overlap(chestxray14, assignment)
    labels = chestxray14.label_matrix()
    val, pool = labels[assignment == "val"], labels[~official]
    assert len(val) / len(pool) == pytest.approx(0.15 / 0.85, abs=0.001)
    np.testing.assert_allclose(val.mean(0), pool.mean(0), rtol=0.05)


@pytest.mark.slow
@needs_data
def test_drawing_from_all_of_nih(chestxray14, tmp_path):
    studies = tuple(dataclasses.replace(study, split=None) for study in chestxray14.studies)
    dataset_index = dataclasses.replace(chestxray14, studies=studies)
    assignment = assign_splits(dataset_index, seed=3)
    labels = dataset_index.label_matrix()
    for split, fraction in zip(("train", "val", "test"), (0.7, 0.15, 0.15)):
        assert (assignment == split).mean() == pytest.approx(fraction, abs=0.001)
        np.testing.assert_allclose(labels[assignment == split].mean(0), labels.mean(0), rtol=0.08)
    write_split(tmp_path / "split.csv", dataset_index, assignment)
    np.testing.assert_array_equal(read_split(tmp_path / "split.csv", dataset_index), assignment)


# ---- the split of another run


def test_a_new_run_may_take_the_split_of_another_with_images_that_are_in_none(tmp_path):
    index = random_dataset_index(60)
    split = assign_splits(index)
    split[split == "test"] = ""
    write_split(tmp_path / "split.csv", index, split)
    assert (split_of_file(tmp_path / "split.csv", index) == split).all()
    assert patient_overlap(index, split) == {}
    assert images_and_patients(tmp_path / "split.csv", "test") == (frozenset(), frozenset())


def test_a_split_file_is_checked_as_a_drawn_split_is(tmp_path, caplog):
    index, path = dataset_index_of(np.eye(3), [1, 1, 2]), tmp_path / "split.csv"
    write_split(path, index, np.array(["train", "val", "train"]))
    with pytest.raises(DataError, match="1 patients stand in more than one split"):
        split_of_file(path, index)
    assert split_of_file(path, index, allow_patient_overlap=True).tolist() == ["train", "val", "train"]
    assert "scores are flattered" in caplog.text
    write_split(path, index, np.array(["train", "train", "train"]))
    with pytest.raises(DataError, match=r"DATA.split_file: the val split is empty"):
        split_of_file(path, index)
    with pytest.raises(DataError, match=r"DATA.split_file: .*nowhere"):
        split_of_file(tmp_path / "nowhere.csv", index)
    with pytest.raises(DataError, match=r"DATA.split_file: .*is the split of other images"):
        split_of_file(path, dataset_index_of(np.eye(2)))
