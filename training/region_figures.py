"""Whether a network looks at annotated regions: energy of its maps inside, and the pointing game."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from configs.errors import TrainingError
from training.attention_supervision import ObservedModel, class_weights, energy_inside, maps_of_regions
from training.loader import Loader
from training.map_geometry import to_cells
from training.precision import Precision
from utils.batch import Batch, Inputs, Targets
from utils.guidance import Regions
from utils.listener import RegionRecord
from utils.out_of_memory import catch_oom, free_memory, largest_part

# Of the image's longer side: Zhang et al. (ECCV 2016, arXiv:1608.00507) allow 15 pixels of 500.
TOLERANCE = 15 / 500


@dataclass(frozen=True)
class RegionFigures:
    """A row a region of something that its study has for certain.

    index: int64 [N], rows of the dataset index. energy: the share of the positive part of the class activation map, on
    the fused map, that lies inside. hit: the pointing game: the map's maximum lies in the region or within TOLERANCE.
    area: the region's share of the image, which an even map's energy inside would be. A map without a positive place
    has energy 0 and hits nothing.
    """

    index: np.ndarray
    energy: np.ndarray
    hit: np.ndarray
    area: np.ndarray

    def as_dict(self) -> RegionRecord:
        """Means; nan without regions."""
        energy, hit, area = (
            float(values.mean()) if len(values) else math.nan for values in (self.energy, self.hit, self.area)
        )
        return {"regions": len(self.index), "energy_inside": energy, "pointing_game": hit, "area": area}


class MeasuredRegions(NamedTuple):
    """Tensors of the regions of a batch, [N] each; study: which of its studies. counts: those that are measured."""

    study: Tensor
    energy: Tensor
    hit: Tensor
    area: Tensor
    counts: Tensor

    def figures(self, index: np.ndarray) -> RegionFigures:
        """index: rows of the batch's studies. Waits for the device."""
        study, energy, hit, area, counts = (tensor.cpu().numpy() for tensor in self)
        return RegionFigures(index[study[counts]], energy[counts], hit[counts], area[counts])


def joined(parts: Iterable[RegionFigures]) -> RegionFigures | None:
    """None of no parts."""
    found = list(parts)
    if not found:
        return None
    names = ("index", "energy", "hit", "area")
    return RegionFigures(*(np.concatenate([getattr(one, name) for one in found]) for name in names))


def measure_regions(model: ObservedModel, batch: Batch, precision: Precision) -> MeasuredRegions | None:
    """Of a batch on the model's device; the model is in evaluation mode. None where the batch has no region."""
    regions = batch.guidance.regions if batch.guidance is not None else None
    if regions is None or not len(regions.image):
        return None
    with torch.inference_mode(False):
        inputs, regions, targets = _ordinary(batch, regions)
        with precision.autocast():
            observed = model.observe_fused(inputs)
        weights = class_weights(regions, targets)
        cams = maps_of_regions(observed, regions, weights, create_graph=False).detach()
        size = inputs.image.shape[2:]
        centres = model.cell_centres(size, model.level_cells()).fused
        energy = energy_inside(cams, to_cells(regions.share, centres))
        hit = _points_inside(cams, regions.share, centres)
        area = regions.share.float().flatten(1).mean(1) / 255.0
        return MeasuredRegions(regions.study, energy, hit, area, weights.sum(1) > 0)


@torch.no_grad()
def score_regions(
    model: ObservedModel, loader: Loader, precision: Precision, memory_format: torch.memory_format
) -> RegionFigures | None:
    """Of all batches of a loader that has regions; None where no batch has one. Puts the model into evaluation mode.

    Batches that do not fit into memory are cut into smaller ones. Raises TrainingError where a single study does not.
    """
    assert isinstance(model, nn.Module)
    device, found = next(model.eval().parameters()).device, []
    for _, batch in loader.epoch(0):
        if batch is None or batch.guidance is None or batch.guidance.regions is None:
            continue
        splits = 1
        while True:
            with catch_oom() as caught:
                parts = [part.to(device, memory_format) for part in batch.split(splits)]
                measured = [(measure_regions(model, part, precision), part.index) for part in parts]
                found += [one.figures(index.cpu().numpy()) for one, index in measured if one is not None]
                break
            if largest_part(len(batch), splits) == 1:
                raise TrainingError(f"out of memory with the maps of one study ({caught.failure})")
            free_memory(device)
            splits *= 2
    return joined(found)


def _ordinary(batch: Batch, regions: Regions) -> tuple[Inputs, Regions, Targets]:
    """Copies that autograd can use, of what was made in inference mode."""
    image, view_mask, view_kind, table, table_mask = (tensor.clone() for tensor in batch.inputs)
    share, of_image, study, column, turn = (tensor.clone() for tensor in regions.tensors())
    targets = Targets(batch.targets.labels.clone(), batch.targets.mask.clone())
    inputs = Inputs(image, view_mask, view_kind, table, table_mask)
    return inputs, Regions(share, of_image, study, column, turn, regions.turns), targets


def _points_inside(cams: Tensor, share: Tensor, centres: Sequence[Tensor]) -> Tensor:
    """bool [N]: whether the pixel that the highest cell is centred on is at most the tolerance away from the region."""
    flat = cams.flatten(1)
    top = flat.argmax(1)
    y, x = (axis.to(cams.device, torch.float32) for axis in centres)
    peak_y, peak_x = y[top // len(x)], x[top % len(x)]
    rows, columns = (torch.arange(n, device=cams.device, dtype=torch.float32) for n in share.shape[1:])
    away = (rows[None, :, None] - peak_y[:, None, None]).square() + (columns - peak_x[:, None, None]).square()
    # What is half a pixel's or more; of a region without such a pixel, the most there is.
    inside = share >= torch.clamp(share.flatten(1).amax(1), max=128)[:, None, None]
    nearest = torch.where(inside, away, torch.inf).flatten(1).amin(1).sqrt()
    return (nearest <= TOLERANCE * max(share.shape[1:])) & (flat.amax(1) > 0)
