"""Shapley values: games with known answers, the shap package, and games that a network of a study would play."""

import math
from itertools import permutations

import numpy as np
import pytest

from configs.errors import ExplanationError
from explain.background import Background, StudyInputs
from explain.shapley import shapley_values


def linear_study(columns: int = 5, views: int = 0, rows: int = 60, seed: int = 0):
    """(StudyInputs without gaps, weights [F, 2], outputs w·x + 3 · views)."""
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(rows, columns)) * rng.uniform(0.5, 3, columns) + rng.normal(size=columns)
    weights = rng.normal(size=(columns, 2))
    background = Background.of_training(data, np.ones_like(data, bool))
    study = StudyInputs(rng.normal(size=columns), np.ones(columns, bool), np.ones(views, bool), background)

    def outputs(table, known, there):
        return np.where(known, table, 0) @ weights + 0.5 + 3.0 * there.sum(axis=1, keepdims=True)

    return study, weights, outputs


def curved(table, known, there):
    """A network with interactions, gaps and views; two outputs."""
    x = np.where(known, table, -0.3)
    bent = np.tanh(x[:, 0] * x[:, 1] + x[:, 3]) * x[:, 0] + x[:, 2] ** 2 * (x[:, 1] > 0) - 0.2 * known.sum(axis=1)
    seen = there.sum(axis=1) * (1 + x[:, 0])
    return np.stack([bent + seen, np.exp(-(x**2).sum(axis=1) / 5) - seen], axis=1)


def curved_study(columns: int = 5, views: int = 2, seed: int = 1) -> StudyInputs:
    rng = np.random.default_rng(seed)
    background = Background.of_training(rng.normal(size=(40, columns)), rng.random((40, columns)) < 0.8)
    return StudyInputs(rng.normal(size=columns), np.ones(columns, bool), np.ones(views, bool), background)


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


def test_value_is_the_mean_over_training_rows_one_by_one():
    study = curved_study(3, 2)
    study = StudyInputs(study.table, np.array([True, True, False]), np.array([True, False]), study.background)

    def outputs(table, known, there):
        return curved(*(np.concatenate([part, part[:, :1]], axis=1) for part in (table, known)), there)

    for coalition in np.array(np.meshgrid(*[[False, True]] * 5)).reshape(5, -1).T:
        expected = []
        for row, gaps in zip(study.background.rows, study.background.known):
            table, known = study.table.copy(), study.known.copy()
            for j in range(2):
                if not coalition[j]:
                    table[j], known[j] = row[j], gaps[j]
            there = coalition[3:] & [True, False]
            expected.append(outputs(table[None], known[None], there[None])[0])
        found = study.value(outputs)(coalition[None])[0]
        np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=1e-12)


def test_a_value_that_only_gaps_differ_from_plays():
    known = np.array([[True], [False], [True]])
    study = StudyInputs(
        np.zeros(1), np.ones(1, bool), np.zeros(0, bool), Background.of_training(np.ones((3, 1)) * 0, known)
    )
    found = shapley_values(study.value(lambda table, known, there: 3.0 * known), study.playing)
    assert found.values[0, 0] == pytest.approx(1), "known in this study, in two of three otherwise"


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


def test_without_columns_that_vary_one_row_is_enough():
    study = StudyInputs(
        np.zeros(0), np.zeros(0, bool), np.ones(2, bool), Background(np.zeros((100, 0)), np.zeros((100, 0), bool))
    )
    sizes = []

    def outputs(table, known, there):
        sizes.append(len(table))
        return there @ np.array([[1.0], [2.0]])

    assert shapley_values(study.value(outputs), study.playing).values[:, 0].tolist() == [1, 2]
    assert sum(sizes) == 4


def test_rows_are_computed_in_parts_of_limited_size():
    study, _, outputs = linear_study(12, rows=100)
    sizes = []

    def counted(table, known, there):
        sizes.append(len(table))
        return outputs(table, known, there)

    shapley_values(study.value(counted), study.playing)
    assert sum(sizes) == 4096 * 100 and max(sizes) <= 8192


def test_background_is_drawn_from_training_rows():
    rows, known = np.arange(500.0)[:, None], np.ones((500, 1), bool)
    known[7] = False
    drawn = Background.of_training(rows, known, seed=1)
    assert len(drawn.rows) == 100 and len(np.unique(drawn.rows)) == 100
    assert (Background.of_training(rows, known, seed=1).rows == drawn.rows).all()
    assert (Background.of_training(rows, known, seed=2).rows != drawn.rows).any()
    assert Background.of_training(rows[:8], known[:8]).rows[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 0]
    with pytest.raises(ValueError, match="rows"):
        Background.of_training(rows[:0], known[:0])


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
