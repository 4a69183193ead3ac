"""Pointing game, IoU and intervals by hand and against scipy; heatmaps back on the original image."""

import math

import numpy as np
import pytest
from scipy import stats

from configs.errors import ExplanationError
from data.regions.boxes import region_of_boxes
from data.transforms.images import resize
from explain.geometry import content_box, onto_image
from explain.localization import (
    intersection_over_union,
    measure,
    summarise,
    with_tolerance,
)


def heat(shape: tuple[int, ...], *peaks: tuple[int, ...]) -> np.ndarray:
    """1 at the first peak, less at later ones."""
    heatmap = np.zeros(shape, np.float32)
    for i, position in enumerate(peaks):
        heatmap[position] = 1 - 0.1 * i
    return heatmap


def test_region_of_boxes():
    region = region_of_boxes([(1, 2, 3, 1)], (5, 6))
    assert region.sum() == 3 and region[2, 1:4].all()
    assert region_of_boxes([(0.4, 0.4, 2, 2)], (4, 4)).sum() == 4
    assert region_of_boxes([(1.6, 1.6, 0.1, 0.1)], (4, 4)).sum() == 1, "a box between pixel centres is not lost"
    assert region_of_boxes([(3, 3, 9, 9), (0, 0, 1, 1)], (5, 5)).sum() == 5


def test_region_of_a_scaled_box_covers_its_area():
    box = (225.08 / 4, 547.02 / 4, 86.78 / 4, 79.19 / 4)
    assert abs(region_of_boxes([box], (256, 256)).sum() - box[2] * box[3]) < 30


def test_tolerance_against_a_loop():
    region = region_of_boxes([(4, 5, 3, 2)], (12, 14))
    positions = np.argwhere(region)
    expected = np.array([[min(math.dist((i, j), p) for p in positions) <= 2.5 for j in range(14)] for i in range(12)])
    assert np.array_equal(with_tolerance(region, 2.5), expected)
    assert np.array_equal(with_tolerance(region, 0), region)


def test_measure_by_hand():
    region = region_of_boxes([(10, 20, 10, 10)], (100, 100))
    inside = measure(heat((100, 100), (25, 15)), region)
    assert inside.hit and inside.strict_hit and not inside.centre and inside.area == 0.01
    assert inside.iou == 1 / 100
    near = measure(heat((100, 100), (25, 22)), region)  # three pixels right of the box: 3 % of the image
    assert near.hit and not near.strict_hit
    beyond = measure(heat((100, 100), (25, 23)), region)
    assert not beyond.hit
    assert inside.chance == with_tolerance(region, 3).mean() and 0.01 < inside.chance < 0.03
    assert inside.chance_iou == pytest.approx(0.01 / 1.99)


def test_iou_is_of_the_right_places():
    region = region_of_boxes([(2, 2, 4, 4)], (10, 10))
    assert measure(region.astype(np.float32), region).iou == 1.0
    blurred = region * np.float32(1) + np.float32(0.4) * ~region
    assert measure(blurred, region).iou == 1.0
    lifted = region * np.float32(1) + np.float32(0.6) * ~region
    assert measure(lifted, region).iou == pytest.approx(0.16), "all places are above half of the maximum"
    assert measure(lifted, region).iou_area == 1.0, "but the highest 16 are the region"
    shifted = np.roll(region, 2, axis=1).astype(np.float32)
    assert measure(shifted, region).iou_area == pytest.approx(8 / 24)


def test_an_empty_map_hits_nothing():
    region = region_of_boxes([(0, 0, 3, 3)], (9, 9))
    found = measure(np.zeros((9, 9), np.float32), region)
    assert found.empty and not found.hit and found.iou == found.iou_area == 0 and found.chance > 0


def test_centre_and_volumes():
    region = np.zeros((6, 8, 8), bool)
    region[2:5, 3:6, 3:6] = True
    found = measure(heat(region.shape, (3, 4, 4)), region)
    assert found.hit and found.centre and found.area == 27 / 384


