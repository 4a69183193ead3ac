"""Studies whose maps are learnt from: second gradients go through every way to join views and to add a table."""

import itertools

import pytest
import torch

from models.studies import AGGREGATORS, FUSIONS
from tests.models.studies.test_network import joining, studies, trained
from training.attention_supervision import class_activation
from utils.batch import Logits


@pytest.mark.parametrize(("aggregator", "fusion"), [*itertools.product(AGGREGATORS, FUSIONS)])
def test_maps_of_studies_can_be_learnt_from(aggregator, fusion):
    """And their gradient is right: in float64, along a direction, it is the difference of two losses."""
    model, inputs = trained(joining(aggregator, fusion)).eval().double(), studies()
    inputs = inputs._replace(image=inputs.image.double(), table=inputs.table.double())

    def maps() -> tuple[torch.Tensor, torch.Tensor]:
        observed = model.observe(inputs)
        torch.testing.assert_close(observed.logits.fine, Logits.of(model(inputs)).fine, rtol=0, atol=1e-9)
        (gradient,) = torch.autograd.grad(observed.logits.fine.sum(), observed.fused, create_graph=True)
        exact = (gradient.sum((2, 3), keepdim=True) * observed.fused).sum(1)
        return exact, class_activation(observed.logits.fine, torch.ones(4, 3), observed.fused).double()

    parameter = next(p for name, p in model.named_parameters() if name.startswith("fusion.") and p.ndim > 1)
    exact, found = maps()
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)
    gradient, same = (
        torch.autograd.grad(one.square().mean(), parameter, retain_graph=True)[0] for one in (exact, found)
    )
    torch.testing.assert_close(same, gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = []
    for step in (1e-6, -1e-6):  # larger ones cross the kinks of maxima and rectifiers
        with torch.no_grad():
            parameter += step * direction
        losses.append(maps()[0].square().mean().item())
        with torch.no_grad():
            parameter -= step * direction
    assert (gradient * direction).sum().item() == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4)
