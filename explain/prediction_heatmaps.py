"""Overlays of what one or several models found in a picture, for people who read predictions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.errors import ExplanationError
from explain.geometry import onto_picture
from explain.methods import METHODS, explain
from explain.overlay import save_overlay, save_volume_overlay

FOLDER = "heatmaps"


class PredictionHeatmaps:
    """Draws into `folder`/heatmaps.

    models, orders: as in an Ensemble: orders[m][k] is where model m has class k. inputs: which input is whose.
    Raises ExplanationError for an unknown method.
    """

    def __init__(
        self, folder: Path, method: str, models: Sequence[Any], inputs: Sequence[int], orders: Sequence[Sequence[int]]
    ) -> None:
        if method not in METHODS:
            raise ExplanationError(f"unknown method {method!r}: one of {', '.join(METHODS)}")
        self.folder, self.method = folder, method
        self.members = list(zip(models, inputs, orders))

    def maps(self, inputs: Sequence[Tensor], classes: Sequence[int]) -> np.ndarray:
        """An input [1, C, *spatial] for each preprocessing → float32 [len(classes), *spatial of the first member's].

        The mean of the members' maps. Raises ExplanationError where the members' inputs differ in size.
        """
        found = []
        for model, position, order in self.members:
            x = inputs[position].to(next(model.parameters()).device)
            found.append(explain(model, x, [order[k] for k in classes], self.method)[0].cpu())
        if len({one.shape for one in found}) > 1:
            raise ExplanationError("--heatmaps: the models have inputs of different sizes; draw them one by one")
        return torch.stack(found).mean(0).numpy()

    def draw(
        self,
        number: int,
        name: str,
        maps: np.ndarray,
        shown: np.ndarray,
        mode: Any,
        labels: Sequence[tuple[str, float]],
    ) -> tuple[str, ...]:
        """Write an overlay for each (class name, probability); their paths relative to `folder`.

        number: of the row, which keeps names apart. shown: uint8 [H, W] or [H, W, 3], the original, with `mode` that of
        data.transforms.resize; or a volume [D, H, W] on the model's grid with `mode` its spacing in mm.
        """
        (self.folder / FOLDER).mkdir(parents=True, exist_ok=True)
        paths = []
        for heatmap, (label, probability) in zip(maps, labels):
            path = f"{FOLDER}/{number:05d}_{_plain(Path(name).stem)}_{_plain(label)}.png"
            said: Any = {"class_name": label, "probability": probability, "title": name}
            if heatmap.ndim == 3:
                save_volume_overlay(self.folder / path, shown, heatmap, spacing=mode, **said)
            else:
                save_overlay(self.folder / path, shown, onto_picture(heatmap, shown.shape[:2], mode), **said)
            paths.append(path)
        return tuple(paths)


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)[:60]
