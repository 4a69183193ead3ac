"""Heatmaps over all views of a study, as one PNG file for people."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configs.errors import ExplanationError
from explain.figure_labels import file_stem, fit, image_stem
from explain.overlay import (
    Box,
    check_heatmap,
    cover,
    draw_legend,
    draw_regions,
    empty_note,
    headline,
    overlay_figure,
    save_volume_overlay,
    show_image,
    volume_figure,
)
from utils.figures import new_figure, write_figure
from utils.fonts import drawable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_COLUMNS = 4
# Of a panel, in inches, and of its title, in columns of a Latin letter.
SIDE, FEW_SIDE = 3.0, 4.0
TITLE_WIDTH = 28
CUBES = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class DrawnView:
    """name: 'frontal', 'lateral 2'. value: what the table calls it, 'PA'. image: [H, W] or [H, W, 3] uint8. heatmap:
    [H, W] in [0, 1]. weight: of the view in the study, None where nothing weighs views. boxes, mask [H, W]: annotated.
    """

    name: str
    value: str
    image: np.ndarray
    heatmap: np.ndarray
    weight: float | None = None
    boxes: Sequence[Box] = ()
    mask: np.ndarray | None = None

    @property
    def title(self) -> str:
        """In one line."""
        known = f" ({self.value})" if self.value and self.value != self.name else ""
        name = fit(drawable(f"{self.name}{known}"), TITLE_WIDTH)
        return name if self.weight is None else f"{name}, weight {self.weight:.2f}"


def save_study_overlay(
    path: str | os.PathLike[str],
    views: Sequence[DrawnView],
    *,
    class_name: str,
    probability: float | None,
    title: str = "",
) -> None:
    """A column for each view that is there: the image in grey, below it the same under its heatmap.

    Written whole or not at all. Raises ExplanationError without a view, and for shapes that do not fit.
    """
    write_figure(study_figure(views, class_name, probability, title), path)


def study_figure(views: Sequence[DrawnView], class_name: str, probability: float | None, title: str = "") -> Figure:
    """See `save_study_overlay`. One view: image and heatmap side by side; more than MAX_COLUMNS: further rows."""
    if not views:
        raise ExplanationError("this study has no view that could be drawn")
    for view in views:
        check_heatmap(view.image.shape[:2], view.heatmap)
    single, columns = len(views) == 1, min(len(views), MAX_COLUMNS)
    bands = -(-len(views) // MAX_COLUMNS)
    side = FEW_SIDE if len(views) <= 2 else SIDE
    tallest = min(max(view.image.shape[0] / view.image.shape[1] for view in views), 1.4)
    rows, across = (1, 2) if single else (2 * bands, columns)
    figure = new_figure(side * across + 1.3, side * tallest * rows + 0.3 * rows + 0.95)
    grid = figure.subplots(rows, across, squeeze=False)
    for axes in grid.ravel():
        axes.set_visible(False)
    for number, view in enumerate(views):
        band, column = divmod(number, MAX_COLUMNS)
        plain, covered = (grid[0, 0], grid[0, 1]) if single else (grid[2 * band, column], grid[2 * band + 1, column])
        for axes in (plain, covered):
            axes.set_visible(True)
            axes.set_anchor("N")
            show_image(axes, view.image)
            draw_regions(axes, view.boxes, view.mask)
        mappable = cover(covered, view.heatmap)
        plain.set_title(view.title, fontsize=9, parse_math=False)
        covered.set_title(empty_note(view.heatmap) or "heatmap", fontsize=9)
    draw_legend(figure, mappable, list(grid.ravel()))
    headline(figure, class_name, probability, title)
    return figure


def save_views(
    folder: Path,
    study: str,
    views: Sequence[DrawnView],
    *,
    class_name: str,
    probability: float | None,
    title: str,
    spacing: Sequence[float] | None = None,
) -> None:
    """Views of a study in one file; volumes [D, H, W] in one each, as each has six panels.

    spacing: of volumes, see `save_volume_overlay`.
    """
    stem = file_stem(class_name, study)
    if views and views[0].heatmap.ndim == 2:
        path = folder / f"{stem}.png"
        save_study_overlay(path, views, class_name=class_name, probability=probability, title=title)
        return
    for view in views:
        save_volume_overlay(
            folder / f"{stem}_{file_stem(view.name)}.png",
            view.image,
            view.heatmap,
            class_name=class_name,
            probability=probability,
            spacing=spacing or CUBES,
            title=f"{view.title} of {title}",
        )


def save_alone(
    folder: Path,
    image: str,
    views: Sequence[DrawnView],
    *,
    class_name: str,
    probability: float | None,
    title: str,
    spacing: Sequence[float] | None = None,
) -> None:
    """An image or a volume that is no view of a study."""
    (one,), path, what = views, folder / f"{image_stem(class_name, image)}.png", (class_name, probability)
    if one.heatmap.ndim == 3:
        figure = volume_figure(one.image, one.heatmap, *what, spacing or CUBES, title)
    else:
        figure = overlay_figure(one.image, one.heatmap, *what, one.boxes, one.mask, title)
    write_figure(figure, path)
