"""The scaling benchmark: its exponents against numbers known beforehand, its series, and one small measurement."""

import math

import numpy as np
import pytest
import torch

from benchmarks import scaling
from benchmarks.scaling import ATTENTION, MAMBA, Point
from models.attention.cross_scale import CrossScaleAttention

CPU = torch.device("cpu")


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5, 2.0])
def test_exponent_of_a_power_law(power):
    amounts = [10.0, 30.0, 100.0, 1000.0]
    assert scaling.exponent(amounts, [0.3 * n**power for n in amounts]) == pytest.approx(power)


def test_exponent_is_that_of_a_least_squares_line():
    generator = np.random.default_rng(0)
    amounts, values = generator.uniform(1, 100, (2, 7))
    expected = np.polyfit(np.log(amounts), np.log(values), 1)[0]
    assert scaling.exponent(list(amounts), list(values)) == pytest.approx(expected)


def points(name: str, power: float, late: float | None = None) -> list[Point]:
    """Six sizes whose time has an exponent, another one from the fourth on."""
    amounts = [100 * 4**i for i in range(6)]
    seconds = [1e-3 * n**power for n in amounts]
    if late is not None:
        seconds[3:] = [seconds[2] * (n / amounts[2]) ** late for n in amounts[3:]]
    return [Point(name, 32 * i, 1, n, s, 10 * n) for i, (n, s) in enumerate(zip(amounts, seconds), 1)]


def test_verdicts_see_growth_that_is_more_than_linear():
    linear = [*points(ATTENTION, 1.0), *points(MAMBA, 0.9)]
    assert all(enough for _, _, enough in scaling.verdicts(linear))
    late = [*points(ATTENTION, 0.5, late=1.3), *points(MAMBA, 1.2)]
    assert [enough for _, _, enough in scaling.verdicts(late)] == [True, False, True, False, False, True]


def test_a_series_by_batch_begins_with_the_single_image():
    given = [
        Point("net, by size", 128, 1, 1),
        Point("net, by size", scaling.SIZE, 1, 2),
        Point("net, by batch", scaling.SIZE, 4, 3),
    ]
    found = scaling.by_series(given)
    assert [p.amount for p in found["net, by batch"]] == [2, 3] and [p.amount for p in found["net, by size"]] == [1, 2]


def test_works_are_all_sizes_at_one_image_and_all_batches_at_one_size(monkeypatch):
    monkeypatch.setattr(scaling, "build", lambda name, size: torch.nn.Identity())
    monkeypatch.setattr(scaling, "AttentionAlone", lambda size, batch: torch.nn.Identity())
    found = [point for point, _, _ in scaling.works(("a",), (64, 128), (1, 2, 4), CPU)]
    series = {}
    for point in found:
        series.setdefault(point.series, []).append((point.size, point.batch, point.amount))
    size = scaling.SIZE
    assert series == {
        "a, by size": [(64, 1, 64**2), (128, 1, 128**2)],
        "a, by batch": [(size, 2, 2 * size**2), (size, 4, 4 * size**2)],
        ATTENTION: [(64, 1, 16**2 + 8**2 + 4**2 + 2**2), (128, 1, 32**2 + 16**2 + 8**2 + 4**2)],
        MAMBA: [(64, 1, 17), (128, 1, 65)],
    }


def test_attention_alone_is_the_networks_attention():
    torch.manual_seed(0)
    alone = scaling.AttentionAlone(64, 2)
    assert isinstance(alone.attention, CrossScaleAttention)
    given = [level.detach() for level in alone.levels]
    assert [tuple(x.shape) for x in given] == [(2, 96, 16, 16), (2, 192, 8, 8), (2, 384, 4, 4), (2, 768, 2, 2)]
    expected = alone.attention(given)
    out = alone(torch.empty(0))
    assert all(map(torch.equal, out, expected))
    sum(y.sum() for y in out).backward()
    assert all(level.grad is not None for level in alone.levels)


def test_a_small_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "PAGE", tmp_path / "scaling.md")
    monkeypatch.setattr(scaling, "SIZE", 64)
    monkeypatch.setattr(scaling, "QUICK_BATCHES", (1, 2))
    stand_in, build = "mobilenetv3_small", scaling.build  # Vision Mamba takes many seconds
    monkeypatch.setattr(scaling, "build", lambda name, size: build(stand_in if name == MAMBA else name, size))
    options = ["--quick", "--repeats", "1", "--backbone", stand_in, "--sizes", "64", "96", "128"]
    assert scaling.main([*options, "--device", "cpu"]) in (0, 1)
    text = (tmp_path / "scaling.md").read_text(encoding="utf-8")
    assert "## mobilenetv3_small, by size" in text and "| 128 px | 1 | 16,384 | " in text and "nan" not in text
    assert (tmp_path / "scaling.json").exists()


@pytest.mark.parametrize("sizes", [["64", "96"], ["64", "96", "100"], ["32", "64", "96"]])
def test_sizes_that_do_not_fit_are_refused(sizes, capsys):
    with pytest.raises(SystemExit) as stop:
        scaling.main(["--sizes", *sizes])
    assert stop.value.code == 2 and "multiples of 32" in capsys.readouterr().err


def test_cells():
    cells = scaling.cells(Point("net, by size", 128, 2, 32768, 0.5, 2**20))
    assert cells == ["128 px", "2", "32,768", "500.0 ms", "4.00", "15.26 µs", "1.0 MiB", "32"]
    assert not math.isnan(Point("x", 1, 1, 1, 0.1).seconds)
