"""Attention that is taught where to look: a term of the loss, as sums and counts over images like all others.

Only images count that have an annotated region, or a second view: however few they are, and however a window is cut,
the expected gradient is that of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from training.map_geometry import even_centres, in_other_view, to_cells
from training.precision import Precision
from utils.batch import Batch, Inputs, Logits, Targets
from utils.guidance import ANY_CLASS, Regions

TERM = "attention"
_TINY = 1e-12


class Observed(Protocol):
    """models' Observed, see there."""

    @property
    def logits(self) -> Logits: ...
    @property
    def fused(self) -> Tensor: ...
    @property
    def attended(self) -> tuple[Tensor, ...]: ...


class Centres(Protocol):
    """models' CellCentres, see there."""

    @property
    def levels(self) -> Sequence[Sequence[Tensor]]: ...
    @property
    def fused(self) -> Sequence[Tensor]: ...


class Attending(Protocol):
    """How attention's maps are to be read."""

    @property
    def observes(self) -> Literal["nothing", "gates", "shares"]: ...


@runtime_checkable
class ObservedModel(Protocol):
    """HybridMedNet's promise; another network has no maps that could be taught."""

    @property
    def attention(self) -> Attending: ...
    def observe(self, x: Inputs, /) -> Observed: ...
    def observe_fused(self, inputs: Inputs, /) -> Observed: ...
    def level_cells(self) -> Sequence[Sequence[int]]: ...
    def cell_centres(self, size: Sequence[int], levels: Sequence[Sequence[int]], /) -> Centres: ...


