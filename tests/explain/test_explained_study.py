"""One study explained by all methods at once: rows of its table, a split's summary, a float32 network."""

import json

import numpy as np
import pytest
import torch

from configs.errors import ExplanationError
from explain.background import Background, StudyInputs
from explain.explained_study import TABLE_METHODS, explain_study, summarise_tables

NAMES, CELLS, CLASSES = ["age", "sex", "crp", "frontal"], ["63", "F", "", "PA"], ["Edema", "Hernia"]
CATEGORICAL = np.array([False, True, False])


def network():
    """(age, sex, crp, frontal) → two logits, float32, not linear; the third column is missing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(7, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))

    def outputs(table, known, there):
        with torch.no_grad():
            return layers(torch.from_numpy(np.concatenate([table, known, there], axis=1)).float()).numpy()

    return outputs


def study(seed: int) -> StudyInputs:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(50, 3))
    rows[:, 1] = rng.integers(0, 2, 50)
    background = Background.of_training(rows, rng.random((50, 3)) < 0.9)
    return StudyInputs(np.array([rng.normal(), 1.0, 0.0]), np.array([True, True, False]), np.ones(1, bool), background)


ATTENTION = np.array([0.5, 0.2, 0.0, 0.3])


def test_rows_and_summary():
    explained = [explain_study(network(), study(seed), CATEGORICAL, attention=ATTENTION) for seed in range(4)]
    rows = list(explained[0].rows("s1", CLASSES, NAMES, CELLS))
    assert len(rows) == 2 * 3 * 4 and [row.method for row in rows[::4]] == [*TABLE_METHODS] * 2
    assert [(row.column_or_view, row.value) for row in rows[:4]] == list(zip(NAMES, CELLS))
    assert {row.class_name for row in rows[12:]} == {"Hernia"} and rows[15].attribution != rows[3].attribution
    assert all(row.attribution == 0 for row in rows if row.column_or_view == "crp")
    assert [row.attribution for row in rows if row.method == "attention"][:4] == ATTENTION.tolist()
    assert {row.uncertainty for row in rows if row.method == "attention"} == {None}
    assert explained[0].lime is not None
    assert [row.uncertainty for row in rows[16:20]] == explained[0].lime.spread[:, 1].tolist()
    summary = json.loads(json.dumps(summarise_tables(explained, CLASSES), allow_nan=False))
    assert (summary["studies"], summary["exact"], summary["largest_standard_error"]) == (4, 4, 0)
    assert summary["additivity"] <= 1e-9
    edema = summary["classes"]["Edema"]
    # Two columns with a value and one view: three players are the fewest, and weights of columns and views are shares
    # of two wholes.
    assert edema["rank_correlation_columns"] == edema["rank_correlation_views"]
    assert edema["rank_correlation_columns"] == {"mean": "undefined", "studies": 0, "players": None}
    assert 0 < edema["lime_r_squared"] <= 1
    assert edema["lime_spread"] == max(one.lime.spread[:, 0].max() for one in explained if one.lime)


def test_float32_network_adds_up_to_its_own_output():
    of, outputs = study(1), network()
    whole = outputs(np.where(of.known, of.table, 0)[None], of.known[None], of.views[None])[0]
    shapley = explain_study(outputs, of, CATEGORICAL, methods=["shapley"]).shapley
    assert shapley is not None and shapley.values.dtype == np.float64
    np.testing.assert_allclose(shapley.base + shapley.values.sum(axis=0), shapley.output, atol=1e-9)
    np.testing.assert_allclose(shapley.output, whole, atol=1e-6)


def test_weights_of_columns_and_of_views_are_ranked_apart():
    """Three columns and three views: each in the order of its own Shapley values, and all of them together not."""
    background = Background.of_training(np.zeros((1, 3)), np.ones((1, 3), bool))
    of = StudyInputs(np.array([1.0, 2.0, 3.0]), np.ones(3, bool), np.ones(3, bool), background)
    weights = np.array([10.0, 20.0, 30.0])

    def outputs(table, known, there):
        return (table.sum(axis=1) + there @ weights)[:, None]

    attention = np.array([0.1, 0.3, 0.6, 0.2, 0.3, 0.5])
    (agreement,) = explain_study(
        outputs, of, np.zeros(3, bool), methods=["shapley", "attention"], attention=attention
    ).agreements
    assert (agreement.columns.value, agreement.views.value) == (pytest.approx(1), pytest.approx(1))
    gaps = np.array([0.1, 0.3, 0.6, np.nan, np.nan, np.nan])
    one = explain_study(outputs, of, np.zeros(3, bool), methods=["shapley", "attention"], attention=gaps)
    assert one.agreements[0].columns.defined and not one.agreements[0].views.defined
    rows = [row for row in one.rows("s", ["x"], list("abcdef"), [""] * 6) if row.method == "attention"]
    assert [row.column_or_view for row in rows] == ["a", "b", "c"]
    summary = summarise_tables([one], ["x"])["classes"]["x"]
    assert summary["rank_correlation_columns"] == {"mean": pytest.approx(1), "studies": 1, "players": 3}


def test_only_what_was_asked_for():
    one = explain_study(network(), study(0), CATEGORICAL, methods=["lime"])
    assert one.shapley is None and one.attention is None and not one.agreements
    assert [row.method for row in one.rows("s", CLASSES, NAMES, CELLS)][::4] == ["lime", "lime"]
    summary = summarise_tables([one], CLASSES)
    assert summary["additivity"] is None and summary["classes"]["Hernia"]["rank_correlation_columns"] is None
    assert summarise_tables([], ["x"])["classes"]["x"]["lime_r_squared"] is None


def test_refused():
    with pytest.raises(ExplanationError, match=r"unknown method 'shap'.*shapley, lime, attention"):
        explain_study(network(), study(0), CATEGORICAL, methods=["shap"])
    with pytest.raises(ExplanationError, match="neither columns nor views"):
        explain_study(network(), study(0), CATEGORICAL)
    one = explain_study(network(), study(0), CATEGORICAL, methods=["shapley"])
    with pytest.raises(ValueError):
        list(one.rows("s", CLASSES, NAMES[:3], CELLS))
