"""The folder of a cross-validation: its record, its runs and where they stand, the settings of each."""

import json

import pytest

from configs.default_config import Config
from configs.differences import differences
from configs.errors import CheckpointError
from utils.runs.cross_validation import (
    CrossValidation,
    Member,
    changed_settings,
    find_cross_validation,
    model_files,
    resumable,
    settings_of,
    split_path,
    standing,
)
from utils.runs.files import BEST, CONFIG, CROSS_VALIDATION, LAST, LOCK, LOG, STATUS

RECORD = CrossValidation(2, 0, (3, 4), "inner", "all", "0" * 64)
STATES = {"step": 1, "total_steps": 1, "epoch": 1, "epochs": 1, "eta_seconds": None, "pid": 1, "host": "elsewhere"}


def finish(run, phase="finished"):
    run.mkdir(parents=True, exist_ok=True)
    status = {"phase": phase, **STATES, "started": "2026-01-01", "updated": "2026-01-01"}
    (run / STATUS).write_text(json.dumps(status))
    (run / BEST).write_bytes(b"")


def test_the_runs_of_the_first_seed_are_called_by_their_fold_alone():
    names = [(one.run, one.fold, one.seed) for one in RECORD.members]
    assert names == [("fold0", 0, 3), ("fold1", 1, 3), ("fold0-seed4", 0, 4), ("fold1-seed4", 1, 4)]


def test_the_record_is_read_as_it_was_written(tmp_path):
    RECORD.write(tmp_path)
    assert CrossValidation.read(tmp_path) == RECORD
    with pytest.raises(CheckpointError, match="cannot read"):
        CrossValidation.read(tmp_path / "elsewhere")


@pytest.mark.parametrize("change", [{"folds": 0}, {"seeds": []}, {"seeds": [1, 1]}, {"part": "some"}, {"folds": "two"}])
def test_a_record_that_says_what_cannot_be_is_damaged(tmp_path, change):
    RECORD.write(tmp_path)
    path = tmp_path / CROSS_VALIDATION
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match="is damaged"):
        CrossValidation.read(tmp_path)


def test_the_newest_is_found_among_runs_that_are_none(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONFIG).write_text("")
    with pytest.raises(CheckpointError, match="there is no cross-validation in"):
        find_cross_validation("", str(tmp_path))
    (tmp_path / "cv").mkdir()
    RECORD.write(tmp_path / "cv")
    assert (
        find_cross_validation("", str(tmp_path)) == find_cross_validation(str(tmp_path / "cv"), "") == tmp_path / "cv"
    )
    with pytest.raises(CheckpointError, match="is no folder of a cross-validation"):
        find_cross_validation(str(tmp_path / "run"), "")


def test_models_are_those_of_all_runs_once_each_is_finished(tmp_path):
    RECORD.write(tmp_path)
    for member in RECORD.members[:3]:
        finish(tmp_path / member.run)
    finish(tmp_path / "fold1", "failed")
    with pytest.raises(CheckpointError, match=r"is not finished: fold1 \(failed\), fold1-seed4 \(not begun\); go on"):
        model_files(tmp_path)
    for member in RECORD.members:
        finish(tmp_path / member.run)
    assert model_files(tmp_path) == [tmp_path / member.run / BEST for member in RECORD.members]
    assert model_files(tmp_path / "fold0") == [tmp_path / "fold0" / BEST]


def test_a_run_that_was_killed_before_its_config_begins_anew(tmp_path):
    run = tmp_path / "fold0"
    assert standing(run) == "not begun"
    run.mkdir()
    for name in (LOCK, STATUS, LOG):
        (run / name).write_text("")
    assert not resumable(run) and [path.name for path in run.iterdir()] == [LOCK]
    (run / CONFIG).write_text("")
    (run / LOG).write_text("")
    assert resumable(run) and (run / LOG).is_file()
    (run / CONFIG).unlink()
    (run / LAST).write_bytes(b"")
    assert resumable(run)


def test_a_run_has_the_settings_of_all_with_its_own_split_seed_and_place(tmp_path):
    given = Config.from_overrides(["TRAIN.mixed_precision=auto", "TRAIN.epochs=7", "LOGGING.log_dir=logs"])
    member = Member("fold1-seed4", 1, 4)
    config = settings_of(given, RECORD, member, tmp_path / "cv")
    assert (config.TRAIN.seed, config.TRAIN.epochs, config.TRAIN.mixed_precision) == (4, 7, "auto")
    assert config.DATA.split_file == str(split_path(tmp_path / "cv", 1))
    assert (config.CHECKPOINT.save_dir, config.LOGGING.run_name) == (str(tmp_path / "cv"), "fold1-seed4")
    assert config.LOGGING.log_dir == "logs/cv" and given.LOGGING.run_name is None


def test_what_the_first_run_has_timed_is_what_the_others_are_trained_with(tmp_path):
    chosen = Config.from_overrides(["TRAIN.mixed_precision=bf16", "TRAIN.channels_last=true"])
    (tmp_path / "fold0").mkdir()
    (tmp_path / "fold0" / CONFIG).write_text(chosen.to_yaml())
    given = Config.from_overrides(["TRAIN.mixed_precision=auto", "TRAIN.channels_last=false"])
    config = settings_of(given, RECORD, Member("fold1", 1, 3), tmp_path)
    assert (config.TRAIN.mixed_precision, config.TRAIN.channels_last) == ("bf16", False)


def test_a_resumed_run_takes_over_what_has_changed_and_keeps_the_rest():
    before, now = Config(), Config.from_overrides(["DATA.num_workers=1", "MODEL.gradient_checkpointing.enabled=true"])
    own = Config.from_overrides(["TRAIN.seed=9"])
    changed = differences(before.model_dump(mode="json"), now.model_dump(mode="json"))
    config = changed_settings(own, changed)
    assert (config.DATA.num_workers, config.TRAIN.seed) == (1, 9) and config.MODEL.gradient_checkpointing.enabled
