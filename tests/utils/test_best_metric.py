"""Which figure decides about the best epoch, and that two scales are never compared."""

import math

import pytest

from configs.best_by import best_by_problems, settle_best_by
from configs.errors import ConfigError
from utils.best_metric import BestSoFar, best_row, figure_of, score_of, score_of_before, setting_of, title_of


def row(epoch, auroc, ap=0.5, loss=0.4, ring=0.7):
    classes = [{"name": "Disc", "auroc": None}, {"name": "Ring", "auroc": ring}]
    return {"epoch": epoch, "mean_auroc": auroc, "mean_average_precision": ap, "val_loss": loss, "per_class": classes}


@pytest.mark.parametrize(
    ("best_by", "figure", "score"),
    [
        ("mean_auroc", 0.8, 0.8),
        ("mean_average_precision", 0.5, 0.5),
        ("val_loss", 0.4, -0.4),
        ("Ring", 0.7, 0.7),
        ("Disc", None, -math.inf),
        ("no such class", None, -math.inf),
    ],
)
def test_a_figure_and_its_score(best_by, figure, score):
    assert figure_of(row(1, 0.8), best_by) == figure
    assert score_of(row(1, 0.8), best_by) == score


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "0.9", True])
def test_what_is_no_finite_number_is_undefined(value):
    assert score_of({"mean_auroc": value, "val_loss": 0.1}, "mean_auroc") == -math.inf


def test_an_epoch_without_the_figure_is_never_the_best_whatever_its_loss():
    history = [row(1, None, loss=-5.0), row(2, 0.6), row(3, None, loss=-9.0), row(4, 0.6)]
    assert best_row(history, "mean_auroc")["epoch"] == 2
    assert best_row(history, "val_loss")["epoch"] == 3
    assert best_row([row(1, None)], "mean_auroc") is None


def test_the_score_of_versions_before():
    assert score_of_before(row(1, 0.8)) == 0.8
    assert score_of_before(row(1, None, loss=0.3)) == -0.3


def test_what_is_null_becomes_the_auroc_or_the_loss():
    assert settle_best_by(None, ("a", "b"), (False, True)) == "mean_auroc"
    assert settle_best_by(None, ("a", "b"), (False, False)) == "val_loss"
    assert settle_best_by("b", ("a", "b"), (False, True)) == "b"
    assert settle_best_by("val_loss", ("a",), (False,)) == "val_loss"


@pytest.mark.parametrize("best_by", ["mean_auroc", "mean_average_precision", "a"])
def test_a_figure_that_is_undefined_is_refused(best_by):
    with pytest.raises(ConfigError, match=r"undefined.*val_loss"):
        settle_best_by(best_by, ("a", "b"), (False, best_by == "a"))


def test_an_unknown_name_is_named():
    assert best_by_problems(None, ("Ring",)) == best_by_problems("Ring", ("Ring",)) == []
    assert best_by_problems("anything", None) == []
    (problem,) = best_by_problems("ring", ("Disc", "Ring"))
    assert "did you mean 'Ring'?" in problem and "mean_auroc" in problem
    (problem,) = best_by_problems("mean_auc", ("Disc",))
    assert "did you mean 'mean_auroc'?" in problem


def test_the_best_so_far_is_in_the_figure_s_own_scale():
    assert BestSoFar.of("val_loss", 3, -0.25) == BestSoFar("val_loss", 4, 0.25)
    assert BestSoFar.of("Ring", -1, -math.inf) == BestSoFar("Ring", 0, None)


def test_the_setting_of_a_checkpoint_of_any_kind():
    assert setting_of({"CHECKPOINT": {"best_by": "Ring"}}) == "Ring"
    for other in (None, {}, {"CHECKPOINT": 3}, {"CHECKPOINT": {}}, {"CHECKPOINT": {"best_by": 4}}):
        assert setting_of(other) is None


def test_titles():
    assert title_of("Ring") == "AUROC of Ring" and title_of("val_loss") == "validation loss"
