"""What changed in a run's data since it began: counted by images, splits and classes, or refused."""

import json
import math

import numpy as np
import pytest

from configs.errors import DataError
from data.splits.resumed_data import LabelRecord, check_source_split, tell_label_changes
from data.study import IMAGE, DatasetIndex, Study

NAN = math.nan
LABELS = [[1, 0], [0, 1], [-1, NAN], [0, 0]]
SPLIT = np.array(["train", "train", "val", "test"])


def index_of(labels, names=("Mass", "Nodule"), splits=(None,) * 4) -> DatasetIndex:
    studies = tuple(
        Study(f"{number}.png", {IMAGE: f"{number}.png"}, np.array(row, np.float32), split=split)
        for number, (row, split) in enumerate(zip(labels, splits, strict=True))
    )
    return DatasetIndex(names, studies, lambda row: np.zeros((2, 2), np.uint8))


@pytest.fixture
def begun(tmp_path):
    """(the record's path, the digest that checkpoints have) of a run that began with LABELS."""
    record, path = LabelRecord.of(index_of(LABELS)), tmp_path / "labels.json"
    path.write_text(record.to_json(), encoding="utf-8")
    return path, record.sha256


def test_a_record_says_every_code_and_is_read_again(begun):
    path, digest = begun
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["labels"]["codes"] == {"0.png": "10", "1.png": "01", "2.png": "u?", "3.png": "00"}
    assert LabelRecord.read(path).sha256 == digest == content["sha256"]


def test_the_digest_is_of_the_labels_and_not_of_their_order():
    same = DatasetIndex(("Mass", "Nodule"), index_of(LABELS).studies[::-1], lambda row: None)
    digest = LabelRecord.of(index_of(LABELS)).sha256
    assert LabelRecord.of(same).sha256 == digest
    others = [[[1, 0], [0, 1], [-1, 0], [0, 0]], [[1, 0], [0, 1], [0, NAN], [0, 0]]]
    assert digest not in {LabelRecord.of(index_of(labels)).sha256 for labels in others}
    assert digest != LabelRecord.of(index_of(LABELS, ("Nodule", "Mass"))).sha256


def test_labels_that_are_the_same_are_not_spoken_of(begun, caplog):
    caplog.set_level("INFO")
    tell_label_changes(*begun, index_of(LABELS), SPLIT)
    assert not caplog.records


def test_changed_labels_are_counted_by_split_and_class(begun, caplog):
    changed = [[1, 1], [0, 1], [0, NAN], [0, 1]]
    tell_label_changes(*begun, index_of(changed), SPLIT)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "3 of 4 images (train 1, val 1, test 1): 0.png, 2.png, 3.png" in record.message
    assert "Nodule 0 → 1 2 times, Mass u → 0 1 times" in record.message
    assert "best score so far was measured with the labels of before" in record.message


def test_of_training_labels_alone_the_best_score_still_holds(begun, caplog):
    tell_label_changes(*begun, index_of([[0, 0], *LABELS[1:]]), SPLIT)
    assert "1 of 4 images (train 1): 0.png; Mass 1 → 0" in caplog.text and "best score" not in caplog.text


def test_without_a_readable_record_it_is_told_that_they_changed(begun, caplog):
    path, digest = begun
    changed = index_of([[0, 0], *LABELS[1:]])
    path.write_text(path.read_text(encoding="utf-8").replace('"10"', '"11"'), encoding="utf-8")
    tell_label_changes(path, digest, changed, SPLIT)
    path.unlink()
    tell_label_changes(path, digest, changed, SPLIT)
    edited, gone = (record.message for record in caplog.records)
    assert "the labels have changed" in edited and "damaged or was edited" in edited
    assert "the labels have changed" in gone and "is not there" in gone


def test_labels_that_are_again_as_they_were_are_told_too(begun, caplog):
    """The checkpoint was trained after a change that has been taken back."""
    other = LabelRecord.of(index_of([[0, 0], *LABELS[1:]])).sha256
    tell_label_changes(begun[0], other, index_of(LABELS), SPLIT)
    assert "again those of its beginning" in caplog.text


@pytest.mark.parametrize("digest", [None, 7, ["x"]])
def test_a_checkpoint_of_before_says_that_it_does_not_know(begun, digest, caplog):
    caplog.set_level("INFO")
    tell_label_changes(begun[0], digest, index_of([[0, 0], *LABELS[1:]]), SPLIT)
    (record,) = caplog.records
    assert record.levelname == "INFO" and "does not say which labels" in record.message


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"labels": 3}', '{"sha256": "x", "labels": {"class_names": []}}', "[" * 9000]
)
def test_a_damaged_record_is_one_error(text, tmp_path):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(DataError, match=r"labels\.json' is damaged or was edited"):
        LabelRecord.read(tmp_path / "labels.json")


# ---- the split that the data name themselves


@pytest.mark.parametrize(
    "splits",
    [
        (None, None, None, None),
        ("train", "train", "val", "test"),
        ("train", "train", "train", "test"),  # no 'val' is named: it was drawn from 'train'
        (None, None, "val", None),
    ],
    ids=str,
)
def test_a_split_that_the_run_could_have_been_given_is_taken(splits, tmp_path):
    check_source_split(index_of(LABELS, splits=splits), SPLIT, tmp_path / "split.csv")


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        (("test", "train", "val", "test"), r"for 1 images: 0\.png \(train → test\)"),
        (("train", "train", "train", "val"), r"for 2 images: 2\.png \(val → train\), 3\.png \(test → val\)"),
        (("train", "train", "train", "train"), r"for 1 images: 3\.png \(test → train\)"),
    ],
    ids=str,
)
def test_a_split_that_was_changed_since_is_refused(splits, words, tmp_path):
    with pytest.raises(DataError, match=words):
        check_source_split(index_of(LABELS, splits=splits), SPLIT, tmp_path / "split.csv")
