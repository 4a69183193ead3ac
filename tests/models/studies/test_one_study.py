"""One study asked about with views and values taken away, against the network itself on what is left."""

import itertools

import pytest
import torch
from torch import Tensor

from configs.errors import ModelError
from models import HybridMedNet
from models.studies import AGGREGATORS, FUSIONS
from tests.models.studies.test_network import joining, network, trained
from utils.batch import Inputs, Logits

SUBSETS = torch.tensor(list(itertools.product([False, True], repeat=2)))
TABLE = torch.tensor([[0.5, 2.0], [-1.0, 1.0], [3.0, 0.0]])


def one(views: tuple[bool, ...] = (True, True), kinds: tuple[int, ...] = (1, 0), size: int = 32) -> Inputs:
    torch.manual_seed(3)
    images = torch.randn(2, 3, size, size)[: sum(views)]
    known = torch.ones(1, 2, dtype=torch.bool)
    return Inputs(images, torch.tensor([views]), torch.tensor([kinds]), torch.tensor([[0.5, 2.0]]), known)


def everything() -> tuple[Tensor, Tensor, Tensor]:
    """(table, known, views) of every table with every subset of its values and of the views."""
    rows = [(t, k, v) for t, k, v in itertools.product(TABLE, SUBSETS, SUBSETS)]
    return tuple(map(torch.stack, zip(*rows)))


def asked_one_by_one(model: HybridMedNet, inputs: Inputs, table: Tensor, known: Tensor, views: Tensor) -> Tensor:
    """What `forward` says of studies that never had what is taken away."""
    slot = inputs.view_mask[0].cumsum(0) - 1
    found = []
    for row, has, seen in zip(table, known, views):
        images = inputs.image[[int(slot[v]) for v in seen.nonzero()[:, 0]]]
        left = Inputs(images, seen[None], inputs.view_kind, torch.where(has, row, 0.0)[None], has[None])
        with torch.no_grad():
            found.append(Logits.of(model(left)).fine)
    return torch.cat(found)


@pytest.mark.parametrize("aggregator, fusion", [*itertools.product(AGGREGATORS, FUSIONS)])
def test_equals_the_network_without_what_is_taken_away(aggregator, fusion):
    model, inputs = trained(joining(aggregator, fusion)).eval(), one()
    table, known, views = everything()
    fast, slow = (
        model.one_study(inputs).logits(table, known, views),
        asked_one_by_one(model, inputs, table, known, views),
    )
    assert slow.std(0).min() > 1e-3, "nothing that is taken away changes anything"
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "more", [("MODEL.hierarchical=true", "MODEL.num_coarse_classes=2"), ("MODEL.views.backbones=separate",)]
)
def test_other_heads_and_separate_backbones(more):
    model, inputs = trained(joining("attention", "cross_attention", *more)).eval(), one()
    for parameter in model.view_backbones.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    fast = model.one_study(inputs).logits(*everything())
    torch.testing.assert_close(fast, asked_one_by_one(model, inputs, *everything()), atol=1e-5, rtol=1e-5)


def test_what_lies_behind_gaps_is_not_looked_at():
    """A view that could not be read has no image; NaN in cells that are not known."""
    model, inputs = trained(joining("attention", "attention")).eval(), one((True, False))
    table, known, views = everything()
    views = views & inputs.view_mask
    asked = model.one_study(inputs)
    plain = asked.logits(table, known, views)
    assert torch.equal(plain, asked.logits(torch.where(known, table, torch.nan), known, views))
    torch.testing.assert_close(plain, asked_one_by_one(model, inputs, table, known, views), atol=1e-5, rtol=1e-5)
    assert asked.view_weights().tolist() == [1, 0]


def test_in_parts_and_without_any_image(monkeypatch):
    model = trained(joining("cross_attention", "cross_attention")).eval()
    whole = model.one_study(one()).logits(*everything())
    monkeypatch.setattr("models.one_study._NUMBERS", 1)
    torch.testing.assert_close(model.one_study(one()).logits(*everything()), whole, atol=1e-5, rtol=1e-5)
    table, known, _ = everything()
    nothing = one((False, False))
    views = torch.zeros(len(table), 2, dtype=torch.bool)
    fast = model.one_study(nothing).logits(table, known, views)
    torch.testing.assert_close(fast, asked_one_by_one(model, nothing, table, known, views), atol=1e-5, rtol=1e-5)


def test_weights_are_the_networks_own_and_modes_stay():
    model, inputs = trained(joining("attention", "attention")).train(), one()
    asked = model.one_study(inputs)
    torch.testing.assert_close(asked.view_weights(), model.view_weights(inputs)[0])
    torch.testing.assert_close(asked.table_weights(), model.table_weights(inputs)[0])
    asked.logits(*everything())
    assert model.training and model.classifier.classifiers.dropout.training
    assert trained(joining("max", "gated")).one_study(inputs).table_weights() is None
    with pytest.raises(ModelError, match="one image a study"):
        network().one_study(inputs)
