"""The patient bootstrap: draws, and their independence of how they are computed."""

import math

import numpy as np
import pytest

import evaluation.bootstrap as module
from evaluation.bootstrap import bootstrap, draw_weights
from evaluation.figure_table import ALL, drawn_figures, figure_table
from evaluation.scored_split import BootstrapSettings, ScoredSplit
from evaluation.weighted import RankingFigures
from tests.evaluation.samples import made_up
from utils.metrics import auroc

THRESHOLDS = np.full(4, 0.5)


def all_draws(scored, **settings):
    parts = bootstrap(drawn_figures(scored, THRESHOLDS), scored.cluster_count, BootstrapSettings(**settings))
    return {name: values for part in parts for name, values in part.items()}


def test_a_draw_takes_as_many_patients_as_there_are():
    weights = draw_weights(50, 0, 400, 7)
    assert (weights.sum(axis=0) == 50).all()
    assert len({tuple(column) for column in weights.T}) == 400
    # Var of a multinomial count: 1 - 1/G.
    assert weights.var() == pytest.approx(0.98, abs=0.05)


def test_draws_depend_on_seed_and_number_only(monkeypatch):
    scored = made_up(1)
    expected = all_draws(scored, draws=150, threads=1, seed=3)
    assert expected["auroc"].shape == (4, 150)
    for block, threads, draws in ((32, 3, 150), (7, 1, 150), (64, 2, 150), (32, 2, 40)):
        monkeypatch.setattr(module, "BLOCK", block)
        found = all_draws(scored, draws=draws, threads=threads, seed=3)
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values[:, :draws], err_msg=f"{name}, blocks of {block}")
    assert (all_draws(scored, draws=150, seed=4)["auroc"] != expected["auroc"]).any()


def test_figures_of_one_call_share_their_draws():
    scored = made_up(2)
    first, second = bootstrap([RankingFigures(scored)] * 2, scored.cluster_count, BootstrapSettings(draws=50))
    np.testing.assert_array_equal(first["auroc"], second["auroc"])


def test_draws_equal_a_plain_loop_over_repeated_images():
    scored = made_up(3)
    found = all_draws(scored, draws=40, seed=9)["auroc"]
    for draw in range(40):
        taken = np.random.default_rng((9, draw)).integers(0, scored.cluster_count, scored.cluster_count)
        for k in range(4):
            p, y, patients = scored.known(k)
            rows = np.concatenate([np.flatnonzero(patients == one) for one in taken])
            assert found[k, draw] == pytest.approx(auroc(p[rows], y[rows]), abs=1e-14)


def test_order_of_images_does_not_matter():
    scored = made_up(4)
    order = np.random.default_rng(0).permutation(len(scored.patients))
    shuffled = ScoredSplit(
        scored.probabilities[order],
        scored.targets[order],
        scored.mask[order],
        [scored.patients[i] for i in order],
        scored.class_names,
    )
    ours, theirs = all_draws(scored, draws=30), all_draws(shuffled, draws=30)
    for name in ALL:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("values", [{"draws": 0}, {"seed": -1}, {"level": 1.0}, {"threads": 0}])
def test_settings_that_cannot_be_are_refused(values):
    with pytest.raises(ValueError, match="a bootstrap needs"):
        BootstrapSettings(**values)


def test_means_leave_out_classes_that_are_undefined():
    scored = made_up(6, images=60, patients=30)
    targets = scored.targets.copy()
    targets[:, 1] = 0
    targets[:, 2] = 0
    row = int(np.flatnonzero(scored.mask[:, 2])[0])
    targets[row, 2] = 1
    rare = ScoredSplit(scored.probabilities, targets, scored.mask, scored.patients, scored.class_names)
    settings = BootstrapSettings(draws=300)
    drawn = bootstrap(drawn_figures(rare, THRESHOLDS), rare.cluster_count, settings)
    table = figure_table(rare, THRESHOLDS, drawn, settings)
    assert table.defined.tolist() == [True, False, True, True]
    assert table.mean("auroc").value == pytest.approx(np.mean(table.values["auroc"][[0, 2, 3]]), abs=1e-15)
    draws = table.draws["auroc"]
    missing = np.isnan(draws[2])
    assert 60 < missing.sum() < 170 and table.undefined_draws(2)["auroc"] == missing.sum()
    # The one positive comes from one patient: no interval; specificity rests on the others.
    assert math.isnan(table.interval("auroc", 2).low) and not math.isnan(table.interval("specificity", 2).low)
    assert table.no_interval(ALL, 2)["auroc"] == "fewer than 2 patients with positives"
    assert math.isnan(table.interval("auroc", 1).value) and "auroc" not in table.no_interval(ALL, 1)
    assert table.mean("auroc").defined
