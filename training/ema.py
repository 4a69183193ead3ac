"""Moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """shadow ← d · shadow + (1 − d) · model, for parameters and floating buffers; other buffers are copied.

    d = min(decay, (1 + n) / (10 + n)) after n updates, so that the first weights are soon forgotten
    (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.shadow = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step_applied: Tensor) -> None:
        """After an optimizer step. made: a bool on the device; where it is false, only `updates` changes."""
        self.updates += 1
        fraction = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in model.state_dict().items():
            shadow = self.shadow[name]
            if tensor.is_floating_point():
                shadow.lerp_(tensor, fraction * step_applied.to(tensor.dtype))
            else:
                torch.where(step_applied, tensor, shadow, out=shadow)

    def step_back(self) -> None:
        """The optimizer step that `update` was last told of was not made."""
        self.updates -= 1

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """The model has the averaged weights inside, its own again afterwards."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.shadow)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "shadow": dict(self.shadow)}

    def load_state_dict(self, state: Mapping) -> None:
        shadow: Mapping[str, Tensor] = state["shadow"]
        if shadow.keys() != self.shadow.keys():
            raise ValueError("the moving average belongs to another model")
        self.updates = state["updates"]
        for name, tensor in shadow.items():
            self.shadow[name].copy_(tensor)
