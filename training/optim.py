"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypedDict

import torch
from torch import nn
from torch.optim import Optimizer

# What names of parameters begin with that join views and add a table.
STUDY = "classifier.study."


class ParameterGroup(TypedDict):
    """A group of an optimizer, with the names of its parameters, by which a checkpoint's states find them again."""

    params: list[nn.Parameter]
    param_names: list[str]
    weight_decay: float
    rate_factor: float  # its learning rate is so many times the schedule's


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    study_rate_factor: float = 1.0,
    study: str = STUDY,
    rate_factors: Mapping[nn.Parameter, float] | None = None,
) -> list[ParameterGroup]:
    """The weights of convolutions and linear layers, which decay, and all other parameters, which do not.

    Two groups more, of the same kinds, where a network has parameters whose names begin with `study`: those of what
    joins views and adds a table, whose learning rate is multiplied by study_rate_factor; and two for each value of
    rate_factors, which parameters of neither kind may have.

    Such a weight has two axes or more and is called `weight`, or `…_weight` where a module has several. Biases, norms,
    embeddings, class tokens, position and relative-position tables, layer scales, state spaces and whatever a module
    lists in `no_weight_decay()` are left alone.
    """
    exempt, weights = _listed_by_modules(model), _matrices(model)
    names = [name for name, parameter in model.named_parameters() if parameter in weights and parameter not in exempt]
    groups = _groups(model, set(names), weight_decay)
    factors = rate_factors or {}
    study_parameters = {p for name, p in model.named_parameters() if name.startswith(study)}
    kinds = [_part_of(groups, lambda p: p not in study_parameters and p not in factors, 1.0)]
    kinds.append(_part_of(groups, study_parameters.__contains__, study_rate_factor))
    for factor in sorted(set(factors.values())):
        kinds.append(_part_of(groups, {p for p, own in factors.items() if own == factor}.__contains__, factor))
    filled = [kind for kind in kinds[1:] if any(group["params"] for group in kind)]
    return [group for kind in (kinds[0], *filled) for group in kind]


def _part_of(
    groups: Sequence[ParameterGroup], chosen: Callable[[nn.Parameter], bool], rate_factor: float
) -> list[ParameterGroup]:
    """Of each group the chosen parameters."""
    parts: list[ParameterGroup] = []
    for group in groups:
        pairs = [pair for pair in zip(group["params"], group["param_names"], strict=True) if chosen(pair[0])]
        parts.append(
            {
                "params": [parameter for parameter, _ in pairs],
                "param_names": [name for _, name in pairs],
                "weight_decay": group["weight_decay"],
                "rate_factor": rate_factor,
            }
        )
    return parts


def earlier_group_names(model: nn.Module, optimized: Collection[str]) -> list[list[str]]:
    """The names in each group by the rule of before December 2026, when groups were saved without names.

    optimized: the names of all parameters that are in the optimizer, frozen for a while or not.

    All parameters of two axes or more decayed but for those that a module lists. It can be deleted when no run of then
    is resumed any more.
    """
    exempt = _listed_by_modules(model)
    named = [(name, parameter) for name, parameter in model.named_parameters() if name in optimized]
    decayed = {name for name, parameter in named if parameter.ndim > 1 and parameter not in exempt}
    return [[name for name, _ in named if (name in decayed) is decays] for decays in (True, False)]


def regroup(optimizer: Optimizer, names: Sequence[Sequence[str]]) -> None:
    """Put an optimizer's parameters into the groups of these names, in this order; hyperparameters stay the groups'.

    Where there are fewer or more groups than these, for other learning rates, they stay apart by rate: then groups of
    either come in pairs, as `parameter_groups` gives them, and what decays is what did.
    """
    groups = optimizer.param_groups
    if len(groups) == len(names):
        named = {name: p for group in groups for name, p in zip(group["param_names"], group["params"], strict=True)}
        for group, own in zip(groups, names, strict=True):
            group["params"], group["param_names"] = [named[name] for name in own], list(own)
        return
    decaying = {name for group in names[::2] for name in group}
    position = {name: number for number, name in enumerate(name for group in names for name in group)}
    for pair in zip(groups[::2], groups[1::2], strict=True):
        both = [entry for group in pair for entry in zip(group["param_names"], group["params"], strict=True)]
        both.sort(key=lambda entry: position[entry[0]])
        for group, decays in zip(pair, (True, False)):
            kept = [entry for entry in both if (entry[0] in decaying) is decays]
            group["param_names"], group["params"] = [name for name, _ in kept], [parameter for _, parameter in kept]


