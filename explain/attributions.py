"""Attributions to pixels by captum: Integrated Gradients, occlusion, SmoothGrad. Images and volumes alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from configs.errors import ExplanationError
from explain.cam import to_unit
from explain.network import Classifier, Level, check_classes, class_logits, explaining, ordinary
from utils.seed import seeded

# Images in a forward pass, so that memory does not grow with the number of steps or samples.
INTERNAL_BATCH = 16
INTEGRATION_STEPS = 50
SMOOTHING_SAMPLES, NOISE_LEVEL = 25, 0.15
# The window's side and step as parts of the image's.
WINDOW, WINDOW_STEP = 1 / 6, 1 / 12

Raw = Callable[[Callable[[Tensor], Tensor], Tensor, int], Tensor]


def attribution_maps(
    model: Classifier, x: Tensor, classes: Sequence[int], method: str = "integrated_gradients", level: Level = "auto"
) -> Tensor:
    """How much pixels speak for each class: [B, C, *spatial] → float32 [B, len(classes), *spatial] in [0, 1].

    As `class_activation_maps`, with a key of ATTRIBUTION_METHODS. These look at the input itself: level must be 'auto'.
    The signed attributions are summed over the channels, cut at zero and divided by their maximum.
    Deterministic: independent of the batch and of the caller's random state, which is not touched.
    Raises ExplanationError for an unknown method or class, another level, or values that are not finite.
    """
    if level != "auto":
        raise ExplanationError(f"{method} explains the input itself: leave level at 'auto', it is {level!r}")
    maps = raw_attributions(model, x, classes, method).sum(2)
    if not maps.isfinite().all():
        raise ExplanationError(f"{method}: the network's output or gradients are not finite for these images")
    return to_unit(maps)


def raw_attributions(model: Classifier, x: Tensor, classes: Sequence[int], method: str) -> Tensor:
    """The signed attributions of each input value: [B, C, *spatial] → float32 [B, len(classes), C, *spatial]."""
    if method not in ATTRIBUTION_METHODS:
        raise ExplanationError(f"unknown method {method!r}: one of {', '.join(ATTRIBUTION_METHODS)}")
    raw = ATTRIBUTION_METHODS[method]

    def logits(images: Tensor) -> Tensor:
        return class_logits(model, images)

    with explaining(model):
        x = ordinary(x)
        with torch.no_grad():
            classes = check_classes(classes, logits(x[:1]).shape[1])
        # Image by image: captum's noise and its steps are then those of a batch of one.
        rows = [torch.stack([raw(logits, one, k)[0] for k in classes]) for one in x.split(1)]
        return torch.stack(rows).detach().float()


def _integrated_gradients(logits: Callable[[Tensor], Tensor], x: Tensor, k: int) -> Tensor:
    """(x − x₀) ∫ ∂y/∂x (x₀ + t (x − x₀)) dt; the attributions add up to y(x) − y(x₀).

    Sundararajan et al., ICML 2017, arXiv:1703.01365. x₀ = 0: in normalised images the mean of the training data.
    """
    from captum.attr import IntegratedGradients

    attributions: Tensor = IntegratedGradients(logits).attribute(
        x, 0.0, target=k, n_steps=INTEGRATION_STEPS, internal_batch_size=INTERNAL_BATCH
    )
    return attributions


def _occlusion(logits: Callable[[Tensor], Tensor], x: Tensor, k: int) -> Tensor:
    """How much y falls when a window is set to 0, the mean over the windows that cover a pixel.

    Zeiler & Fergus, ECCV 2014, arXiv:1311.2901.
    """
    from captum.attr import Occlusion

    window = tuple(max(round(side * WINDOW), 1) for side in x.shape[2:])
    step = tuple(max(round(side * WINDOW_STEP), 1) for side in x.shape[2:])
    channels = x.shape[1]
    with torch.no_grad():
        attributions: Tensor = Occlusion(logits).attribute(
            x, (channels, *window), (channels, *step), 0.0, target=k, perturbations_per_eval=INTERNAL_BATCH
        )
    return attributions


def _smooth_grad(logits: Callable[[Tensor], Tensor], x: Tensor, k: int) -> Tensor:
    """The mean of |∂y/∂x| over noisy copies of x; noise of 15 % of the image's range.

    Smilkov et al. 2017, arXiv:1706.03825. Drawn from its own generator: the caller's is not advanced.
    """
    from captum.attr import NoiseTunnel, Saliency

    spread = NOISE_LEVEL * float(x.max() - x.min())
    with seeded(0, x.device):
        attributions: Tensor = NoiseTunnel(Saliency(logits)).attribute(
            x,
            nt_type="smoothgrad",
            nt_samples=SMOOTHING_SAMPLES,
            nt_samples_batch_size=INTERNAL_BATCH,
            stdevs=spread,
            target=k,
            abs=True,
        )
    return attributions


ATTRIBUTION_METHODS: dict[str, Raw] = {
    "integrated_gradients": _integrated_gradients,
    "occlusion": _occlusion,
    "smooth_grad": _smooth_grad,
}
