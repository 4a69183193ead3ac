"""One view of a study as a network of single images, so that every method of heatmaps works on it as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from configs.errors import ExplanationError
from explain.methods import explain
from explain.network import Fusion, Level, PyramidBackbone, PyramidModel, explaining, ordinary
from utils.batch import Inputs, Logits


class StudyHead(Protocol):
    """Fused maps of the images of some studies → logits."""

    def __call__(self, fused: Tensor, inputs: Inputs, /) -> Tensor | Logits: ...


@runtime_checkable
class StudyModel(Protocol):
    """HybridMedNet's promise for studies: see there."""

    @property
    def backbone(self) -> PyramidBackbone: ...

    @property
    def view_backbones(self) -> Sequence[PyramidBackbone]: ...

    @property
    def fusion(self) -> Fusion: ...

    @property
    def classifier(self) -> StudyHead: ...

    def forward_features(self, x: Tensor, inputs: Inputs, /) -> list[Tensor]: ...

    def forward_fused(self, features: list[Tensor]) -> Tensor: ...


class ViewOfStudy(nn.Module):
    """The PyramidModel [n, C, *spatial] → logits [n, K]: n studies that differ in one view, all else as it is.

    So a map is of what this view does to the study's own output: its gradient goes through what joins the views and
    adds the table. inputs: one study. view: the slot of a view that is there. The other views are looked at once.
    """

    def __init__(self, model: StudyModel, inputs: Inputs, view: int, fused: Tensor | None = None) -> None:
        """fused: of all views that are there, as `fused_maps` gives them; None: they are looked at now."""
        super().__init__()
        if inputs.studies != 1 or not bool(inputs.view_mask[0, view]):
            raise ExplanationError(f"view {view} is not one of the views that this study has")
        assert isinstance(model, nn.Module)
        with torch.inference_mode(False):
            self.model, self.inputs = model, Inputs(*map(ordinary, inputs))
            self._fused = fused_maps(model, inputs) if fused is None else fused
            self.view = int(inputs.view_mask[0, :view].sum())
            kind = int(inputs.view_kind[0, view])
            self._of_view = Inputs.of_images(self.image)._replace(view_kind=self.inputs.view_kind[:, view : view + 1])
        self.backbone = model.backbone if kind == 0 or not model.view_backbones else model.view_backbones[kind - 1]
        self.fusion = model.fusion

    @property
    def image(self) -> Tensor:
        """The view itself, [1, C, *spatial]."""
        return self.inputs.image[self.view : self.view + 1]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Of images in this view's place."""
        rows = [tensor.expand(x.shape[0], -1) for tensor in self._of_view[1:]]
        return self.model.forward_features(x, Inputs(x, *rows))

    def forward_fused(self, features: list[Tensor]) -> Tensor:
        """See PyramidModel."""
        return self.model.forward_fused(features)

    def forward_head(self, features: list[Tensor]) -> Tensor:
        """See PyramidModel."""
        return self.classifier(self.forward_fused(features))

    def classifier(self, fused: Tensor) -> Tensor:
        """This view's fused maps [n, C, *cells] among those of the other views → [n, K]."""
        n, at = fused.shape[0], self.view
        before, after = (part.expand(n, *part.shape) for part in (self._fused[:at], self._fused[at + 1 :]))
        together = torch.cat([before, fused[:, None], after], dim=1).flatten(0, 1)
        rows = [tensor.expand(n, -1) for tensor in self.inputs[1:]]
        return Logits.of(self.model.classifier(together, Inputs(together, *rows))).fine


def fused_maps(model: StudyModel, inputs: Inputs) -> Tensor:
    """The fused maps [M, C, *cells] of a study's images."""
    with explaining(model, gradients=False):
        image = ordinary(inputs.image)
        return model.forward_fused(model.forward_features(image, Inputs(image, *map(ordinary, inputs[1:]))))


def study_maps(
    model: StudyModel, inputs: Inputs, classes: Sequence[int], method: str = "grad_cam", level: Level = "auto"
) -> dict[int, Tensor]:
    """Which places of each view speak for each class: view's slot → float32 [len(classes), *spatial] in [0, 1].

    inputs: one study, on the model's device; views that are not there have no map. The others are as they are while
    one is explained, and the table too. Raises ExplanationError as `explain.methods.explain` does.
    """
    found, fused = {}, fused_maps(model, inputs) if bool(inputs.view_mask.any()) else None
    for view in inputs.view_mask[0].nonzero()[:, 0].tolist():
        alone = ViewOfStudy(model, inputs, view, fused)
        found[view] = explain(cast(PyramidModel, alone), alone.image, classes, method, level)[0]
    return found
