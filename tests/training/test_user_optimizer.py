"""Optimizers that users bring: their rates and names, steps that are skipped, and what they lack."""

import pytest
import torch
from torch import nn

from configs.errors import TrainingError
from training.user_optimizer import adopt_optimizer
from utils.torch_private import conditional_step

KINDS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "fused SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.5, fused=True),
    "plain SGD": lambda p: torch.optim.SGD(p, 0.1),
    "Adam": lambda p: torch.optim.Adam(p, 0.1),
    "fused Adam": lambda p: torch.optim.Adam(p, 0.1, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_step_changes_nothing_and_the_others_are_the_optimizers_own(kind):
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    one, other = KINDS[kind](ours.parameters()), KINDS[kind](theirs.parameters())
    for applied in (False, True, False, True):
        images = torch.randn(4, 3)
        for model, optimizer in ((ours, one), (theirs, other)):
            optimizer.zero_grad()
            model(images).square().sum().backward()
        before = [p.detach().clone() for p in ours.parameters()]
        conditional_step(one, torch.tensor(applied))
        if applied:
            other.step()
            assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
        assert applied or all(map(torch.equal, ours.parameters(), before))


def test_rates_are_those_that_it_was_made_with():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 0.2}, {"params": [model.bias], "lr": 0.1}])
    assert adopt_optimizer(optimizer, model) == 0.2
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # as at the end of a schedule
    assert adopt_optimizer(optimizer, model) == 0.2
    assert [group["rate_factor"] for group in optimizer.param_groups] == [1.0, 0.5]
    assert [group["param_names"] for group in optimizer.param_groups] == [["weight"], ["bias"]]


def test_what_cannot_be_taken():
    model = nn.Linear(3, 2)
    with pytest.raises(TrainingError, match="1 of the 2 parameters of the optimizer Adam are not"):
        adopt_optimizer(torch.optim.Adam([model.weight, nn.Parameter(torch.zeros(1))]), model)
    with pytest.raises(TrainingError, match=r"lacks 1 parameters of the model \(bias"):
        adopt_optimizer(torch.optim.Adam([model.weight]), model)
    with pytest.raises(TrainingError, match="LBFGS"):
        adopt_optimizer(torch.optim.LBFGS(model.parameters()), model)
    with pytest.raises(TrainingError, match="learning rate of 0"):
        adopt_optimizer(torch.optim.Adam(model.parameters(), 0.0), model)
    scheduled = torch.optim.Adam(model.parameters(), 0.1)
    torch.optim.lr_scheduler.StepLR(scheduled, 1)
    with pytest.raises(TrainingError, match="has a scheduler of torch's"):
        adopt_optimizer(scheduled, model)
    model.bias.requires_grad_(False)
    assert adopt_optimizer(torch.optim.Adam([model.weight], 1.0), model) == 1.0
