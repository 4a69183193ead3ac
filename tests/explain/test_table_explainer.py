"""What a model must have so that its table can be explained, and how players are named."""

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.errors import ExplanationError
from explain.background import Background
from explain.table_explainer import Column, TableExplainer, View, check_model
from models.studies import AGGREGATORS, FUSIONS
from tests.models.studies.test_network import KINDS as VIEW_KINDS
from tests.models.studies.test_network import joining, network, trained
from tests.models.studies.test_one_study import one

KINDS = ["frontal", "lateral"]
COLUMNS = [Column("age", False), Column("lateral", True)]
BACKGROUND = Background(np.array([[0.1, 1.0], [-2.0, 2.0], [1.0, 0.0]]), np.array([[1, 1], [1, 1], [1, 0]], bool))


def explainer(aggregator: str, fusion: str, *methods: str, classes=(0, 1, 2), columns=COLUMNS) -> TableExplainer:
    model = trained(joining(aggregator, fusion)).eval()
    return TableExplainer(model, columns, KINDS, aggregator, fusion, BACKGROUND, methods, classes)


@pytest.mark.parametrize("aggregator", [None, *AGGREGATORS])
@pytest.mark.parametrize("fusion", [None, *FUSIONS])
def test_a_model_without_what_is_asked_for_is_refused(aggregator, fusion):
    check_model(Path("m.pth"), [], aggregator, fusion)
    if fusion is None and aggregator is None:
        with pytest.raises(ExplanationError, match=r"'m\.pth' takes one image and no table"):
            check_model(Path("m.pth"), ["shapley"], aggregator, fusion)
        return
    check_model(Path("m.pth"), ["shapley", "lime"], aggregator, fusion)
    attentive = fusion in ("attention", "cross_attention")
    if attentive or aggregator in ("attention", "cross_attention", "learned_weight"):
        check_model(Path("m.pth"), ["attention"], aggregator, fusion)
        return
    with pytest.raises(
        ExplanationError, match=r"no attention weights.*fusions attention and cross_attention.*learned_w"
    ):
        check_model(Path("m.pth"), ["attention"], aggregator, fusion)


@pytest.mark.parametrize("aggregator, fusion", [("max", "attention"), ("learned_weight", "bilinear")])
def test_weights_of_what_has_them(aggregator, fusion):
    asked = explainer(aggregator, fusion, "attention")
    study = asked.explain("s", one(kinds=(0, 1)), ["50", "M"], [View("frontal", "PA"), View("lateral", "LL")])
    weights = study.explained.attention
    assert np.isnan(weights[2:]).all() == (aggregator == "max") and np.isnan(weights[:2]).all() == (
        fusion == "bilinear"
    )
    assert np.nansum(weights) == pytest.approx(1)


def test_players_have_names_of_their_own_and_what_is_lacking_is_one_of_them():
    inputs = one((True, False), (0, 1))
    asked = explainer("attention", "attention", "shapley", "attention", classes=(2,))
    study = asked.explain("s", inputs, ["50", "M"], [View("frontal", "PA"), View("frontal 2", "")])
    assert study.names == ("age", "lateral", "frontal", "frontal 2", "view lateral")
    assert study.cells == ("50", "M", "PA", "", "") and study.explained.playing.tolist() == [
        True,
        True,
        True,
        False,
        False,
    ]
    shapley = study.explained.shapley
    assert (shapley.values[3:] == 0).all() and study.explained.attention[3:].tolist() == [0, 0]
    assert study.sizes[0] == 50 and np.isnan(study.sizes[1:]).all()
    assert shapley.values.shape == (5, 1) and study.logits.shape == (3,)
    assert float(study.output[0]) == pytest.approx(float(asked.model(inputs)[0, 2].detach()), abs=1e-6)
    assert asked.difference(inputs, study) <= 1e-6


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_views_without_a_table_are_players(aggregator):
    """Two of them: φ is the mean of what a view adds first and what it adds last."""
    model = trained(network(f"MODEL.views={{aggregator: {aggregator}, width: 8}}", VIEW_KINDS)).eval()
    nothing = Background(np.zeros((1, 0)), np.zeros((1, 0), bool))
    asked = TableExplainer(model, [], KINDS, aggregator, None, nothing, ("shapley",), (0, 1, 2))
    whole = one(kinds=(0, 1))
    inputs = whole._replace(table=whole.table[:, :0], table_mask=whole.table_mask[:, :0])
    study = asked.explain("s", inputs, [], [View("frontal", "PA"), View("lateral", "LL")])
    subsets = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    empty = torch.zeros(4, 0)
    none, first, second, both = model.one_study(inputs).logits(empty, empty.bool(), subsets).detach().double().numpy()
    expected = np.stack([(first - none + both - second) / 2, (second - none + both - first) / 2])
    np.testing.assert_allclose(study.explained.shapley.values, expected, atol=1e-6)
    assert study.names == ("frontal", "lateral")


def test_errors_name_the_study():
    asked = explainer("attention", "attention", "shapley")
    asked.model.classifier.study.tokens.numbers.data.fill_(float("nan"))
    with pytest.raises(ExplanationError, match="study 's 1': the model's output is not finite"):
        asked.explain("s 1", one(), ["50", "M"], [View("frontal", "PA"), View("lateral", "LL")])


def test_images_are_looked_at_once(monkeypatch):
    """However many coalitions there are."""
    asked = explainer("cross_attention", "cross_attention", "shapley", "lime", "attention")
    calls = []
    forward = asked.model.forward_features
    monkeypatch.setattr(asked.model, "forward_features", lambda *given: calls.append(1) or forward(*given))
    asked.explain("s", one(), ["50", "M"], [View("frontal", "PA"), View("lateral", "LL")])
    assert len(calls) == 1
