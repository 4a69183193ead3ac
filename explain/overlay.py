"""Heatmaps over images, as PNG files for people. matplotlib is imported where it is used, without pyplot."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from configs.errors import ExplanationError
from utils.figures import new_figure, write_figure
from utils.fonts import drawable, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# Perceptually uniform, and no grey in it: what is coloured is the map's, what is grey the image's.
COLOURS = "inferno"
# The map's opacity grows with its value up to this, so that the anatomy under small values can be seen.
OPACITY = 0.7
BOX_COLOUR = "#56B4E9"
LEGEND = "relative weight for the class\n(1: this map's maximum; faint where low)"

# (x, y, width, height) in pixels of the image, from its upper left corner
Box = Sequence[float]


def save_overlay(
    path: str | os.PathLike[str],
    image: np.ndarray,
    heatmap: np.ndarray,
    *,
    class_name: str,
    probability: float | None,
    boxes: Sequence[Box] = (),
    mask: np.ndarray | None = None,
    title: str = "",
) -> None:
    """The image in grey, and beside it the same under its heatmap, with a legend. Written whole or not at all.

    image: [H, W] or [H, W, 3] uint8. heatmap: [H, W] in [0, 1], in the image's pixels (`geometry.onto_image`
    brings it there). boxes, mask [H, W]: what was annotated, drawn on both. Raises ExplanationError for other shapes.
    """
    write_figure(overlay_figure(image, heatmap, class_name, probability, boxes, mask, title), path)


def overlay_figure(
    image: np.ndarray,
    heatmap: np.ndarray,
    class_name: str,
    probability: float | None,
    boxes: Sequence[Box] = (),
    mask: np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """See `save_overlay`."""
    check_heatmap(image.shape[:2], heatmap)
    height, width = image.shape[:2]
    side = 4.0 * min(1.0, width / height)
    figure = new_figure(2 * side + 1.3, side * height / width + 0.95)
    plain, covered = figure.subplots(1, 2)
    for axes in (plain, covered):
        show_image(axes, image)
        draw_regions(axes, boxes, mask)
    mappable = cover(covered, heatmap)
    plain.set_title("image" + (", annotated" if len(boxes) or mask is not None else ""), fontsize=9)
    covered.set_title(empty_note(heatmap) or "heatmap", fontsize=9)
    draw_legend(figure, mappable, [plain, covered])
    headline(figure, class_name, probability, title)
    return figure


def save_volume_overlay(
    path: str | os.PathLike[str],
    volume: np.ndarray,
    heatmap: np.ndarray,
    *,
    class_name: str,
    probability: float | None,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    title: str = "",
) -> None:
    """Three orthogonal slices through the heatmap's maximum: in grey above, under the heatmap below.

    volume, heatmap: [D, H, W], the latter in [0, 1]; axes from the feet up, front to back, the patient's right to left.
    spacing: of a voxel (z, y, x), in any one unit. Raises ExplanationError for other shapes.
    """
    write_figure(volume_figure(volume, heatmap, class_name, probability, spacing, title), path)


def volume_figure(
    volume: np.ndarray,
    heatmap: np.ndarray,
    class_name: str,
    probability: float | None,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    title: str = "",
) -> Figure:
    """See `save_volume_overlay`."""
    check_heatmap(volume.shape[:3], heatmap)
    peak = [int(i) for i in np.unravel_index(int(heatmap.argmax()), heatmap.shape)]
    figure = new_figure(9.6, 6.4)
    panels = figure.subplots(2, 3)
    low, high = np.percentile(volume, (0.5, 99.5))
    for axis, name in enumerate(("axial", "coronal", "sagittal")):
        grey, warm = (_slice(array, axis, peak[axis]) for array in (volume, heatmap))
        rows, columns = [spacing[i] for i in range(3) if i != axis]
        marks = _crosshair(peak, axis, heatmap.shape)
        for axes in panels[:, axis]:
            axes.imshow(grey, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=rows / columns)
            _bare(axes)
        image = cover(panels[1, axis], warm)
        for draw, position in zip((panels[1, axis].axhline, panels[1, axis].axvline), marks):
            draw(position, color="white", linewidth=0.5, alpha=0.6)
        panels[0, axis].set_title(f"{name}, slice {peak[axis] + 1} of {heatmap.shape[axis]}", fontsize=9)
    draw_legend(figure, image, list(panels.ravel()))
    headline(figure, class_name, probability, empty_note(heatmap) or title)
    return figure


def methods_figure(
    image: np.ndarray, heatmaps: dict[str, np.ndarray], headline: str, boxes: Sequence[Box] = ()
) -> Figure:
    """The image, then one panel a heatmap, side by side: at most five in a row."""
    count = len(heatmaps) + 1
    columns = min(5, count)
    rows = -(-count // columns)
    figure = new_figure(2.3 * columns + 0.8, 2.55 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[:count]:
        show_image(axes, image)
        draw_regions(axes, boxes, None)
    panels[0].set_title("image, annotated" if len(boxes) else "image", fontsize=9)
    for axes, (name, heatmap) in zip(panels[1:], heatmaps.items()):
        check_heatmap(image.shape[:2], heatmap)
        mappable = cover(axes, heatmap)
        axes.set_title(name.replace("_", " "), fontsize=9, parse_math=False)
    for axes in panels[count:]:
        axes.set_visible(False)
    draw_legend(figure, mappable, list(panels))
    figure.suptitle(headline, fontsize=11, parse_math=False)
    return figure


def check_heatmap(shape: Sequence[int], heatmap: np.ndarray) -> None:
    """ExplanationError for a heatmap of another shape than its image, or with values beyond [0, 1]."""
    if tuple(heatmap.shape) != tuple(shape):
        raise ExplanationError(f"a heatmap of {heatmap.shape} does not lie on an image of {tuple(shape)}")
    if not np.isfinite(heatmap).all() or heatmap.min() < 0 or heatmap.max() > 1 + 1e-6:
        raise ExplanationError(f"a heatmap must lie in [0, 1], this one is from {heatmap.min()} to {heatmap.max()}")


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])


def show_image(axes: Axes, image: np.ndarray) -> None:
    """[H, W] or [H, W, 3] uint8, without an axis."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="bilinear")
    _bare(axes)


