"""A figure of what the network's own attention weighs: the maps of `HybridMedNet.get_attention_maps`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from configs.errors import ExplanationError
from utils.figures import BLUE, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from torch import Tensor

COLOURS = "inferno"
LEGEND = "weight of a token, as a multiple of\nwhat it has where all are alike"


class CBAMWeights(Protocol):
    """One level's CBAM: models' CBAMMaps, see there."""

    @property
    def channel(self) -> Tensor: ...

    @property
    def spatial(self) -> Tensor: ...


@runtime_checkable
class TokenWeights(Protocol):
    """What each place of a level looks at: models' TokenMaps, see there."""

    @property
    def weights(self) -> Tensor: ...

    @property
    def spatial_shape(self) -> tuple[int, ...]: ...

    def by_source(self) -> dict[int, Tensor]: ...


def attention_figure(maps: Mapping[int, CBAMWeights | TokenWeights], image: np.ndarray, title: str = "") -> Figure:
    """The attention of the first image of the batch that `maps` is of.

    maps: level → CBAMMaps or TokenMaps of images. image: [H, W], drawn beside.
    CBAM: a level's spatial map above, its channels' weights, sorted, below. Token attention: a row for each level that
    looks, a column for each that is looked at, with its share of the row; a token's weight is the mean over heads and
    places, times the number of tokens. Raises ExplanationError for a network without attention, and for volumes.
    """
    if not maps:
        raise ExplanationError("this network has no attention to show: MODEL.attention is none")
    tokens = {level: one for level, one in maps.items() if isinstance(one, TokenWeights)}
    gates = {level: one for level, one in maps.items() if not isinstance(one, TokenWeights)}
    axes = {len(one.spatial_shape) for one in tokens.values()} | {one.spatial.ndim - 2 for one in gates.values()}
    if axes != {2}:
        raise ExplanationError("attention figures are of images, not of volumes")
    figure = _token_figure(tokens, image) if tokens else _cbam_figure(gates, image)
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


def _cbam_figure(maps: Mapping[int, CBAMWeights], image: np.ndarray) -> Figure:
    figure = new_figure(2.4 * (len(maps) + 1) + 0.6, 4.6)
    panels = figure.subplots(2, len(maps) + 1)
    _show(panels[0, 0], image, "image")
    panels[1, 0].set_visible(False)
    for (level, one), above, below in zip(maps.items(), panels[0, 1:], panels[1, 1:]):
        mappable = above.imshow(one.spatial[0, 0].float().cpu().numpy(), cmap=COLOURS, vmin=0, vmax=1)
        above.set_title(f"level {level}, spatial", fontsize=9)
        above.set_xticks([])
        above.set_yticks([])
        weights = np.sort(one.channel[0].float().cpu().numpy())[::-1]
        below.plot(np.arange(1, len(weights) + 1), weights, color=BLUE)
        below.set_ylim(0, 1)
        below.set_title(f"{len(weights)} channels, sorted", fontsize=9)
        tidy(below)
    figure.colorbar(mappable, ax=panels[0, 1:].tolist(), fraction=0.02, pad=0.02).set_label("weight", fontsize=8)
    return figure


def _token_figure(maps: Mapping[int, TokenWeights], image: np.ndarray) -> Figure:
    means = {
        level: {
            source: part[0].float().mean((0, 1)).cpu().numpy() * one.weights.shape[-1]
            for source, part in one.by_source().items()
        }
        for level, one in maps.items()
    }
    sources = sorted({source for row in means.values() for source in row})
    if all(list(row) == [level] for level, row in means.items()):
        return _one_row(means, image)
    count = len(sources)
    figure = new_figure(2.2 * (count + 1) + 0.6, 2.35 * len(means))
    panels = figure.subplots(len(means), count + 1, squeeze=False)
    top = max(float(part.max()) for row in means.values() for part in row.values())
    for (level, row), line in zip(means.items(), panels):
        _show(line[0], image, f"level {level} looks at")
        for source, axes in zip(sources, line[1:]):
            axes.set_visible(source in row)
            if source in row:
                mappable = _grid(axes, row[source], top, f"level {source}: {row[source].sum() / _total(row):.0%}")
    figure.colorbar(mappable, ax=panels[:, 1:].ravel().tolist(), fraction=0.02, pad=0.02).set_label(LEGEND, fontsize=8)
    return figure


def _total(row: Mapping[int, np.ndarray]) -> float:
    return float(sum(part.sum() for part in row.values()))


def _one_row(means: Mapping[int, Mapping[int, np.ndarray]], image: np.ndarray) -> Figure:
    """Each level looks at its own tokens."""
    figure = new_figure(2.3 * (len(means) + 1) + 0.6, 2.7)
    panels = figure.subplots(1, len(means) + 1)
    _show(panels[0], image, "image")
    top = max(float(row[level].max()) for level, row in means.items())
    for (level, row), axes in zip(means.items(), panels[1:]):
        mappable = _grid(axes, row[level], top, f"level {level} at its own tokens")
    bar = figure.colorbar(mappable, ax=panels[1:].tolist(), fraction=0.02, pad=0.02)
    bar.set_label(LEGEND, fontsize=8)
    return figure


def _show(axes: Axes, image: np.ndarray, title: str) -> None:
    axes.imshow(image, cmap="gray")
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def _grid(axes: Axes, weights: np.ndarray, top: float, title: str) -> AxesImage:
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.imshow(weights, cmap=COLOURS, vmin=0, vmax=top)
