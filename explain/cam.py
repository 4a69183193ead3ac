"""Class activation maps on any level of a network's pyramid, or on its fused map; images and volumes alike.

All methods see activations A [B, C, *cells] and, most, the gradients of a class's logit y with respect to them. What
they give is cut at zero (places that speak for the class), interpolated to the input's pixels, and divided by its
maximum; a map without a positive value stays zero everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.errors import ExplanationError
from explain.network import Layer, Level, PyramidModel, check_classes, class_logits, explaining

# Masked images that Score-CAM runs through the network at a time.
SCORE_BATCH = 32

Maps = Callable[[Layer, Sequence[int]], Tensor]


@dataclass(frozen=True)
class CamMethod:
    """maps: (layer, classes) → [B, len(classes), *cells], of any sign and scale. source: the paper.

    class_specific: whether the maps of two classes differ.
    """

    maps: Maps
    source: str
    class_specific: bool = True


def class_activation_maps(
    model: PyramidModel, x: Tensor, classes: Sequence[int], method: str = "grad_cam", level: Level = "auto"
) -> Tensor:
    """Which places speak for each class: [B, C, *spatial] → float32 [B, len(classes), *spatial] in [0, 1], x's device.

    x: normalised, as the network takes it. classes: columns of the (fine) logits. method: a key of CAM_METHODS.
    level: index into the pyramid (0 the finest, −1 the coarsest), 'fused', or 'auto', see explain/network.py.
    The network is used in evaluation mode and left as it was, parameters' gradients too.
    Raises ExplanationError for an unknown method, level or class, and where the network's values are not finite.
    """
    if method not in CAM_METHODS:
        raise ExplanationError(f"unknown method {method!r}: one of {', '.join(CAM_METHODS)}")
    with explaining(model):
        layer = Layer(model, x, level)
        maps = CAM_METHODS[method].maps(layer, classes).detach().float()
        if not maps.isfinite().all():
            raise ExplanationError(f"{method}: the network's activations or gradients are not finite for these images")
        return to_unit(layer.to_pixels(maps.relu()))


def to_unit(maps: Tensor) -> Tensor:
    """Each map [B, K, *spatial] without its negative part, divided by its maximum; one without positive values is 0."""
    positive = maps.relu()
    top = positive.flatten(2).amax(-1).reshape(*maps.shape[:2], *[1] * (maps.ndim - 2))
    return torch.where(top > torch.finfo(maps.dtype).tiny, positive / top, 0.0)


def _of_gradients(combine: Callable[[Tensor, Tensor], Tensor]) -> Maps:
    """A method that needs activations and one class's gradients, [B, C, *cells] both, to give [B, *cells]."""

    def maps(layer: Layer, classes: Sequence[int]) -> Tensor:
        return torch.stack([combine(layer.activations, g) for g in layer.gradients(classes)], dim=1)

    return maps


def _spatial_axes(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Σ_k w_k A_k with w_k the mean of ∂y/∂A_k over the cells."""
    return (gradients.mean(_spatial_axes(gradients), keepdim=True) * activations).sum(1)


def _grad_cam_plus_plus(activations: Tensor, gradients: Tensor) -> Tensor:
    """Σ_k w_k A_k with w_k = Σ_cells α g⁺, α = g² / (2 g² + ΣA_k g³) = 1 / (2 + ΣA_k g), g = ∂y/∂A_k.

    The shorter form needs no small constant against 0/0, which would outweigh small gradients. The paper has maps
    behind a ReLU; of maps with negative values the positive ones are summed, else α has a pole.
    """
    total = activations.relu().sum(_spatial_axes(activations), keepdim=True)
    rising = gradients.relu()
    weights = (rising / (2 + total * rising)).sum(_spatial_axes(gradients), keepdim=True)
    return (weights * activations).sum(1)


def _layer_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Σ_k g⁺ A_k: each cell has its own weight."""
    return (gradients.relu() * activations).sum(1)


def _score_cam(layer: Layer, classes: Sequence[int]) -> Tensor:
    """Σ_k w_k A_k with w the softmax over channels of the logit for x · A_k, A_k scaled to [0, 1] and to x's size.

    No gradients, but as many forward passes as the map has channels. The logit of an empty image, which the paper
    subtracts, is the same for all channels and falls out of the softmax.
    """
    with torch.no_grad():
        return torch.stack([_score_cam_of_one(layer, i, classes) for i in range(len(layer.x))])


def _score_cam_of_one(layer: Layer, i: int, classes: Sequence[int]) -> Tensor:
    activations = layer.activations[i]
    logits = torch.cat(
        [class_logits(layer.model, layer.x[i] * _masks(layer, part)) for part in activations.split(SCORE_BATCH)]
    )
    weights = logits[:, check_classes(classes, logits.shape[1])].softmax(0)
    return torch.einsum("ck,c...->k...", weights, activations)


def _masks(layer: Layer, activations: Tensor) -> Tensor:
    """[C, *cells] → [C, 1, *spatial] in [0, 1] a channel; a constant channel hides everything."""
    masks = layer.to_pixels(activations)
    axes = tuple(range(1, masks.ndim))
    low, high = masks.amin(axes, keepdim=True), masks.amax(axes, keepdim=True)
    return torch.where(high > low, (masks - low) / (high - low), 0.0)[:, None]


def _eigen_cam(layer: Layer, classes: Sequence[int]) -> Tensor:
    """A v₁, with v₁ the first right singular vector of A [cells, C]; the same map for every class.

    Singular vectors have no sign: the one is taken whose map has a positive sum. Not centred, as in the paper;
    pytorch-grad-cam subtracts each channel's mean and leaves the sign to chance.
    """
    activations = layer.activations.float()
    flat = activations.flatten(2).transpose(1, 2)
    first = torch.linalg.svd(flat, full_matrices=False).Vh[:, 0]
    maps = torch.einsum("bnc,bc->bn", flat, first)
    maps = maps * torch.where(maps.sum(1, keepdim=True) < 0, -1.0, 1.0)
    return maps.reshape(len(maps), 1, *activations.shape[2:]).repeat_interleave(len(classes), dim=1)


CAM_METHODS: dict[str, CamMethod] = {
    "grad_cam": CamMethod(_of_gradients(_grad_cam), "Selvaraju et al., ICCV 2017, arXiv:1610.02391"),
    "grad_cam_plus_plus": CamMethod(
        _of_gradients(_grad_cam_plus_plus), "Chattopadhay et al., WACV 2018, arXiv:1710.11063"
    ),
    "layer_cam": CamMethod(_of_gradients(_layer_cam), "Jiang et al., IEEE TIP 30 (2021)"),
    "score_cam": CamMethod(_score_cam, "Wang et al., CVPR Workshops 2020, arXiv:1910.01279"),
    "eigen_cam": CamMethod(_eigen_cam, "Muhammad & Yeasin, IJCNN 2020, arXiv:2008.00299", class_specific=False),
}
