"""Training for int8: forward passes see weights and inputs rounded as an int8 network rounds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from utils.batch import Inputs, takes_inputs
from utils.gradient_checkpointing.recomputation import again_in_recomputation

# Functions with (input, weight, …), and the axis of the weight that counts outputs.
_OUTPUT_AXIS = {
    F.linear: 0,
    F.conv1d: 0,
    F.conv2d: 0,
    F.conv3d: 0,
    F.conv_transpose1d: 1,
    F.conv_transpose2d: 1,
    F.conv_transpose3d: 1,
}


def round_weight(weight: Tensor, axis: int = 0) -> Tensor:
    """w → s · round(w / s) in −127…127, s = max |w| / 127 of each slice along `axis`; same shape and type.

    Symmetric int8 of each output channel, as onnxruntime has weights. The gradient goes straight through (Bengio et
    al. 2013, arXiv:1308.3432): nothing is clipped, so it is that of the identity. The steps s are no part of it.
    """
    values = weight.float()
    other_axes = [i for i in range(weight.ndim) if i != axis]
    scale = values.detach().abs().amax(other_axes).clamp(min=torch.finfo(torch.float32).tiny * 127) / 127
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(values, scale, zero, axis, -127, 127).to(weight.dtype)


def round_input(x: Tensor) -> Tensor:
    """x → s · (clip(round(x / s) + z, 0, 255) − z), the whole tensor's range and 0 on 256 steps; same shape and type.

    Asymmetric uint8 a tensor, as onnxruntime has activations (Jacob et al. 2018, arXiv:1712.05877); z is an integer, so
    that 0 stays 0. The range is that of this very tensor: nothing is remembered between steps, and the state dict stays
    as it is. Straight-through gradient, zero for what the rounding of z puts outside.
    """
    values = x.float()
    low, high = values.detach().aminmax()
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny * 255)
    zero = (-low / scale).round().clamp(0, 255).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, 255).to(x.dtype)


class Int8Rounding(TorchFunctionMode):
    """Inside, convolutions and linear layers compute with `round_input` of their input and `round_weight` of their
    weight, whichever module or function calls them; biases, and all else, are unchanged."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),  # Any: torch hands over the arguments of each of its functions
        kwargs: Mapping[str, Any] | None = None,  # Any: likewise
    ) -> object:
        kwargs = dict(kwargs or {})
        axis = _OUTPUT_AXIS.get(func)
        if axis is None:
            return func(*args, **kwargs)
        names = ("input", "weight")
        x, weight = (args[i] if len(args) > i else kwargs.pop(name) for i, name in enumerate(names))
        return func(round_input(x), round_weight(weight, axis), *args[2:], **kwargs)


class QuantizationAware:
    """model(x) in training, rounded as an int8 network would; a callable, not a module: names of weights stay.

    What gradient checkpointing computes again in the backward pass is rounded as well.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def takes_inputs(self) -> bool:
        """As the model declares it; see `utils.batch.call_model`."""
        return takes_inputs(self.model)

    def __call__(self, *inputs: Tensor | Inputs) -> object:
        with again_in_recomputation(Int8Rounding), Int8Rounding():
            return self.model(*inputs)