def _groups(model: nn.Module, decayed: set[str], weight_decay: float) -> list[ParameterGroup]:
    """Those named in `decayed`, then the rest, each in the model's order; frozen ones are left out."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    parts = ([pair for pair in trained if (pair[0] in decayed) is decays] for decays in (True, False))
    return [
        {
            "params": [p for _, p in part],
            "param_names": [name for name, _ in part],
            "weight_decay": decay,
            "rate_factor": 1.0,
        }
        for part, decay in zip(parts, (weight_decay, 0.0))
    ]


def _matrices(model: nn.Module) -> set[nn.Parameter]:
    """What convolutions and linear layers multiply by."""
    found = set()
    for module in model.modules():
        if not isinstance(module, _NO_MATRICES):
            own = module.named_parameters(recurse=False)
            found |= {p for name, p in own if p.ndim > 1 and (name == "weight" or name.endswith("_weight"))}
    return found


# Their weights may have two axes as well.
_NO_MATRICES = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)


def _listed_by_modules(model: nn.Module) -> set[nn.Parameter]:
    """What modules list in `no_weight_decay()`, as timm's do."""
    exempt: set[nn.Parameter] = set()
    for module in model.modules():
        listed = getattr(module, "no_weight_decay", None)
        if callable(listed):
            names = set(listed())
            exempt |= {parameter for name, parameter in module.named_parameters() if _listed(name, names)}
    return exempt


def _listed(name: str, entries: set[str]) -> bool:
    """Modules list full names ('blocks.0.mlp.weight'), or the end of one such as 'relative_position_bias_table'."""
    return any(name == entry or name.endswith(f".{entry}") for entry in entries)


def create_optimizer(
    model: nn.Module,
    kind: str,
    learning_rate: float,
    weight_decay: float,
    momentum: float = 0.9,
    study_rate_factor: float = 1.0,
    rate_factors: Mapping[nn.Parameter, float] | None = None,
) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) or SGD with Nesterov momentum, fused kernels."""
    found = parameter_groups(model, weight_decay, study_rate_factor, rate_factors=rate_factors)
    groups = [dict(group) for group in found]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    if kind == "sgd":
        optimizer = torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=momentum > 0, fused=True)
        return _with_momentum(optimizer) if momentum > 0 else optimizer
    raise ValueError(f"unknown optimizer '{kind}': adamw or sgd")


def _with_momentum(optimizer: Optimizer) -> Optimizer:
    """Momentum of zero from the start, which makes the same first step; see `utils.torch_private.conditional_step`."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


SCHEDULES = ("cosine", "onecycle", "plateau", "constant")


class LearningRateSchedule:
    """The learning rate as a function of the optimizer step, set before each step.

    A step is a share of all `total_steps`: a run that is resumed with steps of another size goes on by `move_to`.

    Linear warm-up over `warmup_steps`, then:
    cosine: half a cosine from peak to minimum; constant: the peak; plateau: the peak, cut by `factor` after
    `patience` epochs without a better score; onecycle: a cosine up from peak/25 over 30 % of all steps and a cosine
    down to peak/10⁴ (Smith & Topin 2018, arXiv:1708.07120; learning rate only, and no separate warm-up).

    learning_rate: what the next optimizer step uses.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        kind: str,
        peak: float,
        total_steps: int,
        warmup_steps: int = 0,
        minimum: float = 0.0,
        patience: int = 3,
        factor: float = 0.3,
    ) -> None:
        if kind not in SCHEDULES:
            raise ValueError(f"unknown schedule '{kind}': one of {', '.join(SCHEDULES)}")
        self.optimizer, self.kind, self.peak, self.minimum = optimizer, kind, peak, minimum
        self.total_steps, self.warmup_steps = max(total_steps, 1), warmup_steps
        self.patience, self.factor = patience, factor
        self.step_number, self.cut, self.best, self.waited = 0, 1.0, -math.inf, 0
        self._apply()

    def rate_at(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0."""
        if self.kind == "onecycle":
            return self._onecycle(step)
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.kind == "cosine":
            span = max(self.total_steps - self.warmup_steps, 1)
            return _cosine(self.peak, self.minimum, min((step - self.warmup_steps) / span, 1.0))
        return max(self.peak * self.cut, self.minimum)

    def _onecycle(self, step: int) -> float:
        rise = max(int(0.3 * self.total_steps), 1)
        if step < rise:
            return _cosine(self.peak / 25, self.peak, step / rise)
        return _cosine(self.peak, self.peak / 1e4, min((step - rise) / max(self.total_steps - rise, 1), 1.0))

    def step(self) -> None:
        """After an optimizer step, made or skipped: only the device knows which, and the rate must not wait for it."""
        self.step_number += 1
        self._apply()

    def move_to(self, step: int) -> None:
        """Go on at another step: where steps have become larger or smaller, the one of the same share."""
        self.step_number = step
        self._apply()

    def epoch_end(self, score: float) -> None:
        """Tell the score of an epoch, higher is better; only plateau listens."""
        if score > self.best:
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self.kind == "plateau" and self.waited >= self.patience:
            self.cut, self.waited = self.cut * self.factor, 0
            self._apply()

    def judge_again(self, scores: Sequence[float]) -> None:
        """The scores of all epochs so far in another figure; what they have cut stays."""
        self.best, self.waited = -math.inf, 0
        for score in scores:
            better = score > self.best
            self.best, self.waited = (score, 0) if better else (self.best, (self.waited + 1) % self.patience)

    def _apply(self) -> None:
        self.learning_rate = self.rate_at(self.step_number)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * group.get("rate_factor", 1.0)

    def state_dict(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("step_number", "cut", "best", "waited")}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        for name in self.state_dict():
            setattr(self, name, state[name])
        self._apply()


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2
