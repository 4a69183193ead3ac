"""Several views of a study → one vector. A study of one view begins as that view's own vector, bit for bit.

The five ways, each after the adapter: max (Su et al. 2015, MVCNN, arXiv:1505.00880), mean, attention (gated attention
pooling, Ilse et al. 2018, arXiv:1802.04712), cross_attention (van Tulder et al. 2021, arXiv:2103.10390, here with kinds
of views and positions), learned_weight (one number per kind of view).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.studies.attention import MaskedAttention, zero_linear


class ViewAdapter(nn.Module):
    """h = v + W₀ ReLU(W v + E[kind]), W₀ zero at first: the same sign may mean different things in different views.

    v [B, V, C], kind int64 [B, V] → [B, V, C].
    """

    def __init__(self, channels: int, kinds: int, width: int) -> None:
        super().__init__()
        self.inner, self.kinds = nn.Linear(channels, width), nn.Embedding(kinds, width)
        self.outer = zero_linear(width, channels)

    def forward(self, v: Tensor, kind: Tensor) -> Tensor:
        return v + self.outer((self.inner(v) + self.kinds(kind)).relu())


class ViewAggregator(nn.Module, ABC):
    """Views [B, V, C] after the adapter, 0 where there is none, → [B, C]; of no view at all, anything finite or −inf.

    mask: bool [B, V]. kind: int64 [B, V]. places: tokens [B, V, N, width], or None where it does not read them.
    """

    reads_places = False

    @abstractmethod
    def forward(self, views: Tensor, mask: Tensor, kind: Tensor, places: Tensor | None) -> Tensor: ...

    @abstractmethod
    def weights(self, views: Tensor, mask: Tensor, kind: Tensor, places: Tensor | None) -> Tensor:
        """How much each view counts: [B, V], 0 where there is none; rows add up to 1 where there is one."""


class _WeightedSum(ViewAggregator):
    """Σ w_k h_k."""

    def forward(self, views: Tensor, mask: Tensor, kind: Tensor, places: Tensor | None) -> Tensor:
        return (self.weights(views, mask, kind, places)[..., None] * views).sum(1)


class MaxOfViews(ViewAggregator):
    """The largest value of every channel; a view's weight is the share of channels that come from it."""

    def forward(self, views: Tensor, mask: Tensor, kind: Tensor, places: Tensor | None) -> Tensor:
        return _masked(views, mask).max(1).values  # not amax, see layers.global_average_and_max

    def weights(self, views: Tensor, mask: Tensor, kind: Tensor, places: Tensor | None) -> Tensor:
        first = _masked(views, mask).max(1).indices
        shares = (first[:, None] == torch.arange(views.shape[1], device=views.device)[:, None]).to(views.dtype).mean(-1)
        return torch.where(mask, shares, 0.0)


class MeanOfViews(_WeightedSum):
    """The mean."""

    def weights(self, views: Tensor, mask: Tensor, kind: Tensor, places: Tensor | None) -> Tensor:
        return _equal_weights(mask, views)


class AttentionOverViews(_WeightedSum):
    """w = softmax over views of s(tanh(V h) ⊙ σ(U h))."""

    def __init__(self, channels: int, kinds: int, width: int) -> None:
        super().__init__()
        self.content, self.gate = nn.Linear(channels, width), nn.Linear(channels, width)
        self.score = nn.Linear(width, 1)

    def weights(self, views: Tensor, mask: Tensor, kind: Tensor, places: Tensor | None) -> Tensor:
        scores = self.score(self.content(views).tanh() * self.gate(views).sigmoid())[..., 0]
        return _softmax_over_views(scores, mask)


class LearnedWeight(_WeightedSum):
    """w = softmax of a number per kind, over the kinds that are there; views of one kind share its weight."""

    def __init__(self, channels: int, kinds: int, width: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(kinds))

    def weights(self, views: Tensor, mask: Tensor, kind: Tensor, places: Tensor | None) -> Tensor:
        alike = ((kind[:, :, None] == kind[:, None, :]) & mask[:, None, :]).sum(-1)
        return _softmax_over_views(self.scores[kind] - alike.clamp(min=1).to(self.scores.dtype).log(), mask)


class CrossAttentionOfViews(ViewAggregator):
    """h_k + W₀ attention(h_k → places of the other views), then the mean; nothing is added where there is no other.

    A view's weight is the mean attention that other views pay to its places; 1 where it is alone.
    """

    reads_places = True

    def __init__(self, channels: int, kinds: int, width: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(channels), MaskedAttention(channels, width, width)
        self.outer = zero_linear(width, channels)

    def forward(self, views: Tensor, mask: Tensor, kind: Tensor, places: Tensor | None) -> Tensor:
        assert places is not None
        others, alone = _others(mask, places.shape[2])
        found = self.outer(self.attention(self.norm(views), places.flatten(1, 2), others))
        joined = views + torch.where(alone, 0.0, found)
        return (_equal_weights(mask, views)[..., None] * joined).sum(1)

    def weights(self, views: Tensor, mask: Tensor, kind: Tensor, places: Tensor | None) -> Tensor:
        assert places is not None
        others, alone = _others(mask, places.shape[2])
        paid = self.attention.weights(self.norm(views), places.flatten(1, 2), others).unflatten(-1, places.shape[1:3])
        itself = torch.eye(views.shape[1], dtype=paid.dtype, device=paid.device)
        rows = torch.where(alone, itself, paid.sum(-1))
        return (_equal_weights(mask, rows)[..., None] * rows).sum(1)


AGGREGATORS: dict[str, Callable[[int, int, int], ViewAggregator]] = {
    "max": lambda channels, kinds, width: MaxOfViews(),
    "mean": lambda channels, kinds, width: MeanOfViews(),
    "attention": AttentionOverViews,
    "cross_attention": CrossAttentionOfViews,
    "learned_weight": LearnedWeight,
}


def _masked(views: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask[..., None], views, -torch.inf)


def _equal_weights(mask: Tensor, like: Tensor) -> Tensor:
    return mask.to(like.dtype) / mask.sum(1, keepdim=True).clamp(min=1).to(like.dtype)


def _softmax_over_views(scores: Tensor, mask: Tensor) -> Tensor:
    """Over the views that are there; 0 for the others, and everywhere where there is none."""
    some = mask.any(1, keepdim=True)
    finite = torch.where(mask, scores, -torch.inf)
    return torch.where(mask, torch.where(some, finite, 0.0).softmax(1), 0.0)


def _others(mask: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """Keys for each view [B, V, V · places]: places of the other views that are there; and whether a view has none
    [B, V, 1], which is given all keys, as a softmax needs one."""
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    others = mask[:, None, :] & ~itself
    alone = ~others.any(-1, keepdim=True)
    return (others | alone)[..., None].expand(-1, -1, -1, places).flatten(2), alone
