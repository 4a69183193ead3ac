"""The data of a cross-validation: which studies are folded, what is said of them, written and read back."""

from pathlib import Path

import numpy as np
import pytest

from configs.default_config import Config
from configs.errors import DataError
from data.builder import open_data, split_data
from data.fold_plan import draw_plan, read_plan
from data.phantom.radiographs import write_phantom
from data.splits.assignment import write_split
from utils.runs.cross_validation import CrossValidation


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "images"
    write_phantom(folder, 60, 64)
    return folder


def config_of(data: Path, *more: str) -> Config:
    return Config.from_overrides([f"DATA.data_dir={data}", *more])


def test_without_a_split_in_the_data_all_are_folded_and_nothing_is_a_test(data):
    plan = draw_plan(config_of(data), 3, "all", True)
    assert (plan.folds.held >= 0).all() and not plan.has_test and not plan.optimistic


def test_the_parts_of_the_split_that_training_would_use(data):
    config = config_of(data)
    index = open_data(config)
    split = split_data(config, index)
    train = draw_plan(config, 3, "train", True)
    assert (train.folds.together == split).all() and ((train.folds.held >= 0) == (split == "train")).all()
    both = draw_plan(config, 3, "train+val", True)
    assert ((both.folds.held >= 0) == (split != "test")).all() and both.has_test
    one = draw_plan(config, 1, "all", True)
    assert (one.folds.runs[0] == split).all() and not one.has_test


def test_a_split_file_is_a_split_that_is_named(data, tmp_path):
    index = open_data(config_of(data))
    split = split_data(config_of(data, "TRAIN.seed=5"), index)
    write_split(tmp_path / "split.csv", index, split)
    plan = draw_plan(config_of(data, f"DATA.split_file={tmp_path / 'split.csv'}"), 3, "all", True)
    assert plan.has_test and ((plan.folds.together == "test") == (split == "test")).all()


def test_what_was_written_is_read_back_whatever_would_be_drawn_now(data, tmp_path):
    plan = draw_plan(config_of(data), 3, "train+val", True)
    plan.write(tmp_path)
    record = CrossValidation(3, 0, (0,), "inner", "train+val", plan.labels_sha256)
    again = read_plan(config_of(data, "TRAIN.seed=9"), tmp_path, record)
    assert (again.folds.held == plan.folds.held).all() and again.notes == plan.notes
    assert (again.folds.together == plan.folds.together).all()
    other = CrossValidation(3, 0, (0,), "inner", "train+val", "0" * 64)
    assert any("labels have changed" in note for note in read_plan(config_of(data), tmp_path, other).notes)
    (tmp_path / "splits" / "fold1.csv").write_text("image,patient_id,split\n")
    with pytest.raises(DataError, match="damaged"):
        read_plan(config_of(data), tmp_path, record)


def test_weights_that_may_know_what_is_held_out_are_named(data, tmp_path):
    index = open_data(config_of(data))
    write_split(tmp_path / "split.csv", index, split_data(config_of(data), index))
    trained = draw_plan(config_of(data, f"MODEL.init_from={tmp_path / 'best_model.pth'}"), 3, "all", True)
    assert any("MODEL.init_from" in note and "was trained on" in note for note in trained.notes)
    unknown = draw_plan(config_of(data, f"LOSS.teacher={tmp_path / 'other' / 'model.pth'}"), 3, "all", True)
    assert any("LOSS.teacher" in note and "does not say" in note for note in unknown.notes)
    write_split(tmp_path / "split.csv", index, np.full(60, ""))
    elsewhere = draw_plan(config_of(data, f"MODEL.init_from={tmp_path / 'best_model.pth'}"), 3, "all", True)
    assert not any("MODEL.init_from" in note for note in elsewhere.notes)


def test_the_simpler_scheme_says_that_it_is_optimistic(data):
    plan = draw_plan(config_of(data), 3, "all", False)
    assert plan.optimistic and plan.notes[0].startswith("Optimistic")
    one = draw_plan(config_of(data, "DATA.train_split=0.8", "DATA.val_split=0.2", "DATA.test_split=0"), 1, "all", True)
    assert one.optimistic and "there is no test part" in one.notes[0]


def test_identical_images_in_several_folds_are_named(data, tmp_path):
    import shutil

    copied = Path(shutil.copytree(data, tmp_path / "images"))
    rows = (copied / "labels.csv").read_text().splitlines()
    first = next(row for row in rows[1:] if ",p00000," in row)
    last = max(row.split(",")[2] for row in rows[1:])
    (copied / "again.png").write_bytes((copied / first.split(",")[0]).read_bytes())
    cells = first.split(",")
    rows += [",".join(["again.png", *cells[1:2], last, *cells[3:]])]
    (copied / "labels.csv").write_text("\n".join(rows))
    notes = [draw_plan(config_of(copied, f"TRAIN.seed={seed}"), 9, "all", False).notes for seed in range(3)]
    assert any("stand in several folds under several names" in note for one in notes for note in one)
