"""The study between the pooled images and the classifier: views are joined, then the table is added."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from configs.errors import ModelError
from models.layers import pooled_tokens, token_grid
from models.studies.attention import PlaceTokens
from models.studies.fusions import FUSIONS, TableFusion
from models.studies.table import ColumnTokens
from models.studies.views import AGGREGATORS, ViewAdapter, ViewAggregator
from utils.batch import Inputs

# Cells an axis that places are means over, as in attention between levels.
_GRID = {2: 7, 3: 4}


class StudyMixer(nn.Module):
    """vectors [M, C], the fused map [M, C, *spatial] they were pooled from, Inputs → [B, C].

    spatial_dims: 2 or 3. aggregator: a name in AGGREGATORS, of views of as many kinds as `view_kinds`; None: a study
    has one view at most. fusion: a name in FUSIONS, of a table with these `columns` (see ColumnTokens); None: there is
    no table. view_width, table_width: of what is hidden in either; rank: of bilinear fusion.

    y = aggregate(views), a learned vector where there is none; then y + u(y, places, table), where any value is known.
    Nothing normalises over the batch and nothing is drawn at random: a study is what it is, alone or among others, and
    what lies behind a gap (an absent view, an unknown value), NaN too, changes neither results nor gradients.
    A network that begins has aggregate(one view) = that view and u = 0.

    vectors are those of the views that are there, in the order of the mask; or of all B · V slots (an exported graph,
    whose shapes cannot depend on the mask), of which those that are not there are not looked at.
    Raises ModelError for more views or other columns than it has been built for.
    """

    def __init__(
        self,
        channels: int,
        spatial_dims: int = 2,
        aggregator: str | None = None,
        view_kinds: int = 1,
        fusion: str | None = None,
        columns: Sequence[int] = (),
        view_width: int = 64,
        table_width: int = 64,
        rank: int = 32,
    ) -> None:
        super().__init__()
        self.side, self.columns = _GRID[spatial_dims], len(columns)
        self.no_image = nn.Parameter(torch.zeros(channels))
        self.adapter: ViewAdapter | None = None
        self.aggregator: ViewAggregator | None = None
        self.view_places: PlaceTokens | None = None
        self.tokens: ColumnTokens | None = None
        self.fusion: TableFusion | None = None
        self.table_places: PlaceTokens | None = None
        if aggregator is not None:
            self.adapter = ViewAdapter(channels, view_kinds, view_width)
            self.aggregator = AGGREGATORS[aggregator](channels, view_kinds, view_width)
            if self.aggregator.reads_places:
                self.view_places = PlaceTokens(channels, view_width, view_kinds, spatial_dims)
        if fusion is not None:
            self.tokens = ColumnTokens(columns, table_width)
            self.fusion = FUSIONS[fusion](channels, len(columns), table_width, rank)
            if self.fusion.reads_places:
                self.table_places = PlaceTokens(channels, table_width, view_kinds, spatial_dims)

    def forward(self, vectors: Tensor, fused: Tensor, inputs: Inputs) -> Tensor:
        return self.add_table(self.join(vectors, fused, inputs), inputs, self.places_of_table(fused, inputs))

    def join(self, vectors: Tensor, fused: Tensor, inputs: Inputs) -> Tensor:
        """[B, C] of the images alone: the first half of `forward`."""
        self._check(inputs)
        if self.aggregator is None:
            joined = in_slots(vectors, inputs.view_mask)[:, 0]
        else:
            joined = self.aggregator(*self._views(vectors, fused, inputs))
        return torch.where(inputs.view_mask.any(1, keepdim=True), joined, self.no_image)

    def add_table(self, joined: Tensor, inputs: Inputs, places: Tensor | None) -> Tensor:
        """The second half: what `join` gave, [B, C], with the table; places: see `places_of_table`."""
        if self.fusion is None or inputs.table.shape[1] == 0:
            return joined
        update = self.fusion(joined, *self._table(inputs, places))
        return joined + torch.where(inputs.table_mask.any(1, keepdim=True), update, 0.0)

    def places_of_table(self, fused: Tensor, inputs: Inputs) -> Tensor | None:
        """Tokens of places [B, V, N, width] that the table is fused with; None where it is not fused with places."""
        return self._places(self.table_places, fused, inputs) if inputs.table.shape[1] else None

    def view_weights(self, vectors: Tensor, fused: Tensor, inputs: Inputs) -> Tensor:
        """How much each view counts in `forward`: [B, V], 0 for absent ones, rows adding up to 1 where there is one."""
        self._check(inputs)
        if self.aggregator is None:
            return inputs.view_mask.to(vectors.dtype)
        return self.aggregator.weights(*self._views(vectors, fused, inputs))

    def table_weights(self, vectors: Tensor, fused: Tensor, inputs: Inputs) -> Tensor | None:
        """How much attention each column is paid: [B, F], likewise; None where the fusion has no attention."""
        self._check(inputs)
        if self.fusion is None or inputs.table.shape[1] == 0:
            return None
        table = self._table(inputs, self.places_of_table(fused, inputs))
        return self.fusion.weights(self.join(vectors, fused, inputs), *table)

    def _views(self, vectors: Tensor, fused: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What an aggregator is given."""
        assert self.adapter is not None
        mask, kind = inputs.view_mask, _kinds(inputs)
        views = self.adapter(in_slots(vectors, mask), kind)
        return torch.where(mask[..., None], views, 0.0), mask, kind, self._places(self.view_places, fused, inputs)

    def _table(self, inputs: Inputs, places: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """What a fusion is given beside the vector."""
        assert self.tokens is not None
        tokens = self.tokens(inputs.table, inputs.table_mask)
        if places is None:
            return tokens, inputs.table_mask, None, None
        mask = inputs.view_mask[..., None].expand(-1, -1, places.shape[2]).flatten(1)
        return tokens, inputs.table_mask, places.flatten(1, 2), mask

    def _places(self, tokens: PlaceTokens | None, fused: Tensor, inputs: Inputs) -> Tensor | None:
        """[B, V, N, width]; None where nobody reads them."""
        if tokens is None:
            return None
        means = in_slots(pooled_tokens(fused, self.side), inputs.view_mask)
        return tokens(means, _kinds(inputs), token_grid(fused, self.side))

    def _check(self, inputs: Inputs) -> None:
        """By shapes alone, so that nothing waits for the device."""
        views, columns = inputs.view_mask.shape[1], inputs.table.shape[1]
        if self.aggregator is None and views != 1:
            raise ModelError(
                f"this model takes one view a study, not up to {views}: MODEL.views.aggregator joins several"
            )
        if columns not in (0, self.columns):
            raise ModelError(f"this model takes a table of {self.columns} columns, not {columns}")


def in_slots(x: Tensor, mask: Tensor) -> Tensor:
    """[M, ...] → [B, V, ...], zeros where there is no view; M as StudyMixer's vectors. No device is waited for."""
    studies, views = mask.shape
    if x.shape[0] == studies * views:
        slots = x.unflatten(0, (studies, views))
        return torch.where(mask.reshape(*mask.shape, *[1] * (x.ndim - 1)), slots, 0.0)
    flat = mask.flatten()
    place = torch.where(flat, flat.cumsum(0) - 1, x.shape[0])
    return torch.cat([x, x.new_zeros(1, *x.shape[1:])])[place].unflatten(0, (studies, views))


def _kinds(inputs: Inputs) -> Tensor:
    return torch.where(inputs.view_mask, inputs.view_kind, 0)
