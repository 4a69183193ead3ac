"""Shapley values: games with known answers, the shap package, and games that a network of a study would play."""

import math
from itertools import permutations

import numpy as np
import pytest

from configs.errors import ExplanationError
from explain.background import Background, StudyInputs
from explain.shapley import shapley_values
from tests.explain.studies import curved, curved_study, linear_study


def by_orders(value, players: int) -> np.ndarray:
    """The definition: the mean gain over all orders."""
    orders = list(permutations(range(players)))
    phi = 0.0
    for order in orders:
        members = np.zeros((players + 1, players), bool)
        for step, i in enumerate(order):
            members[step + 1 :, i] = True
        gains = np.diff(value(members), axis=0)
        phi = phi + gains[np.argsort(order)]
    return phi / len(orders)


def test_definition_with_interactions_gaps_and_views():
    study = curved_study(4, 2)
    found = shapley_values(study.value(curved), study.playing)
    np.testing.assert_allclose(found.values, by_orders(study.value(curved), 6), atol=1e-12)
    assert found.exact and not found.standard_error.any()


@pytest.mark.parametrize("columns", [3, 12, 16])
def test_linear_network_exact_and_sampled(columns):
    study, weights, outputs = linear_study(columns)
    found = shapley_values(study.value(outputs), study.playing, permutations=4)
    expected = weights * (study.table - study.background.rows.mean(axis=0))[:, None]
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert found.exact == (columns <= 12)
    np.testing.assert_allclose(found.base, study.background.rows.mean(axis=0) @ weights + 0.5, atol=1e-9)


@pytest.mark.parametrize("max_exact", [12, 0], ids=["exact", "sampled"])
def test_additive(max_exact):
    for seed in range(5):
        study = curved_study(seed=seed)
        found = shapley_values(study.value(curved), study.playing, permutations=4, max_exact=max_exact)
        whole = curved(study.table[None], study.known[None], study.views[None])[0]
        np.testing.assert_allclose(found.output, whole, atol=1e-12)
        np.testing.assert_allclose(found.values.sum(axis=0), whole - found.base, atol=1e-9)
        assert found.additivity_error <= 1e-9


@pytest.mark.parametrize("max_exact", [12, 0], ids=["exact", "sampled"])
def test_who_cannot_change_anything_has_exactly_0(max_exact):
    rng = np.random.default_rng(3)
    rows, known = rng.normal(size=(30, 6)), rng.random((30, 6)) < 0.9
    rows[:, 2], known[:, 2] = 1.5, True
    table, there = rng.normal(size=6), np.array([True] * 6)
    table[2], there[3] = 1.5, False  # column 2 is constant, column 3 missing, column 4 read by nobody, view 1 absent
    table[3] = np.nan
    study = StudyInputs(table, there, np.array([True, False]), Background.of_training(rows, known))

    def outputs(table, known, there):
        assert np.isfinite(table).all() and not known[:, 3].any() and not there[:, 1].any()
        x = np.where(known, table, 0.0)
        return (np.sin(x[:, 0] + x[:, 2]) * x[:, 1] + x[:, 5] * there[:, 0] + x[:, 3])[:, None]

    assert study.playing.tolist() == [True, True, False, False, True, True, True, False]
    found = shapley_values(study.value(outputs), study.playing, max_exact=max_exact)
    assert (found.values[[2, 3, 4, 7]] == 0).all() and (found.standard_error[[2, 3, 4, 7]] == 0).all()
    assert (np.abs(found.values[[0, 1, 5, 6]]) > 1e-3).all()


def test_twins_share_alike():
    def twins(table, known, there):
        return (np.tanh(table[:, 0] + table[:, 1]) * table[:, 2])[:, None]

    rows = np.random.default_rng(0).normal(size=(50, 3))
    rows[:, 1] = rows[:, 0]
    study = StudyInputs(
        np.array([0.7, 0.7, -1.0]),
        np.ones(3, bool),
        np.zeros(0, bool),
        Background.of_training(rows, np.ones_like(rows, bool)),
    )
    values = shapley_values(study.value(twins), study.playing).values
    assert abs(values[0, 0] - values[1, 0]) <= 1e-12 and abs(values[0, 0]) > 0.01