def cover(axes: Axes, heatmap: np.ndarray) -> AxesImage:
    """A heatmap [H, W] in [0, 1] over what the axes show, the more opaque the higher it is."""
    opacity = OPACITY * np.clip(heatmap, 0, 1)
    return axes.imshow(heatmap, cmap=COLOURS, vmin=0, vmax=1, alpha=opacity, aspect=axes.get_aspect())


def draw_regions(axes: Axes, boxes: Sequence[Box], mask: np.ndarray | None) -> None:
    """The outlines of annotated boxes, in pixels, and of a mask [H, W]."""
    from matplotlib.patches import Rectangle

    for x, y, width, height in boxes:
        # A pixel's centre is its index, so that the box begins half a pixel before its first one.
        position = (x - 0.5, y - 0.5)
        for colour, line in (("black", 2.6), (BOX_COLOUR, 1.3)):
            axes.add_patch(Rectangle(position, width, height, fill=False, edgecolor=colour, linewidth=line))
    if mask is not None and mask.any() and not mask.all():
        smooth = ndimage.gaussian_filter(mask.astype(np.float32), 0.5)
        axes.contour(smooth, levels=[0.5], colors=[BOX_COLOUR], linewidths=1.3)


def draw_legend(figure: Figure, image: AxesImage, panels: list[Axes]) -> None:
    """The bar shows the colours as they are, not thinned over an image."""
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(image.norm, COLOURS), ax=panels, fraction=0.035, pad=0.02, aspect=30)
    bar.set_ticks([0, 0.5, 1])
    bar.ax.tick_params(labelsize=8)
    bar.set_label(LEGEND, fontsize=8)


def headline(figure: Figure, class_name: str, probability: float | None, title: str) -> None:
    """The class with its probability, None: without; below it the title, if it is not ''."""
    name = wrap(drawable(class_name), 60, 3)
    line = name if probability is None else f"{name}: probability {_probability(probability)}"
    below = f"\n{wrap(drawable(title).replace('|', ' | '), 100, 3)}" if title else ""
    figure.suptitle(line + below, fontsize=11, parse_math=False)


def _probability(value: float) -> str:
    """Two decimals, but never a 0 or 1 that is none."""
    if 0 < value < 0.005:
        return "< 0.01"
    return "> 0.99" if 0.995 <= value < 1 else f"{value:.2f}"


def empty_note(heatmap: np.ndarray) -> str:
    """What is to be said of a heatmap that shows nothing; '' of others."""
    return "" if heatmap.max() > 0 else "heatmap is empty: no place speaks for it"


def _slice(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """[rows, columns] as images are hung: the head, or the front, above; the patient's right on the left."""
    plane: np.ndarray = volume.take(index, axis)
    return plane if axis == 0 else plane[::-1]


def _crosshair(peak: Sequence[int], axis: int, shape: Sequence[int]) -> tuple[int, int]:
    """(row, column) of the maximum in that slice."""
    row, column = [i for i in range(3) if i != axis]
    return (peak[row] if axis == 0 else shape[row] - 1 - peak[row]), peak[column]
