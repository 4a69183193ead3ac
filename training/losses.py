"""Losses: masked, in float32, as sums, so that a window of micro-batches can be averaged exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from utils.batch import Inputs, Logits, Targets

ElementwiseLoss = Callable[[Tensor, Tensor], Tensor]
Array = NDArray[np.float32] | NDArray[np.bool_]


def binary_cross_entropy(logits: Tensor, targets: Tensor, pos_weight: Tensor | None = None) -> Tensor:
    """−[w t log p + (1 − t) log(1 − p)], p = sigmoid(logit). [B, K], [B, K] → [B, K]."""
    return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=pos_weight, reduction="none")


def focal(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """(1 − p_t)^γ · BCE, p_t the probability of the true side. Lin et al., ICCV 2017, arXiv:1708.02002.

    Without the paper's α, which balances classes: that is LOSS.pos_weight's task in bce. [B, K] → [B, K].
    """
    probability = logits.sigmoid()
    wrong = probability * (1 - targets) + (1 - probability) * targets
    return _power(wrong, gamma) * binary_cross_entropy(logits, targets)


def asymmetric(
    logits: Tensor, targets: Tensor, gamma_positive: float = 0.0, gamma_negative: float = 4.0, clip: float = 0.05
) -> Tensor:
    """−[t (1 − p)^γ₊ log p + (1 − t) q^γ₋ log(1 − q)], q = max(p − clip, 0). [B, K] → [B, K].

    Ben-Baruch et al., ICCV 2021, arXiv:2009.14119; the weights keep their gradient, as in the paper's formula.
    """
    probability = logits.sigmoid()
    shifted = (probability - clip).clamp(min=0)
    positive = targets * _power(1 - probability, gamma_positive) * F.logsigmoid(logits)
    negative = (1 - targets) * _power(shifted, gamma_negative) * torch.log1p(-shifted.clamp(max=1 - 1e-7))
    return -(positive + negative)


def _power(base: Tensor, exponent: float) -> Tensor:
    """base^exponent for base ≥ 0; an exponent below 1 would have an infinite slope at 0, and 0 · inf is NaN."""
    return base.clamp(min=torch.finfo(base.dtype).tiny).pow(exponent)


def cross_entropy(logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """−Σ_k w_k t_k log softmax_k. [B, K], rows of targets add up to one; weight [K], None: 1 → [B, 1].

    As torch's cross_entropy(weight=w, reduction='none'). A window's sum is divided by its number of images, where
    torch's 'mean' divides by the sum of their weights, which weighs images by the company they are in. With weights of
    mean 1 over the training images, as 'auto' gives, the two are equal over an epoch.
    """
    terms = targets * logits.log_softmax(dim=1)
    return -(terms if weight is None else terms * weight).sum(1, keepdim=True)


def exclusive_focal(logits: Tensor, targets: Tensor, gamma: float = 2.0, weight: Tensor | None = None) -> Tensor:
    """−Σ_k w_k t_k (1 − p_k)^γ log p_k, p = softmax. [B, K], [B, K], [K] → [B, 1]. γ = 0 is `cross_entropy`.

    Lin et al., ICCV 2017, for exclusive classes; weight has the part of the paper's α. Sums and counts as there.
    """
    log_p = logits.log_softmax(dim=1)
    terms = targets * _power(-torch.expm1(log_p), gamma) * log_p
    return -(terms if weight is None else terms * weight).sum(1, keepdim=True)


def smooth_targets(targets: Tensor, amount: float, exclusive: bool) -> Tensor:
    """Towards 1/K (exclusive classes) or 1/2: (1 − a) t + a / K."""
    if amount == 0:
        return targets
    return targets * (1 - amount) + amount / (targets.shape[1] if exclusive else 2)


def balanced_pos_weight(target: Array, mask: Array, limit: float = 100.0) -> list[float]:
    """Negatives / positives of each class among known labels, 1 where one side is missing, within [1/limit, limit].

    target, mask: arrays [N, K].
    """
    positives = (target * mask).sum(0)
    negatives = ((1 - target) * mask).sum(0)
    return [float(min(max(n / p, 1 / limit), limit)) if p > 0 and n > 0 else 1.0 for p, n in zip(positives, negatives)]


def balanced_class_weight(target: Array, mask: Array, limit: float = 100.0) -> list[float]:
    """Of exclusive classes: images / (classes · images of the class), within [1/limit, limit]; 1 where there are none.

    target, mask: arrays [N, K], of which rows that are wholly known count. The mean weight of an image is 1 (where no
    limit is met), as of scikit-learn's class_weight 'balanced'.
    """
    counts = target[mask.all(1)].sum(0)
    classes, images = int((counts > 0).sum()), float(counts.sum())
    return [float(min(max(images / (classes * n), 1 / limit), limit)) if n > 0 else 1.0 for n in counts]


@dataclass(frozen=True)
class GroupSpec:
    """A coarse class for the consistency term: rows of the fine output, and whether it means their absence."""

    members: Sequence[int]
    negated: bool = False


class Loss(Protocol):
    """A training loss: sums over valid labels and their counts, so that a window of micro-batches is averaged exactly.

    exclusive: whether exactly one class is present.
    """

    @property
    def exclusive(self) -> bool: ...

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of counts and sums."""
        ...

    def counts(self, targets: Targets) -> dict[str, int]:
        """How many values each term has in a batch."""
        ...

    def sums(self, logits: Logits, targets: Targets, inputs: Inputs) -> dict[str, Tensor]:
        """The sum of each term over a batch; inputs: what the logits are of, for a loss that asks a teacher."""
        ...

    def total(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> Tensor:
        """The loss of all batches whose sums and counts were added up."""
        ...


@dataclass
class TrainingLoss:
    """The terms of the training loss, each a sum over valid labels, with its count and weight.

    elementwise: logits, targets → [B, K] (or [B, 1] for exclusive classes).
    groups: coarse classes of a hierarchical model, whose outputs are (coarse, fine); empty for a flat one.
    weights: 'labels' for a flat model; 'coarse', 'fine' and 'consistency' for a hierarchical one.
    shift, coarse_shift: [K], [G], added to the logits, see `training.prior.prior_shift`; None: nothing is.
    """

    elementwise: ElementwiseLoss
    weights: Mapping[str, float] = field(default_factory=lambda: {"labels": 1.0})
    exclusive: bool = False
    label_smoothing: float = 0.0
    groups: Sequence[GroupSpec] = ()
    shift: Tensor | None = None
    coarse_shift: Tensor | None = None

    def unshifted(self) -> TrainingLoss:
        """For images as they are, not as training draws them."""
        return replace(self, shift=None, coarse_shift=None)

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of counts and sums."""
        return tuple(self.weights)

    def counts(self, targets: Targets) -> dict[str, int]:
        """How many valid labels each term has in a batch."""
        labels = int(self._valid(targets.mask).sum())
        if not self.groups:
            return {"labels": labels}
        assert targets.coarse_mask is not None, "a loss with coarse classes needs theirs"
        return {"fine": labels, "coarse": int(targets.coarse_mask.sum()), "consistency": targets.coarse_mask.numel()}

    def sums(self, logits: Logits, targets: Targets, inputs: Inputs | None = None) -> dict[str, Tensor]:
        """The sum of each term over a batch, float32. inputs: what the logits are of; not looked at here."""
        smooth = smooth_targets(targets.labels, self.label_smoothing, self.exclusive)
        loss = self.elementwise(_shifted(logits.fine, self.shift), smooth)
        fine = torch.where(self._valid(targets.mask), loss, 0.0).sum()
        if not self.groups:
            return {"labels": fine}
        assert logits.coarse is not None and targets.coarse is not None and targets.coarse_mask is not None
        coarse = logits.coarse.float()
        coarse_loss = binary_cross_entropy(_shifted(coarse, self.coarse_shift), targets.coarse)
        return {
            "fine": fine,
            "coarse": torch.where(targets.coarse_mask, coarse_loss, 0.0).sum(),
            "consistency": consistency(coarse, logits.fine.float(), self.groups).sum(),
        }

    def total(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> Tensor:
        """Σ weight · sum / count; a term without valid labels adds nothing."""
        terms = [self.weights[name] * value / max(counts[name], 1) for name, value in sums.items()]
        return torch.stack(terms).sum()

    def _valid(self, mask: Tensor) -> Tensor:
        return mask.all(1, keepdim=True) if self.exclusive else mask


def _shifted(logits: Tensor, shift: Tensor | None) -> Tensor:
    return logits.float() if shift is None else logits.float() + shift


def consistency(coarse: Tensor, fine: Tensor, groups: Sequence[GroupSpec]) -> Tensor:
    """(P(group) − max over its members of P(finding))², negated groups with 1 − max. [B, G], [B, K] → [B, G]."""
    rows = tuple(tuple(k in group.members for k in range(fine.shape[1])) for group in groups)
    members = on_device(rows, fine.device)
    negated = on_device(tuple(group.negated for group in groups), fine.device)
    implied = fine.sigmoid().unsqueeze(1).masked_fill(~members, -1.0).amax(2)
    return (coarse.sigmoid() - torch.where(negated, 1 - implied, implied)).square()


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # or training could not use what evaluation asked for first
def on_device(numbers: tuple[object, ...], device: torch.device) -> Tensor:
    """Constants as a tensor, made once: a list that became one in every step would make the device wait."""
    return torch.tensor(numbers).to(device)
