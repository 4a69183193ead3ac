"""A user's own optimizer in a Learner."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from configs.errors import TrainingError


def adopt_optimizer(optimizer: Optimizer, model: nn.Module) -> float:
    """Give an optimizer what a Learner's has; the learning rate of its first group, which the schedule is for.

    Each group keeps its rate as a multiple of that one, and gets the names of its parameters, by which a checkpoint
    finds their states again. Rates are those that the optimizer was made with, whatever a schedule has made of them.
    Raises TrainingError where it takes a closure, has parameters that are not the model's, or lacks some of these.
    """
    kind = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TrainingError("LBFGS asks for the loss several times in a step: take an optimizer of gradients alone")
    if any("initial_lr" in group and "rate_factor" not in group for group in optimizer.param_groups):
        raise TrainingError(
            f"the optimizer {kind} has a scheduler of torch's, which nobody would step: the learning rate follows "
            "TRAIN.lr_scheduler; make the optimizer without one"
        )
    names = {parameter: name for name, parameter in model.named_parameters()}
    _check_parameters(optimizer, names, kind)
    rates = [float(group.setdefault("initial_lr", group["lr"])) for group in optimizer.param_groups]
    if not rates[0] > 0:
        raise TrainingError(f"the first group of the optimizer {kind} has a learning rate of {rates[0]:g}")
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["param_names"] = [names[parameter] for parameter in group["params"]]
        group["rate_factor"] = rate / rates[0]
    return rates[0]


def _check_parameters(optimizer: Optimizer, names: dict[nn.Parameter, str], kind: str) -> None:
    given = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    others = sum(parameter not in names for parameter in given)
    if others:
        raise TrainingError(
            f"{others} of the {len(given)} parameters of the optimizer {kind} are not the model's: make it from the "
            "parameters of the very model that is trained"
        )
    known = set(given)
    left = [name for parameter, name in names.items() if parameter.requires_grad and parameter not in known]
    if left:
        raise TrainingError(
            f"the optimizer {kind} lacks {len(left)} parameters of the model ({', '.join(left[:3])} …): add them, or "
            "call requires_grad_(False) on those that are to stay as they are"
        )
