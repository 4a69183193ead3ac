"""A row of a table → a token per column."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.studies.attention import small_uniform

NUMERIC = 0


class ColumnTokens(nn.Module):
    """What each column of a row says: x w_j of a number, the embedding of a category (Gorishniy et al. 2021,
    arXiv:2106.11959, whose b_j is added where columns are told apart, see `fusions`).

    columns: for each column NUMERIC, or how many categories it has.
    table [B, F], mask bool [B, F] → [B, F, width]. Numbers are standardised. A category is its code as a float, from 1
    to n; 0 and whatever is no code stands for all others, which have an embedding too.

    A value that is not known is the token 0: of a number the mean, of a category the mean of its embeddings (which are
    centred), so that a network is not told by the token itself that a value is missing. What lies in the table behind
    such a gap is never looked at.
    """

    def __init__(self, columns: Sequence[int], width: int) -> None:
        super().__init__()
        self._kinds = tuple(columns)
        numeric = sum(kind == NUMERIC for kind in columns)
        self.numbers = small_uniform(numeric, width) if numeric else None
        self.categories = nn.ParameterList([small_uniform(1 + kind, width) for kind in columns if kind != NUMERIC])

    def forward(self, table: Tensor, mask: Tensor) -> Tensor:
        known = torch.where(mask, table, 0.0).unbind(1)
        tokens = self._numeric(known) + self._categorical(known)
        places = [place for place, _ in sorted(enumerate(self._kinds), key=lambda one: one[1] != NUMERIC)]
        in_order = [token for _, token in sorted(zip(places, tokens, strict=True), key=lambda one: one[0])]
        return torch.where(mask[..., None], torch.stack(in_order, dim=1), 0.0)

    def _numeric(self, known: Sequence[Tensor]) -> list[Tensor]:
        values = [value for value, kind in zip(known, self._kinds, strict=True) if kind == NUMERIC]
        if self.numbers is None:
            return []
        numbers = torch.stack(values, dim=1).to(self.numbers.dtype)  # of a network in a half type, too
        return list((numbers[..., None] * self.numbers).unbind(1))

    def _categorical(self, known: Sequence[Tensor]) -> list[Tensor]:
        codes = [value for value, kind in zip(known, self._kinds, strict=True) if kind != NUMERIC]
        return [
            F.embedding(_codes(code, table.shape[0]), table - table.mean(0))
            for code, table in zip(codes, self.categories, strict=True)
        ]


def _codes(values: Tensor, count: int) -> Tensor:
    codes = values.long()
    return torch.where((codes >= 0) & (codes < count), codes, 0)


class TableVector(nn.Module):
    """All tokens of a row → one vector: ReLU(W [tokens]). [B, F, width] → [B, width]."""

    def __init__(self, columns: int, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(columns * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(tokens.flatten(1)).relu()