def test_sampling_is_unbiased_and_knows_its_error():
    study = curved_study(6, 2, seed=4)
    value = study.value(curved)
    exact = shapley_values(value, study.playing).values
    runs = [shapley_values(value, study.playing, permutations=20, seed=s, max_exact=0) for s in range(200)]
    sampled = np.stack([run.values for run in runs])
    scatter = sampled.std(axis=0, ddof=1)
    z = (sampled.mean(axis=0) - exact) / np.maximum(scatter / math.sqrt(len(runs)), 1e-12)
    assert (scatter > 1e-3).any() and np.abs(z).max() < 4.2, "16 figures: beyond 4.2 once in 2,000 times"
    stated = np.sqrt(np.mean([run.standard_error**2 for run in runs], axis=0))
    uneven = scatter > 1e-9  # effects of pairs of players are exact in each pair of orders
    assert uneven.sum() >= 8 and stated[~uneven].max(initial=0) < 1e-12
    np.testing.assert_allclose(stated[uneven], scatter[uneven], rtol=0.25)
    one = shapley_values(value, study.playing, permutations=300, max_exact=0)
    again = shapley_values(value, study.playing, permutations=300, max_exact=0)
    assert np.abs(one.values - exact).max() <= 0.03 and (one.values == again.values).all()
    assert (shapley_values(value, study.playing, permutations=300, seed=1, max_exact=0).values != one.values).any()


def test_nobody_plays():
    study = StudyInputs(
        np.zeros(2), np.zeros(2, bool), np.zeros(1, bool), Background(np.zeros((3, 2)), np.ones((3, 2), bool))
    )
    found = shapley_values(study.value(lambda table, known, there: np.full((len(table), 3), 7.0)), study.playing)
    assert found.values.shape == (3, 3) and not found.values.any() and (found.base == 7).all()


def test_what_cannot_be_attributed_is_refused():
    study, _, outputs = linear_study(3)

    def infinite(table, known, there):
        return np.full((len(table), 1), np.inf)

    with pytest.raises(ExplanationError, match="not finite for 8 of 8"):
        shapley_values(study.value(infinite), study.playing)
    with pytest.raises(ValueError, match=r"\[8, K\]"):
        shapley_values(lambda coalitions: np.zeros(len(coalitions)), np.ones(3, bool))
    for count in (0, 2, 5):
        with pytest.raises(ValueError, match="even number"):
            shapley_values(study.value(outputs), study.playing, permutations=count, max_exact=2)
    with pytest.raises(ValueError, match="a study of 2 columns"):
        StudyInputs(np.zeros(2), np.ones(2, bool), np.zeros(0, bool), study.background)


@pytest.mark.parametrize("name", ["ExactExplainer", "KernelExplainer"])
def test_shap_package_finds_the_same(name):
    shap = pytest.importorskip("shap", reason="shap is not installed: tests/requirements.txt")
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(20, 6))
    background = Background.of_training(rows, np.ones_like(rows, bool))
    table = rng.normal(size=6)

    def network(x):
        return curved(x, np.ones_like(x, bool), np.zeros((len(x), 0), bool))

    study = StudyInputs(table, np.ones(6, bool), np.zeros(0, bool), background)
    found = shapley_values(study.value(curved), study.playing)
    if name == "ExactExplainer":
        theirs = shap.ExactExplainer(network, shap.maskers.Independent(rows, max_samples=100))(table[None]).values[0]
    else:
        theirs = shap.KernelExplainer(network, rows).shap_values(table, nsamples=2**6 - 2, l1_reg=False, silent=True)
    np.testing.assert_allclose(found.values, theirs, atol=1e-6)
