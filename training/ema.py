"""Moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

import torch
from torch import Tensor, nn

from utils.listener import StateDict


class AverageState(TypedDict):
    """What a checkpoint holds of a moving average."""

    updates: int
    shadow: StateDict


@contextmanager
def weights_applied(model: nn.Module, weights: StateDict) -> Iterator[None]:
    """The model has these weights and buffers inside, its own again afterwards, also after an exception.

    Takes one copy of the model's own. Raises RuntimeError for weights of another model.
    """
    own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    try:
        model.load_state_dict(weights)
        yield
    finally:
        model.load_state_dict(own)


class ExponentialMovingAverage:
    """shadow ← d · shadow + (1 − d) · model, for parameters and floating buffers; other buffers are copied.

    d = min(decay, (1 + n) / (10 + n)) at the n-th optimizer step, skipped ones counted, so that the first weights are
    soon forgotten (as in TensorFlow's ExponentialMovingAverage). updates: n.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.shadow = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def restart(self, model: nn.Module) -> None:
        """Begin again with a model's weights."""
        self.load_state_dict({"updates": 0, "shadow": model.state_dict()})

    @torch.no_grad()
    def update(self, model: nn.Module, step_applied: Tensor) -> None:
        """After an optimizer step. step_applied: a bool on the device; where it is false, only `updates` changes."""
        # Skipped steps count too: the host learns of them later, and the decay must not depend on when.
        self.updates += 1
        fraction = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in model.state_dict().items():
            shadow = self.shadow[name]
            if tensor.is_floating_point():
                shadow.lerp_(tensor, fraction * step_applied.to(tensor.dtype))
            else:
                torch.where(step_applied, tensor, shadow, out=shadow)

    def state_dict(self) -> AverageState:
        return {"updates": self.updates, "shadow": dict(self.shadow)}

    @torch.no_grad()
    def load_state_dict(self, state: AverageState) -> None:
        shadow = state["shadow"]
        if shadow.keys() != self.shadow.keys():
            raise ValueError("the moving average belongs to another model")
        self.updates = state["updates"]
        for name, tensor in shadow.items():
            self.shadow[name].copy_(tensor)
