"""LIME: linear networks, whose slopes it must find, and the lime package on the same samples and on its own."""

import numpy as np
import pytest

from configs.errors import ExplanationError
from explain.background import Background, StudyInputs
from explain.lime import kernel, lime, perturbed, weighted_ridge

NO_CATEGORY = np.zeros(4, bool)


def study(seed: int = 0, views: int = 0) -> StudyInputs:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(80, 4))
    background = Background.of_training(rows, np.ones_like(rows, bool))
    return StudyInputs(rng.normal(size=4), np.ones(4, bool), np.ones(views, bool), background)


SLOPES = np.array([[1.0, -0.2], [-2.0, 0.7], [0.5, 3.0], [0.1, -1.0]])


def linear(table, known, there):
    return table @ SLOPES + there.sum(axis=1, keepdims=True) * 1.5 - 4


def test_linear_network():
    found = lime(linear, study(views=2), NO_CATEGORY)
    np.testing.assert_allclose(found.coefficients, np.concatenate([SLOPES, np.full((2, 2), 1.5)]), rtol=0.01)
    assert (found.r_squared >= 0.99).all() and (found.spread < 0.01).all()


def test_a_network_that_is_not_linear_says_so():
    def bumpy(table, known, there):
        return np.stack([np.cos(9 * table[:, 0]), table[:, 0] + np.cos(9 * table[:, 1])], axis=1)

    found = lime(bumpy, study(), NO_CATEGORY)
    assert found.r_squared[0] < 0.1 and 0.3 < found.r_squared[1] < 0.8
    assert (found.spread > 1e-3).all(), "seeds disagree"


def test_category_counts_as_the_studys_own_against_the_others():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 3, size=(90, 2)).astype(float)
    known = rng.random((90, 2)) < 0.8
    of = StudyInputs(np.array([2.0, 1.0]), np.ones(2, bool), np.zeros(0, bool), Background.of_training(rows, known))

    def outputs(table, known, there):
        return (5.0 * (known[:, 0] & (table[:, 0] == 2)) + 0.0 * table[:, 1])[:, None]

    found = lime(outputs, of, np.ones(2, bool))
    np.testing.assert_allclose(found.coefficients[:, 0], [5, 0], atol=0.05)
    table, there, _, features = perturbed(of, np.ones(2, bool), 500, np.random.default_rng(1))
    assert set(np.unique(table[there[:, 0], 0])) == {0, 1, 2} and not there[1:].all()
    assert ((features[:, 0] == 1) == (there[:, 0] & (table[:, 0] == 2))).all()
    assert (table[0] == of.table).all() and there[0].all(), "the study itself is the first"


def test_a_gap_is_not_the_category_whose_code_is_0():
    known = np.array([[True], [False], [True], [True]])
    of = StudyInputs(np.zeros(1), np.ones(1, bool), np.zeros(0, bool), Background.of_training(np.eye(4, 1), known))
    _, there, _, features = perturbed(of, np.ones(1, bool), 200, np.random.default_rng(0))
    assert 0 < there.sum() < 200 and not features[~there].any() and features[there].any()


def test_who_does_not_play_has_exactly_0():
    of = study(views=2)
    known = np.array([True, False, True, True])
    rows = of.background.rows.copy()
    rows[:, 2] = of.table[2]
    table = np.where(known, of.table, np.nan)
    gaps = StudyInputs(table, known, np.array([False, True]), Background.of_training(rows, of.background.known))

    def outputs(table, known, there):
        assert np.isfinite(table).all() and not known[:, 1].any() and not there[:, 0].any()
        assert (table[:, 2] == of.table[2]).all(), "never changed, as training has no other value"
        return linear(table, known, there)

    found = lime(outputs, gaps, NO_CATEGORY)
    assert (found.coefficients[[1, 2, 4]] == 0).all() and (found.spread[[1, 2, 4]] == 0).all()
    np.testing.assert_allclose(found.coefficients[[0, 3]], SLOPES[[0, 3]], rtol=0.01)


def test_constant_outputs_have_no_fit():
    found = lime(lambda table, known, there: np.full((len(table), 1), 0.1), study(), NO_CATEGORY)
    assert np.isnan(found.r_squared).all() and np.abs(found.coefficients).max() < 1e-12


def test_refused():
    with pytest.raises(ExplanationError, match="not finite"):
        lime(lambda table, known, there: np.full((len(table), 1), np.nan), study(), NO_CATEGORY)
    with pytest.raises(ValueError, match="two seeds"):
        lime(linear, study(), NO_CATEGORY, seeds=[0])


def test_same_seed_same_result():
    first, again = (lime(linear, study(views=1), NO_CATEGORY, samples=50) for _ in range(2))
    assert (first.coefficients == again.coefficients).all()
    other = lime(linear, study(views=1), NO_CATEGORY, samples=50, seeds=(7, 8))
    assert (other.coefficients != first.coefficients).any()


def test_lime_package_fits_the_same_samples_alike():
    lime_base = pytest.importorskip("lime.lime_base", reason="lime is not installed: tests/requirements.txt")
    of = study(views=2)
    table, known, there, features = perturbed(of, NO_CATEGORY, 300, np.random.default_rng(0))
    values = np.tanh(linear(table, known, there))
    distances = np.linalg.norm(features - features[0], axis=1)
    width = np.sqrt(6) * 0.75
    base = lime_base.LimeBase(lambda d: np.sqrt(np.exp(-(d**2) / width**2)), random_state=np.random.RandomState(0))
    found = weighted_ridge(features, values, kernel(distances, 6))
    for k in range(2):
        intercept, pairs, r_squared, _ = base.explain_instance_with_data(
            features, values, distances, k, 6, feature_selection="none"
        )
        np.testing.assert_allclose(found.coefficients[:, k], [dict(pairs)[i] for i in range(6)], atol=1e-9)
        assert abs(found.intercept[k] - intercept) < 1e-9 and abs(found.r_squared[k] - r_squared) < 1e-9


def test_lime_package_finds_the_same_slopes():
    tabular = pytest.importorskip("lime.lime_tabular", reason="lime is not installed: tests/requirements.txt")
    rng = np.random.default_rng(2)
    raw = rng.normal(size=(400, 4)) * [1, 5, 0.2, 30] + [0, 60, 7, 100]
    mean, std = raw.mean(axis=0), raw.std(axis=0)
    rows = (raw - mean) / std
    explainer = tabular.LimeTabularExplainer(
        raw, mode="regression", discretize_continuous=False, feature_selection="none", random_state=0
    )

    def one(x):
        return linear((x - mean) / std, None, np.zeros((len(x), 0)))[:, 1]

    theirs = dict(explainer.explain_instance(raw[0], one, num_features=4, num_samples=5000).as_map()[1])
    of = StudyInputs(
        rows[0], np.ones(4, bool), np.zeros(0, bool), Background.of_training(rows, np.ones_like(rows, bool))
    )
    found = lime(linear, of, NO_CATEGORY).coefficients[:, 1]
    np.testing.assert_allclose(found, [theirs[i] for i in range(4)], rtol=0.01)
