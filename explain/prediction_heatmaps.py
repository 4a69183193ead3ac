"""Overlays of what one or several models found in an image, for people who read predictions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from configs.errors import ExplanationError
from explain.geometry import onto_image
from explain.methods import METHODS, explain
from explain.network import PyramidModel
from explain.overlay import save_overlay, save_volume_overlay

FOLDER = "heatmaps"


class Member(Protocol):
    """One of an Ensemble: its model, and which of the inputs is its own."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def input(self) -> int: ...


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
        (self.folder / FOLDER).mkdir(parents=True, exist_ok=True)
        paths = [f"{FOLDER}/{number:05d}_{rank}_{_plain(label)}.png" for rank, (label, _) in enumerate(labels, 1)]
        for path, heatmap, (label, probability) in zip(paths, maps, labels):
            file, p = self.folder / path, probability
            if maps.ndim == 4:
                save_volume_overlay(
                    file, displayed, heatmap, class_name=label, probability=p, spacing=spacing, title=title
                )
            else:
                save_overlay(file, displayed, heatmap, class_name=label, probability=p, title=title)
        return tuple(paths)

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
