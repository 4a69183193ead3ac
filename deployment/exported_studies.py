"""What goes into an exported file of a model of studies: all slots of images, masks, and a table in its own units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from deployment.exported_network import INPUT, Exportable, NetworkInput
from utils.batch import Inputs
from utils.kernels import is_exported

VIEW_MASK, VIEW_KIND, TABLE, TABLE_ROW = "view_mask", "view_kind", "table", "table_row"


@dataclass(frozen=True)
class NumericColumn:
    """z = (x - mean) / std, clipped at ±clip. low, high: of training."""

    name: str
    mean: float
    std: float
    clip: float
    low: float
    high: float


@dataclass(frozen=True)
class CategoricalColumn:
    """Codes 1, 2, … of these categories; any other number is another category."""

    name: str
    categories: tuple[str, ...]


@dataclass(frozen=True)
class StudyForm:
    """What a study is to a model. max_views: slots of images. view_kinds: kinds by their code, the last is all others;
    () of a model that joins no views. columns: of the table, () without one. indicators: columns of which the network
    is told that their value is missing.
    """

    max_views: int
    view_kinds: tuple[str, ...] = ()
    columns: tuple[NumericColumn | CategoricalColumn, ...] = ()
    indicators: tuple[str, ...] = ()


class ExportedStudyNetwork(Exportable):
    """Studies in, probabilities out; see Exportable.

    image: float32 [B, V, C, *spatial], V = max_views. view_mask: bool [B, V], which slots have an image. view_kind:
    int64 [B, V], codes of kinds; anything else counts as the last. table: float32 [B, F], numbers in the units of
    the clinical table, categories as codes; what is not finite is missing. table_row: bool [B], whether the study has a
    row of the table at all, where the network is told of missing values. What a model does not have is no input.

    What lies behind a gap changes nothing, NaN neither. In a graph, whose shapes cannot depend on a mask, images of
    empty slots are computed as zeros and not looked at; else only the images that are there are computed, as when the
    model is evaluated, so that comparing the two compares a file with evaluation.
    """

    means: Tensor
    deviations: Tensor
    numeric: Tensor

    def __init__(
        self,
        network: nn.Module,
        form: StudyForm,
        exclusive: bool = False,
        logits: bool = False,
        slopes: Sequence[float] | None = None,
        intercepts: Sequence[float] | None = None,
    ) -> None:
        super().__init__(network, exclusive, logits, slopes, intercepts)
        self.form = form
        numbers = [one if isinstance(one, NumericColumn) else None for one in form.columns]
        names = [one.name for one in form.columns]
        self.told = [names.index(name) for name in form.indicators]
        self.clip = max((one.clip for one in numbers if one), default=0.0)
        values = {
            "means": torch.tensor([one.mean if one else 0.0 for one in numbers]),
            "deviations": torch.tensor([one.std if one else 1.0 for one in numbers]),
            "numeric": torch.tensor([one is not None for one in numbers], dtype=torch.bool),
        }
        for name, tensor in values.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(
        self,
        image: Tensor,
        view_mask: Tensor,
        view_kind: Tensor | None = None,
        table: Tensor | None = None,
        table_row: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        kind = torch.zeros_like(view_mask, dtype=torch.int64) if view_kind is None else self._kinds(view_kind)
        values, known = self._encoded(table, table_row, image)
        images = self._images(image, view_mask).to(self.dtype)
        return self._outputs(self.network(Inputs(images, view_mask, kind, values, known)))

    def inputs(self, image_shape: Sequence[int]) -> tuple[NetworkInput, ...]:
        """See Exportable."""
        form, views = self.form, self.form.max_views
        found = [NetworkInput(INPUT, (views, *image_shape)), NetworkInput(VIEW_MASK, (views,), torch.bool)]
        found += [NetworkInput(VIEW_KIND, (views,), torch.int64)] if form.view_kinds else []
        found += [NetworkInput(TABLE, (len(form.columns),))] if form.columns else []
        return (*found, *([NetworkInput(TABLE_ROW, (), torch.bool)] if form.indicators else []))

    def _images(self, image: Tensor, view_mask: Tensor) -> Tensor:
        if not is_exported():
            return image[view_mask]
        there = view_mask.reshape(*view_mask.shape, *[1] * (image.ndim - 2))
        return torch.where(there, image, 0.0).flatten(0, 1)

    def _kinds(self, view_kind: Tensor) -> Tensor:
        last = len(self.form.view_kinds) - 1
        return torch.where((view_kind >= 0) & (view_kind <= last), view_kind, last)

    def _encoded(self, table: Tensor | None, table_row: Tensor | None, image: Tensor) -> tuple[Tensor, Tensor]:
        """As the model was trained: z-scores and codes [B, F], 0 where unknown; which are known."""
        if table is None:
            none = torch.zeros(image.shape[0], 0, device=image.device)
            return none, none.bool()
        known = table.abs() < torch.inf  # False for NaN
        values = torch.where(known, table, self.means)
        z = ((values - self.means) / self.deviations).clamp(-self.clip, self.clip)
        encoded = torch.where(known, torch.where(self.numeric, z, values), 0.0)
        if table_row is None:
            return encoded, known
        known = known & table_row[:, None]
        row = table_row[:, None].expand(-1, len(self.told))
        missing = torch.stack([row[:, 0] & ~known[:, column] for column in self.told], dim=1)
        return torch.cat([torch.where(known, encoded, 0.0), missing.to(encoded.dtype)], 1), torch.cat([known, row], 1)


class SingleViews(nn.Module):
    """A network of studies as one of single images: each is a study of one view of this kind, without a table."""

    def __init__(self, network: nn.Module, kind: int) -> None:
        super().__init__()
        self.network, self.kind = network, kind

    def forward(self, image: Tensor) -> object:
        inputs = Inputs.of_images(image)
        return self.network(inputs._replace(view_kind=torch.full_like(inputs.view_kind, self.kind)))


def random_studies(
    form: StudyForm, image_shape: Sequence[int], images: np.ndarray | None = None, count: int = 8, seed: int = 0
) -> tuple[np.ndarray, ...]:
    """Studies with gaps, as `ExportedStudyNetwork.inputs`, and NaN behind every gap.

    In turn: nothing at all; one view without a table; a table without a view; everything; then by chance. images:
    float32 [N, C, *spatial] to take from, in place of noise.
    """
    rng = np.random.default_rng(seed)
    shape = (count, form.max_views, *image_shape)
    image = rng.standard_normal(shape, dtype=np.float32)
    if images is not None:
        image = images[rng.integers(0, len(images), shape[:2])].astype(np.float32)
    mask, row = rng.random(shape[:2]) < 0.6, rng.random(count) < 0.8
    known = (rng.random((count, len(form.columns))) < 0.7) & row[:, None]
    mask[:4], row[:4] = False, [False, False, True, True]
    mask[1:2, -1], mask[3:4], known[:2], known[2:4] = True, True, False, True
    image[~mask] = np.nan
    kinds = rng.integers(-1, len(form.view_kinds) + 1, mask.shape)
    columns = [_random_column(one, count, rng) for one in form.columns]
    table = np.where(known, np.stack(columns, axis=1), np.nan).astype(np.float32) if columns else None
    return of_form(form, image, mask, kinds, table, row)


def of_form(
    form: StudyForm, image: np.ndarray, mask: np.ndarray, kinds: np.ndarray, table: np.ndarray | None, row: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Those of these that are inputs of a model of this form."""
    found = [image, mask, *([kinds.astype(np.int64)] if form.view_kinds else [])]
    return (*found, *([table] if table is not None and form.columns else []), *([row] if form.indicators else []))


def _random_column(column: NumericColumn | CategoricalColumn, count: int, rng: np.random.Generator) -> np.ndarray:
    """Beyond training's values too."""
    if isinstance(column, NumericColumn):
        return rng.normal(column.mean, 3 * column.std, count)
    return rng.integers(0, len(column.categories) + 2, count).astype(np.float64)
