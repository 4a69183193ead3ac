"""A study's image vector and its table → what is added to the vector. All begin as 0: the image alone, bit for bit.

v [B, C]; tokens of columns T [B, F, width], 0 where not known; mask bool [B, F]; tokens of places P [B, N, width] with
bool [B, N] where a fusion reads them → u [B, C]. Attention has a key of its own, CLS, which is always there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.studies.attention import MaskedAttention, small_uniform, zero_linear
from models.studies.table import TableVector


class TableFusion(nn.Module, ABC):
    """u(v, T, mask, P, mask of P)."""

    reads_places = False

    @abstractmethod
    def forward(
        self, v: Tensor, tokens: Tensor, mask: Tensor, places: Tensor | None, place_mask: Tensor | None
    ) -> Tensor: ...

    def weights(
        self, v: Tensor, tokens: Tensor, mask: Tensor, places: Tensor | None, place_mask: Tensor | None
    ) -> Tensor | None:
        """How much attention each column is paid, [B, F], rows adding up to 1 where a value is known; None without."""
        return None


class Concatenate(TableFusion):
    """u = W₀ ReLU(W [LN(v); e(T)]). Without the layer between, XOR of finding and column could not be learned."""

    def __init__(self, channels: int, columns: int, width: int, rank: int) -> None:
        super().__init__()
        self.table, self.norm = TableVector(columns, width), nn.LayerNorm(channels)
        self.inner, self.outer = nn.Linear(channels + width, channels), zero_linear(channels, channels)

    def forward(
        self, v: Tensor, tokens: Tensor, mask: Tensor, places: Tensor | None, place_mask: Tensor | None
    ) -> Tensor:
        return self.outer(self.inner(torch.cat([self.norm(v), self.table(tokens)], dim=1)).relu())


class Gated(TableFusion):
    """u = (1 − z) ⊙ W₀ e(T), z = σ(W [LN(v); e(T)]).

    The gated multimodal unit z ⊙ h_v + (1 − z) ⊙ h_t (Arevalo et al. 2017, arXiv:1702.01992) with h_v = v and
    h_t = v + W₀ e, which begins as v.
    """

    def __init__(self, channels: int, columns: int, width: int, rank: int) -> None:
        super().__init__()
        self.table, self.norm = TableVector(columns, width), nn.LayerNorm(channels)
        self.gate, self.outer = nn.Linear(channels + width, channels), zero_linear(width, channels)

    def forward(
        self, v: Tensor, tokens: Tensor, mask: Tensor, places: Tensor | None, place_mask: Tensor | None
    ) -> Tensor:
        e = self.table(tokens)
        z = self.gate(torch.cat([self.norm(v), e], dim=1)).sigmoid()
        return (1 - z) * self.outer(e)


class Bilinear(TableFusion):
    """u = W₀ (U LN(v) ⊙ V e(T)) + W₀' e(T), of low rank (Kim et al. 2017, arXiv:1610.04325).

    No normalisation over the batch: a study must not depend on those beside it.
    """

    def __init__(self, channels: int, columns: int, width: int, rank: int) -> None:
        super().__init__()
        self.table, self.norm = TableVector(columns, width), nn.LayerNorm(channels)
        self.image_factor, self.table_factor = nn.Linear(channels, rank), nn.Linear(width, rank)
        self.product, self.linear = zero_linear(rank, channels), zero_linear(width, channels)

    def forward(
        self, v: Tensor, tokens: Tensor, mask: Tensor, places: Tensor | None, place_mask: Tensor | None
    ) -> Tensor:
        e = self.table(tokens)
        return self.product(self.image_factor(self.norm(v)) * self.table_factor(e)) + self.linear(e)


class Attention(TableFusion):
    """CLS of two transformer blocks over [CLS, W v, T + columns], keys masked; the table is read as FT-Transformer does
    (Gorishniy et al. 2021, arXiv:2106.11959)."""

    def __init__(self, channels: int, columns: int, width: int, rank: int) -> None:
        super().__init__()
        self.norm, self.image = nn.LayerNorm(channels), nn.Linear(channels, width)
        self.cls, self.columns = small_uniform(1, 1, width), small_uniform(columns, width)
        self.first, self.second = _TransformerBlock(width), _TransformerBlock(width)
        self.last_norm, self.outer = nn.LayerNorm(width), zero_linear(width, channels)

    def forward(
        self, v: Tensor, tokens: Tensor, mask: Tensor, places: Tensor | None, place_mask: Tensor | None
    ) -> Tensor:
        x, keys = self._sequence(v, tokens, mask)
        return self.outer(self.last_norm(self.second(self.first(x, keys), keys)[:, 0]))

    def weights(
        self, v: Tensor, tokens: Tensor, mask: Tensor, places: Tensor | None, place_mask: Tensor | None
    ) -> Tensor:
        x, keys = self._sequence(v, tokens, mask)
        paid = self.first.weights(x, keys) + self.second.weights(self.first(x, keys), keys)
        return _shares(paid[:, 0, 2:], mask)

    def _sequence(self, v: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        image = self.image(self.norm(v))[:, None]
        x = torch.cat([self.cls.expand(v.shape[0], -1, -1), image, tokens + self.columns], dim=1)
        return x, torch.cat([mask.new_ones(v.shape[0], 2), mask], dim=1)[:, None]


class CrossAttention(TableFusion):
    """Places read columns, then columns read places, then CLS reads the columns.

    P' = P + attention(P → [CLS, T + columns]); T' = T + attention([CLS, T + columns] → [CLS, P']);
    u = W₀ LN(CLS' + attention(CLS' → T')). With one place and one column instead, each softmax would be a constant and
    the whole linear in its input: it is over places that a column can choose, which no other fusion can.
    """

    reads_places = True

    def __init__(self, channels: int, columns: int, width: int, rank: int) -> None:
        super().__init__()
        self.cls, self.columns = small_uniform(1, 1, width), small_uniform(columns, width)
        self.to_columns, self.to_places, self.read = (MaskedAttention(width, width, width) for _ in range(3))
        self.last_norm, self.outer = nn.LayerNorm(width), zero_linear(width, channels)

    def forward(
        self, v: Tensor, tokens: Tensor, mask: Tensor, places: Tensor | None, place_mask: Tensor | None
    ) -> Tensor:
        x, keys = self._columns_that_read(tokens, mask, places, place_mask)
        cls = x[:, :1]
        return self.outer(self.last_norm((cls + self.read(cls, x, keys))[:, 0]))

    def weights(
        self, v: Tensor, tokens: Tensor, mask: Tensor, places: Tensor | None, place_mask: Tensor | None
    ) -> Tensor:
        x, keys = self._columns_that_read(tokens, mask, places, place_mask)
        return _shares(self.read.weights(x[:, :1], x, keys)[:, 0, 1:], mask)

    def _columns_that_read(
        self, tokens: Tensor, mask: Tensor, places: Tensor | None, place_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """[CLS, columns] after they have read the places [B, 1 + F, width], and which are there [B, 1, 1 + F]."""
        assert places is not None and place_mask is not None
        cls, here = self.cls.expand(tokens.shape[0], -1, -1), mask.new_ones(tokens.shape[0], 1)
        x, keys = torch.cat([cls, tokens + self.columns], dim=1), torch.cat([here, mask], dim=1)[:, None]
        places = places + self.to_columns(places, x, keys)
        seen = torch.cat([here, place_mask], dim=1)[:, None]
        return x + self.to_places(x, torch.cat([cls, places], dim=1), seen), keys


FUSIONS: dict[str, Callable[[int, int, int, int], TableFusion]] = {
    "concatenate": Concatenate,
    "gated": Gated,
    "attention": Attention,
    "cross_attention": CrossAttention,
    "bilinear": Bilinear,
}


class _TransformerBlock(nn.Module):
    """x + W attention(LN(x)), then x + MLP(LN(x)). x [B, N, width], keys bool [B, 1, N] → [B, N, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), MaskedAttention(width, width, width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        normed = self.norm(x)
        x = x + self.project(self.attention(normed, normed, keys))
        return x + self.mlp(x)

    def weights(self, x: Tensor, keys: Tensor) -> Tensor:
        normed = self.norm(x)
        return self.attention.weights(normed, normed, keys)


def _shares(weights: Tensor, mask: Tensor) -> Tensor:
    """Weights of the columns that are known, as shares of their sum."""
    known = torch.where(mask, weights, 0.0)
    return known / known.sum(1, keepdim=True).clamp(min=torch.finfo(known.dtype).tiny)
