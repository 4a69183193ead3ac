"""benchmarks/serving.py: its arithmetic, and the whole of it in small."""

import os
from dataclasses import replace

import pytest

from benchmarks import serving
from benchmarks.serving import Run, middle, processor_seconds, run_of, verdicts


def test_figures_of_a_way():
    run = run_of([0.1, 0.2, 0.3, 0.4], 8, 2.0, 0.4)
    assert (
        run.images_per_second == 4.0 and run.median_ms == pytest.approx(250) and run.processor_ms == pytest.approx(50)
    )
    assert run.p95_ms == pytest.approx(385)  # linear between 300 and 400, at 0.85 of the way
    assert run_of([0.1], 1, 1.0, None).processor_ms is None


def test_rounds_are_medians_of_each_figure():
    runs = [Run(1.0, 10.0, 30.0, 5.0), Run(3.0, 30.0, 10.0, None), Run(2.0, 20.0, 20.0, 7.0)]
    assert middle(runs) == Run(2.0, 20.0, 20.0, 6.0)


def test_what_is_wanted_is_judged_by_processor_time():
    found = {"bare, 16 at a time": Run(9.0, 1.0, 1.0, 8.0), "served, 16 clients": Run(1.0, 1.0, 1.0, 10.0)}
    assert verdicts(found)[0][1:] == ("80%", True)
    found["served, 16 clients"] = replace(found["served, 16 clients"], processor_ms=10.1)
    assert verdicts(found)[0][2] is False
    found["served, 16 clients"] = replace(found["served, 16 clients"], processor_ms=None)
    assert verdicts(found)[0][2] is None


def test_a_process_takes_processor_time():
    before = processor_seconds(os.getpid())
    if before is None:
        pytest.skip("only Linux says it")
    while (processor_seconds(os.getpid()) or 0) <= before:
        sum(range(100_000))
    assert processor_seconds(2**30) is None


@pytest.mark.slow
def test_the_whole_in_small(capsys):
    small = [
        "--backbone",
        "timm/test_resnet",
        "--size",
        "32",
        "--image-size",
        "64",
        "--requests",
        "16",
        "--repeats",
        "1",
    ]
    serving.main([*small, "--no-write"])
    page = capsys.readouterr().out
    assert all(f"| {way} |" in page for way in ("bare, 16 at a time", "served, 1 clients", "served, 16 clients"))