def test_chance_is_what_a_random_map_hits():
    rng = np.random.default_rng(0)
    region = region_of_boxes([(3, 4, 12, 10)], (32, 32))
    found = [measure(rng.random((32, 32), np.float32), region) for _ in range(1500)]
    rate, chance = np.mean([f.hit for f in found]), found[0].chance
    assert abs(rate - chance) < 4 * math.sqrt(chance * (1 - chance) / len(found))
    # Of n places, as many drawn by chance overlap in a hypergeometric number.
    n, a = 1024, 120
    overlap = np.arange(a + 1)
    exact = float((stats.hypergeom.pmf(overlap, n, a, a) * overlap / (2 * a - overlap)).sum())
    assert abs(np.mean([f.iou_area for f in found]) - exact) < 0.004
    assert abs(found[0].chance_iou - exact) < 0.002


def test_summary():
    region = region_of_boxes([(0, 0, 5, 5)], (10, 10))
    hit, miss = measure(heat((10, 10), (1, 1)), region), measure(heat((10, 10), (9, 9)), region)
    summary = summarise([hit, hit, hit, miss], ["a", "a", "b", "c"])
    assert summary["maps"] == 4 and summary["patients"] == 3 and summary["hit"]["value"] == 0.75
    assert summary["hit"]["low"] == 0.0 and summary["hit"]["high"] == 1.0, "draws of three patients may be all misses"
    assert summary["chance"] == hit.chance
    assert summary == summarise([hit, hit, hit, miss], ["a", "a", "b", "c"])
    empty = summarise([], [])
    assert empty["maps"] == 0 and math.isnan(empty["hit"]["value"]) and math.isnan(empty["chance"])


def test_intervals_widen_where_a_patients_images_agree():
    region = region_of_boxes([(0, 0, 5, 5)], (10, 10))
    hit, miss = measure(heat((10, 10), (1, 1)), region), measure(heat((10, 10), (9, 9)), region)
    findings = [f for i in range(20) for f in [hit if i % 2 else miss] * 4]
    alone = summarise(findings, [str(i) for i in range(80)])["hit"]
    together = summarise(findings, [str(i // 4) for i in range(80)])["hit"]
    ratio = (together["high"] - together["low"]) / (alone["high"] - alone["low"])
    assert 1.7 < ratio < 2.3, "four images that agree count as one: twice the width"


def test_wrong_regions_are_refused():
    with pytest.raises(ExplanationError, match="not empty"):
        measure(np.zeros((4, 4), np.float32), np.zeros((4, 4), bool))
    with pytest.raises(ExplanationError, match="of its shape"):
        measure(np.zeros((4, 4), np.float32), np.ones((4, 5), bool))
    assert math.isnan(intersection_over_union(np.zeros(3, bool), np.zeros(3, bool)))


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
@pytest.mark.parametrize("shape", [(90, 120), (120, 90), (33, 71), (48, 48), (20, 31), (7, 500)])
def test_onto_image_is_the_inverse_of_resize(mode, shape):
    """A bright square in the original, resized as the data are, comes back where it was."""
    image = np.zeros((*shape, 1), np.float32)
    top, left = shape[0] // 4, shape[1] // 2
    bottom, right = top + max(shape[0] // 4, 1), left + shape[1] // 4
    image[top:bottom, left:right] = 1
    inside = resize(image, (48, 48), mode)[..., 0]
    back = onto_image(inside, shape, mode)
    assert back.shape == shape
    rows, columns = np.indices(shape)
    weight = back / back.sum()
    centre = (weight * rows).sum(), (weight * columns).sum()
    tolerance = max(shape) / 48
    assert abs(centre[0] - (top + bottom - 1) / 2) < tolerance and abs(centre[1] - (left + right - 1) / 2) < tolerance


def test_content_box_is_where_resize_puts_the_image():
    for shape in [(90, 120), (120, 90), (33, 71), (500, 7)]:
        boxed = resize(np.ones((*shape, 1), np.float32), (64, 48), "letterbox")[..., 0]
        top, left, height, width = content_box((64, 48), shape, "letterbox")
        expected = np.zeros((64, 48))
        expected[top : top + height, left : left + width] = 1
        assert np.allclose(boxed, expected)
    assert content_box((64, 48), (90, 120), "stretch") == (0, 0, 64, 48)
    with pytest.raises(ExplanationError, match="unknown resize mode 'crop'"):
        content_box((64, 48), (90, 120), "crop")
