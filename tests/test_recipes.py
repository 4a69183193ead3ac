"""Sampling and mixing in whole runs: a function of where training stands, and refused where they cannot be."""

import pytest

from tests.golden.data import write_classes, write_images
from tests.test_freezing import interrupted
from tests.training_runs import HARD, arguments, metrics_of, run_main, same_outcome

RUN = {
    **HARD,
    "TRAIN__epochs": 2,
    "TRAIN__batch_size": 8,
    "DATA__sampling": "balanced",
    "DATA__mixup": 0.4,
    "DATA__cutmix": 1.0,
    "LOSS__label_smoothing": 0.05,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "images"
    write_images(folder)
    return folder


def test_a_run_interrupted_in_an_epoch_goes_on_with_the_same_draws(data, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_main(arguments(data, tmp_path, "whole", DATA__augment_on="device", **RUN)) == 0
    with monkeypatch.context() as patch:
        interrupted(patch, 1)
        assert run_main(arguments(data, tmp_path, "parts", DATA__augment_on="device", **RUN)) == 130
    assert run_main(["--resume", parts, "--set", "DATA.num_workers=1"]) == 0
    same_outcome(whole, parts)
    log = (whole / "train.log").read_text()
    assert "probabilities are corrected to that of the training split; the draw shifts logits by Disc" in log, log


def test_exclusive_classes_with_weights_as_numbers_and_a_prior_that_is_left(tmp_path):
    write_classes(tmp_path / "data")
    options = {"DATA__sampling": "{Disc: 3}", "LOSS__class_weight": "[1, 2]", "LOSS__correct_prior": "false"}
    assert run_main(arguments(tmp_path / "data", tmp_path, "run", TRAIN__epochs=1, **options)) == 0
    log = (tmp_path / "run" / "train.log").read_text()
    assert "probabilities are of what is drawn, not corrected; the draw shifts logits by " in log
    assert "Disc +0." in log and "Bar -0." in log


@pytest.mark.slow
def test_a_hierarchical_model_learns_from_mixed_and_drawn_images(data, tmp_path):
    options = {**RUN, "MODEL__hierarchical": "true", "LOSS__consistency_weight": 0, "LOSS__type": "focal"}
    assert run_main(arguments(data, tmp_path, "run", **options)) == 0
    assert all(0 < row["train_loss"] < 5 for row in metrics_of(tmp_path / "run") if "train_loss" in row)


def test_a_dry_run_says_what_is_frozen_at_which_rates_and_what_is_drawn(data, tmp_path, capsys):
    options = {"TRAIN__freeze": "level_2", "TRAIN__backbone_learning_rate_factor": 0.1, "DATA__sampling": "balanced"}
    assert run_main([*arguments(data, tmp_path, "run", **options), "--dry-run"]) == 0
    said, warned = capsys.readouterr()
    assert "is frozen as it was drawn by chance" in warned  # MODEL.pretrained is false
    assert " blocks of the backbone are frozen" in said
    assert "learning rate 1e-05 (0.1 of 0.0001): " in said and "DATA.sampling: a study is drawn" in said
    assert not (tmp_path / "run").exists()


def test_a_class_that_there_is_not_ends_the_run_before_training(data, tmp_path, capsys):
    assert run_main(arguments(data, tmp_path, "run", DATA__sampling="{disc: 2}")) == 2
    assert "DATA.sampling: 'disc' is no class (Disc, Bar, Ring)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
