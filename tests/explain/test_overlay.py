"""Overlays: what is drawn where, for images and volumes."""

import numpy as np
import pytest
import torch
from PIL import Image

from configs.errors import ExplanationError
from explain.attention_figure import attention_figure
from explain.overlay import methods_figure, overlay_figure, save_overlay, save_volume_overlay, volume_figure
from tests.explain.networks import images, network

DRAWN = True  # see blank_figures in tests/conftest.py


def peak(shape: tuple[int, ...], position: tuple[int, ...]) -> np.ndarray:
    distance = sum((i - p) ** 2 for i, p in zip(np.indices(shape), position))
    return np.exp(-distance / 20.0).astype(np.float32)


def texts(figure) -> str:
    found = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
    return "\n".join([*found, *(axes.get_ylabel() for axes in figure.axes)])


@pytest.mark.parametrize("colour", [False, True])
def test_an_overlay_says_what_it_shows(tmp_path, colour):
    image = np.full((40, 60, 3) if colour else (40, 60), 120, np.uint8)
    path = tmp_path / "new" / "overlay.png"
    save_overlay(path, image, peak((40, 60), (10, 45)), class_name="Mass", probability=0.9731, boxes=[(40, 5, 9, 9)])
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    assert pixels.shape[1] > pixels.shape[0]
    coloured = np.ptp(pixels, axis=2) > 40
    right = coloured[:, pixels.shape[1] // 2 : int(pixels.shape[1] * 0.9)]
    rows, columns = np.nonzero(right)
    assert len(rows) > 100 and rows.mean() < pixels.shape[0] / 2 and columns.mean() > right.shape[1] / 2
    figure = overlay_figure(image, peak((40, 60), (10, 45)), "Mass", 0.9731, [(40, 5, 9, 9)])
    assert "Mass: probability 0.97" in texts(figure) and "annotated" in texts(figure) and "maximum" in texts(figure)
    assert [len(axes.patches) for axes in figure.axes] == [2, 2, 0] or len(figure.axes[0].patches) == 2


@pytest.mark.parametrize(
    "probability, displayed", [(0.0001, "< 0.01"), (0.9999, "> 0.99"), (0.5, "0.50"), (1.0, "1.00")]
)
def test_probabilities_are_not_rounded_to_certainty(probability, displayed):
    figure = overlay_figure(np.zeros((8, 8), np.uint8), peak((8, 8), (2, 2)), "$x_1", probability)
    assert f"$x_1: probability {displayed}" in texts(figure)


def test_an_empty_map_is_said():
    figure = overlay_figure(np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.float32), "Mass", None)
    assert "empty" in texts(figure) and "probability" not in texts(figure)


def test_three_slices_through_the_maximum(tmp_path):
    heatmap = peak((10, 20, 30), (7, 5, 22))
    volume = np.zeros((10, 20, 30), np.float32)
    volume[7, 5, 22] = 1
    figure = volume_figure(volume, heatmap, "Nodule", 0.4, (3.0, 1.0, 1.0))
    assert all(f"slice {n} of {total}" in texts(figure) for n, total in [(8, 10), (6, 20), (23, 30)])
    positions = []
    assert len(figure.axes) >= 6
    for axes in figure.axes[3:6]:
        grey = np.asarray(axes.images[0].get_array())
        assert grey.max() == 1, "the slice misses the maximum"
        positions.append(tuple(int(i) for i in np.unravel_index(grey.argmax(), grey.shape)))
        displayed = np.asarray(axes.images[1].get_array())
        assert np.unravel_index(displayed.argmax(), displayed.shape) == positions[-1]
    assert positions == [(5, 22), (2, 22), (2, 5)], "the head is above"
    save_volume_overlay(tmp_path / "v.png", volume, heatmap, class_name="Nodule", probability=0.4)
    assert (tmp_path / "v.png").stat().st_size > 5000


def test_wrong_heatmaps_are_refused(tmp_path):
    image = np.zeros((8, 8), np.uint8)
    for heatmap in (np.zeros((8, 9), np.float32), np.full((8, 8), 2.0), np.full((8, 8), np.nan)):
        with pytest.raises(ExplanationError):
            save_overlay(tmp_path / "x.png", image, heatmap, class_name="Mass", probability=0.5)
    assert list(tmp_path.iterdir()) == []


def test_methods_side_by_side():
    heatmaps = {name: peak((20, 20), (5, 5)) for name in ("grad_cam", "layer_cam", "a", "b", "c")}
    figure = methods_figure(np.zeros((20, 20), np.uint8), heatmaps, "Mass", [(1, 1, 5, 5)])
    assert "grad cam" in texts(figure) and "image, annotated" in texts(figure)


@pytest.mark.parametrize("mode", ["cbam", "multi_scale", "cross_scale"])
def test_attention_figures(mode, tmp_path):
    model, x = network("mobilenetv3_small", attention=mode), images(1, 3, 64, 64)
    maps = model.get_attention_maps(x)
    figure = attention_figure(maps, x[0].mean(0).numpy())
    figure.savefig(tmp_path / "a.png")
    assert "level 0" in texts(figure) and "level 3" in texts(figure)
    with pytest.raises(ExplanationError, match="no attention"):
        attention_figure({}, x[0].mean(0).numpy())
    if mode == "cross_scale":
        assert torch.allclose(sum(p.flatten(3).sum(-1) for p in maps[0].by_source().values()), torch.ones(1))