class AttentionSupervision:
    """The term: weight · Σ over images / number of these images.

    mask: KL(p ‖ a) of the attention between backbone and fusion, the mean over its levels. p: the region averaged to
    the map's cells, adding up to 1. a: attention that shares out one among places; of CBAM's gates the softmax over
    places of what their sigmoid is taken of, see `gate_losses`.
    cam: 1 − Σ relu(CAM)·r / Σ relu(CAM) on the fused map, r how much of a cell lies in the region, CAM of what the
    image has and the region is of. Of a map that is positive nowhere inside it is 1, without a gradient.
    consistency: the mean over cells of (CAM(x) − CAM of a second view, seen from the first)², CAM of what the study
    has, or else of what the network holds most likely.
    """

    def __init__(self, model: ObservedModel, method: Literal["mask", "cam", "consistency"], weight: float) -> None:
        self.model, self.method, self.weight = model, method, weight
        self._centres: dict[tuple[int, ...], Centres] = {}

    def counts(self, batch: Batch) -> dict[str, int]:
        """How many images of a batch, on the CPU, count."""
        guidance = batch.guidance
        if self.method == "consistency":
            return {TERM: len(batch.inputs.image)}
        if guidance is None or guidance.regions is None:
            return {TERM: 0}
        regions = guidance.regions
        if self.method == "mask":
            return {TERM: len(regions.image.unique())}
        shown = class_weights(regions, batch.targets).sum(1) > 0
        return {TERM: len(regions.image[shown].unique())}

    def __call__(self, batch: Batch, precision: Precision) -> tuple[Logits, dict[str, Tensor]]:
        """A batch on the device → what the network says, and the sum of the term."""
        with precision.autocast():
            observed = self.model.observe(batch.inputs)
        return observed.logits, {TERM: self._sum(observed, batch, precision)}

    def total(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> Tensor:
        """Of all batches whose sums and counts were added up."""
        return self.weight * sums[TERM] / max(counts[TERM], 1)

    def _sum(self, observed: Observed, batch: Batch, precision: Precision) -> Tensor:
        guidance, size = batch.guidance, batch.inputs.image.shape[2:]
        nothing = observed.logits.fine.new_zeros((), dtype=torch.float32)
        if guidance is None or not len(batch.inputs.image):
            return nothing
        if self.method == "consistency":
            return self._consistency(observed, batch, precision)
        regions = guidance.regions
        if regions is None or not len(regions.image):
            return nothing
        if self.method == "mask":
            return self._mask(observed, regions, size)
        return cam_losses(observed, regions, batch.targets, self.centres(size).fused).sum()

    def _mask(self, observed: Observed, regions: Regions, size: Sequence[int]) -> Tensor:
        gates = self.model.attention.observes == "gates"
        losses = []
        for attended, centres in zip(observed.attended, self.centres(size).levels, strict=True):
            own = attended[regions.image].float()
            if gates:
                losses.append(gate_losses(own, to_cells(regions.share, centres)))
            else:
                even = [even_centres(cells, pixels) for cells, pixels in zip(own.shape[1:], size)]
                losses.append(share_losses(own, to_cells(regions.share, even)))
        return torch.stack(losses).mean(0).sum()

    def _consistency(self, observed: Observed, batch: Batch, precision: Precision) -> Tensor:
        assert batch.guidance is not None and batch.guidance.second is not None
        second = batch.guidance.second
        assert second.image is not None, "on the device"
        size = batch.inputs.image.shape[2:]
        with precision.autocast():
            other = self.model.observe(batch.inputs._replace(image=second.image))
        weights = shown_or_likely(observed.logits.fine.detach().float(), batch.targets)
        first, there = (class_activation(one.logits.fine, weights, one.fused) for one in (observed, other))
        return consistency_losses(first, there, second.maps, self.centres(size).fused, size).sum()

    def centres(self, size: Sequence[int]) -> Centres:
        """Where the cells of the network's maps lie in images of this size, found once."""
        key = tuple(size)
        if key not in self._centres:
            self._centres[key] = self.model.cell_centres(key, self.model.level_cells())
        return self._centres[key]


def class_weights(regions: Regions, targets: Targets) -> Tensor:
    """float32 [N, K]: of what the CAM of each region is; zeros where the study does not have it for certain.

    Of a region of whatever the image shows, it is the mean over all that the study has.
    """
    present = (targets.labels > 0.5) & targets.mask
    own = present[regions.study]
    classes = torch.arange(own.shape[1], device=own.device)
    anything = (regions.column == ANY_CLASS)[:, None]
    chosen = (own & (anything | (classes == regions.column[:, None]))).float()
    return chosen / chosen.sum(1, keepdim=True).clamp(min=1)


def shown_or_likely(logits: Tensor, targets: Targets) -> Tensor:
    """float32 [B, K], rows add up to 1: what each study has, or the most likely class where it has none."""
    present = ((targets.labels > 0.5) & targets.mask).float()
    likely = F.one_hot(logits.argmax(1), logits.shape[1]).float()
    chosen = torch.where(present.any(1, keepdim=True), present, likely)
    return chosen / chosen.sum(1, keepdim=True)


def class_activation(logits: Tensor, weights: Tensor, fused: Tensor, create_graph: bool = True) -> Tensor:
    """Σ_c w_c · fused_c with w_c = Σ over cells of ∂(Σ weights · logits)/∂fused_c: float32 [M, *cells].

    Where logits are linear in the map's mean, these are its very weights. create_graph: whether it can be learnt from.
    """
    (gradient,) = torch.autograd.grad(
        (logits.float() * weights).sum(), fused, create_graph=create_graph, retain_graph=True
    )
    axes = tuple(range(2, fused.ndim))
    with torch.autocast(fused.device.type, enabled=False):
        return (gradient.float().sum(axes, keepdim=True) * fused.float()).sum(1)


def maps_of_regions(observed: Observed, regions: Regions, weights: Tensor, create_graph: bool = True) -> Tensor:
    """The CAM that each region is compared with, float32 [N, *cells]. weights: `class_weights`."""
    studies, classes = observed.logits.fine.shape
    found = weights.new_zeros(len(weights), *observed.fused.shape[2:])
    for turn in range(regions.turns):
        now = (regions.turn == turn)[:, None]
        of_studies = weights.new_zeros(studies, classes).index_add(0, regions.study, weights * now)
        cams = class_activation(observed.logits.fine, of_studies, observed.fused, create_graph)
        found = torch.where(now[..., None], cams[regions.image], found)
    return found


def energy_inside(cams: Tensor, inside: Tensor) -> Tensor:
    """Σ relu(CAM)·inside / Σ relu(CAM), [N, *cells] both → [N]; 0 of a map without a positive place."""
    energy = cams.relu()
    return (energy * inside).flatten(1).sum(1) / energy.flatten(1).sum(1).clamp(min=_TINY)


def cam_losses(observed: Observed, regions: Regions, targets: Targets, centres: Sequence[Tensor]) -> Tensor:
    """[N]: 1 − energy inside, shared among the regions of an image that count, 0 of those that do not."""
    weights = class_weights(regions, targets)
    cams = maps_of_regions(observed, regions, weights)
    shown = (weights.sum(1) > 0).float()
    per_image = shown.new_zeros(len(observed.fused)).index_add(0, regions.image, shown)
    share = shown / per_image[regions.image].clamp(min=1)
    return share * (1 - energy_inside(cams, to_cells(regions.share, centres)))


def gate_losses(gates: Tensor, inside: Tensor) -> Tensor:
    """KL(p ‖ softmax over places of the gates) with p = inside / Σ inside; gates before their sigmoid, both
    [N, *cells] → [N].

    What is added to all gates of a map changes nothing: the term says where they are open, not how far. Cross-entropy
    with the region itself would close them all, as most cells lie outside, and gates multiply the features.
    """
    with torch.autocast(gates.device.type, enabled=False):
        return _divergence(gates.float().flatten(1).log_softmax(1), inside)


def share_losses(shares: Tensor, inside: Tensor) -> Tensor:
    """KL(p ‖ a) with p = inside / Σ inside; both [N, *cells] → [N]."""
    return _divergence(shares.flatten(1).clamp(min=_TINY).log(), inside)


def _divergence(log_a: Tensor, inside: Tensor) -> Tensor:
    """KL(p ‖ a) with p = inside / Σ inside; [N, cells], [N, *cells] → [N]."""
    p = inside.flatten(1)
    p = p / p.sum(1, keepdim=True).clamp(min=_TINY)
    return (torch.xlogy(p, p) - p * log_a).sum(1)


def consistency_losses(
    first: Tensor, second: Tensor, views: Tensor, centres: Sequence[Tensor], size: Sequence[int]
) -> Tensor:
    """The mean of (first − second seen from there)² over the cells that both views show; maps [M, *cells] → [M]."""
    seen, both = in_other_view(second, views, centres, size)
    squares = torch.where(both, first - seen, 0.0).square().flatten(1).sum(1)
    return squares / both.flatten(1).sum(1).clamp(min=1)
