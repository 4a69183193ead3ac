"""What goes into an exported file: a network in eval mode with probabilities at its end."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from utils.batch import Logits
from utils.evaluation_mode import evaluating

INPUT = "image"
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class NetworkInput(NamedTuple):
    """What a file takes under a name: [B, *shape]."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


class Exportable(nn.Module):
    """A network with its last step: logits → float32 [B, K], or that and [B, G] of coarse classes.

    p = sigmoid(slope · logit + intercept), or the softmax of the same line where classes are exclusive, with one slope
    and intercept per class; coarse classes, which nothing calibrates, have their plain sigmoid. Fine classes come
    first.

    network: gives logits [B, K], or (coarse, fine) logits. logits: give these as they are instead.
    slopes, intercepts: K numbers each, None: 1 and 0.
    """

    slopes: Tensor | None
    intercepts: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        exclusive: bool = False,
        logits: bool = False,
        slopes: Sequence[float] | None = None,
        intercepts: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.exclusive, self.gives_logits = network, exclusive, logits
        self.dtype = torch.float32
        for name, values in (("slopes", slopes), ("intercepts", intercepts)):
            self.register_buffer(name, None if values is None else torch.tensor(values, dtype=torch.float32))
        self.eval()

    def inputs(self, image_shape: Sequence[int]) -> tuple[NetworkInput, ...]:
        """What `forward` takes, in its order. image_shape: (C, *spatial)."""
        raise NotImplementedError

    def input_names(self) -> list[str]:
        """Of `inputs`."""
        return [one.name for one in self.inputs(())]

    def _outputs(self, outputs: object) -> Tensor | tuple[Tensor, Tensor]:
        """From what the network returns."""
        coarse, fine = Logits.of(outputs)
        last = self._last(fine.float())
        if coarse is None:
            return last
        return last, coarse.float() if self.gives_logits else coarse.float().sigmoid()

    def in_precision(self, precision: str) -> Self:
        """Itself in fp32, else a copy whose network computes in a half type; what is before and behind is float32."""
        if precision == "fp32":
            return self
        copied = copy.deepcopy(self)
        copied.dtype = PRECISIONS[precision]
        copied.network.to(copied.dtype)
        return copied

    def output_names(self) -> list[str]:
        """What an exported file calls its outputs; a coarse one is there where the network has one."""
        kind = "logits" if self.gives_logits else "probabilities"
        return [kind, f"coarse_{kind}"]

    def _last(self, logits: Tensor) -> Tensor:
        if self.gives_logits:
            return logits
        line = logits if self.slopes is None else logits * self.slopes
        line = line if self.intercepts is None else line + self.intercepts
        return line.softmax(dim=1) if self.exclusive else line.sigmoid()


class ExportedNetwork(Exportable):
    """Images in, probabilities out: float32 [B, C, *spatial]; see Exportable."""

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self._outputs(self.network(image.to(self.dtype)))

    def inputs(self, image_shape: Sequence[int]) -> tuple[NetworkInput, ...]:
        """See Exportable."""
        return (NetworkInput(INPUT, tuple(image_shape)),)


@contextmanager
def ready_for_export(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode and its attention is written out as products and a softmax; then as it was.

    Eval mode ends dropout, stochastic depth and gradient checkpointing. timm's attention modules have a switch,
    `fused_attn`, for torch's fused function, which the ONNX exporter does not take with every kind of mask.
    """
    fused = [module for module in model.modules() if getattr(module, "fused_attn", False) is True]
    for module in fused:
        module.fused_attn = False  # type: ignore[assignment]
    try:
        with evaluating(model):
            yield
    finally:
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]
