"""Overlays of what one or several models found in an image, for people who read predictions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor, nn

from configs.errors import ExplanationError
from explain.geometry import onto_image
from explain.methods import METHODS, explain
from explain.network import PyramidModel
from explain.overlay import save_overlay, save_volume_overlay
from explain.study_overlay import DrawnView, save_study_overlay
from explain.study_view import StudyModel, study_maps
from utils.batch import Inputs

FOLDER = "heatmaps"


class Member(Protocol):
    """One of an Ensemble: its model, and which of the inputs is its own."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def input(self) -> int: ...


class DrawnStudy(NamedTuple):
    """One study as one member sees it: [1 study], and its views: (name, what the table calls it, pixels as they are,
    None where they cannot be read).
    """

    inputs: Inputs
    views: Sequence[tuple[str, str, np.ndarray | None]]


class PredictionHeatmaps:
    """Draws into `folder`/heatmaps the mean of the members' maps.

    members, orders: of an Ensemble: a member's model and which input is its own; orders[m][k]: where it has class k.
    modes: for each input how images are resized for it, see data.transforms.images.resize.
    Raises ExplanationError for an unknown method.
    """

    def __init__(
        self,
        folder: Path,
        method: str,
        members: Sequence[Member],
        orders: Sequence[Sequence[int]],
        modes: Sequence[str],
    ) -> None:
        if method not in METHODS:
            raise ExplanationError(f"unknown method {method!r}: one of {', '.join(METHODS)}")
        self.folder, self.method, self.members, self.orders, self.modes = folder, method, members, orders, modes

    def of_image(self, image: np.ndarray, inputs: Sequence[Tensor], classes: Sequence[int]) -> np.ndarray:
        """Maps in the pixels of the original: float32 [len(classes), H, W] in [0, 1].

        image: [H, W] or [H, W, 3]. inputs: [1, C, h, w] of it for each preprocessing.
        """
        size = image.shape[:2]
        found = [
            [onto_image(one, size, self.modes[member.input]) for one in self._maps(member, order, inputs, classes)]
            for member, order in zip(self.members, self.orders)
        ]
        return np.asarray(np.mean(found, axis=0))

    def of_volume(self, inputs: Sequence[Tensor], classes: Sequence[int]) -> np.ndarray:
        """Maps on the models' grid: float32 [len(classes), D, H, W]. inputs: [1, C, D, H, W] for each preprocessing.

        Raises ExplanationError where the models' grids differ.
        """
        found = [self._maps(member, order, inputs, classes) for member, order in zip(self.members, self.orders)]
        if len(inputs) > 1:
            raise ExplanationError("--heatmaps: the models see volumes on different grids: draw them one by one")
        return np.asarray(np.mean(found, axis=0))

    def draw(
        self,
        number: int,
        title: str,
        displayed: np.ndarray,
        maps: np.ndarray,
        labels: Sequence[tuple[str, float]],
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> tuple[str, ...]:
        """Write an overlay for each (class name, probability); their paths relative to `folder`.

        number: of the row, by which files are named. displayed: uint8 [H, W] or [H, W, 3], or a volume [D, H, W], for
        which `spacing` (z, y, x) is given too.
        """
        paths = self._paths(number, labels)
        for path, heatmap, (label, probability) in zip(paths, maps, labels):
            file, p = self.folder / path, probability
            if maps.ndim == 4:
                save_volume_overlay(
                    file, displayed, heatmap, class_name=label, probability=p, spacing=spacing, title=title
                )
            else:
                save_overlay(file, displayed, heatmap, class_name=label, probability=p, title=title)
        return paths

    def draw_study(
        self,
        number: int,
        title: str,
        studies: Sequence[DrawnStudy],
        classes: Sequence[int],
        labels: Sequence[tuple[str, float]],
    ) -> tuple[str, ...]:
        """The same of a study of images, all its views in each overlay. studies: as each member sees it."""
        found = [self._study_maps(*of) for of in zip(self.members, self.orders, studies, [classes] * len(studies))]
        paths, views = self._paths(number, labels), studies[0].views
        for k, (path, (label, probability)) in enumerate(zip(paths, labels)):
            drawn = []
            for slot, (name, value, pixels) in enumerate(views):
                if pixels is not None:
                    heatmap = np.asarray(np.mean([maps[slot][k] for maps in found], axis=0))
                    drawn.append(DrawnView(name, value, pixels, heatmap))
            save_study_overlay(self.folder / path, drawn, class_name=label, probability=probability, title=title)
        return paths

    def _study_maps(
        self, member: Member, order: Sequence[int], study: DrawnStudy, classes: Sequence[int]
    ) -> dict[int, list[np.ndarray]]:
        """View's slot → a map for each class, in the pixels of the original."""
        model = member.model
        assert isinstance(model, StudyModel), "studies are asked of networks of this program"
        inputs = study.inputs.to(next(member.model.parameters()).device)
        found, mode = {}, self.modes[member.input]
        for slot, maps in study_maps(model, inputs, [order[k] for k in classes], self.method).items():
            pixels = study.views[slot][2]
            assert pixels is not None, "a view that was read"
            found[slot] = [onto_image(one, pixels.shape[:2], mode) for one in maps.cpu().numpy()]
        return found

    def _paths(self, number: int, labels: Sequence[tuple[str, float]]) -> tuple[str, ...]:
        (self.folder / FOLDER).mkdir(parents=True, exist_ok=True)
        return tuple(f"{FOLDER}/{number:05d}_{rank}_{_plain(label)}.png" for rank, (label, _) in enumerate(labels, 1))

    def _maps(
        self, member: Member, order: Sequence[int], inputs: Sequence[Tensor], classes: Sequence[int]
    ) -> np.ndarray:
        model = member.model
        assert isinstance(model, PyramidModel), "heatmaps are of networks of this program"
        x = inputs[member.input].to(next(model.parameters()).device)
        return explain(model, x, [order[k] for k in classes], self.method)[0].cpu().numpy()


def _plain(text: str) -> str:
    """What of a class's name may stand in a file's."""
    return re.sub(r"[^\w.-]+", "_", text)[:60]
