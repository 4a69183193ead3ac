"""Attention that is taught through train.py, --resume and evaluate.py: images and studies, masks and boxes."""

import csv
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.evaluation_runs import call
from tests.evaluation_runs import metrics_of as evaluated
from tests.kill_harness import flatten, identical
from tests.training_runs import HARD, arguments, metrics_of, run_main, same_outcome
from utils.checkpoint import load_checkpoint

CLASSES = {"DATA__class_names": "[lesion]"}
STUDIES = {
    "DATA__study_column": "study_id",
    "DATA__view_kinds": "{frontal: [PA], lateral: [LL]}",
    "MODEL__views.aggregator": "attention",
    "MODEL__views.dropout": 0.3,
}
FOR_ONE_EPOCH = {"TRAIN__lr_scheduler": "constant", "TRAIN__warmup_epochs": 0}  # then two begin as one does


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """24 studies of 12 patients, in half of them a second view; in two thirds of the images a mask, in some a box."""
    folder = tmp_path_factory.mktemp("taught") / "data"
    (folder / "masks").mkdir(parents=True)
    images, boxes, rng = [], [], np.random.default_rng(0)
    for number in range(24):
        label = number % 2
        for view in ("PA", "LL")[: 1 + number // 2 % 2]:
            pixels, name = rng.integers(0, 100, (40, 32)).astype(np.uint8), f"{number:02d}_{view}.png"
            top, left = rng.integers(2, 20, 2)
            pixels[top : top + 12, left : left + 10] += 60 + 60 * label
            assert cv2.imwrite(str(folder / name), pixels)
            mask = np.zeros_like(pixels)
            mask[top : top + 12, left : left + 10] = 255
            annotated = number % 3 != 0
            if annotated:
                assert cv2.imwrite(str(folder / "masks" / name), mask)
                boxes.append((name, "lesion", left, top, 10, 12))
            row = (name, f"s{number}", f"p{number // 2}", view, label, f"masks/{name}" if annotated else "")
            images.append(row)
    for name, rows in (
        ("labels.csv", [("image", "study_id", "patient_id", "view", "lesion", "outline"), *images]),
        ("boxes.csv", [("image", "finding", "x", "y", "w", "h"), *boxes]),
    ):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    return folder


def taught(method: str, **others) -> dict[str, object]:
    regions = {} if method == "consistency" else {"LOSS__attention.masks": "outline"}
    return {**CLASSES, "LOSS__attention.method": method, "LOSS__attention.weight": 0.5, **regions, **others}


@pytest.mark.parametrize(
    ("method", "studies"),
    [
        ("mask", True),
        ("cam", False),
        ("consistency", True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("mask", False), ("cam", True), ("consistency", False))
        ),
    ],
)
def test_every_method_trains_and_its_figures_are_there(method, studies, data, tmp_path):
    settings = taught(method, **(STUDIES if studies else {}), TRAIN__epochs=1)
    assert run_main(arguments(data, tmp_path, "run", **settings)) == 0
    plain = {**settings, "LOSS__attention.method": "none"}
    assert run_main(arguments(data, tmp_path, "plain", **plain)) == 0
    one, other = (load_checkpoint(tmp_path / name / "last.pth")["model"] for name in ("run", "plain"))
    assert any(not identical(one[name], other[name]) for name in one), "the term changes the weights"
    epoch, test = metrics_of(tmp_path / "run")
    if method == "consistency":
        assert "attention" not in epoch and "attention" not in test
        return
    assert epoch["attention"]["regions"] > 0 and "attention" in test
    assert all(0 <= epoch["attention"][name] <= 1 for name in ("energy_inside", "pointing_game", "area"))
    assert 0.05 < epoch["attention"]["area"] < 0.15, "120 of 1280 pixels"


def test_weight_0_is_as_without_it_bit_for_bit(data, tmp_path):
    for name, settings in (("none", CLASSES), ("mask", taught("mask")), ("consistency", taught("consistency"))):
        weight = {} if name == "none" else {"LOSS__attention.weight": 0}
        assert run_main(arguments(data, tmp_path, name, **{**settings, **HARD, **weight})) == 0
    same_outcome(tmp_path / "none", tmp_path / "consistency")
    one, other = (load_checkpoint(tmp_path / name / "last.pth") for name in ("none", "mask"))
    for key in ("model", "ema", "optimizer", "random"):
        both = [dict(flatten(content[key])) for content in (one, other)]
        assert all(identical(both[0][path], both[1][path]) for path in both[0])
    measured = metrics_of(tmp_path / "mask")
    assert all(row.pop("attention")["regions"] > 0 for row in measured)
    assert measured == metrics_of(tmp_path / "none")


@pytest.mark.parametrize(
    "settings",
    [
        taught("mask", **STUDIES),
        pytest.param(
            taught("cam", DATA__cache="disk", **{"MODEL__gradient_checkpointing.enabled": "true"}),
            marks=pytest.mark.slow,
        ),
        pytest.param(taught("consistency", DATA__augment_on="device"), marks=pytest.mark.slow),
    ],
    ids=["studies, mask", "cache, cam", "device, consistency"],
)
def test_resuming_is_bit_equal(settings, data, tmp_path):
    whole = {**settings, **FOR_ONE_EPOCH, "TRAIN__ema_decay": 0.9, "DATA__cache_dir": tmp_path / "cache"}
    if "DATA__cache" not in settings:
        del whole["DATA__cache_dir"]
    assert run_main(arguments(data, tmp_path, "whole", **whole)) == 0
    assert run_main(arguments(data, tmp_path, "cut", **whole, TRAIN__epochs=1)) == 0
    assert run_main(["--resume", tmp_path / "cut", "--set", "TRAIN.epochs=2"]) == 0
    one, two = (dict(flatten(load_checkpoint(tmp_path / name / "last.pth")["model"])) for name in ("whole", "cut"))
    assert one.keys() == two.keys() and all(identical(one[name], two[name]) for name in one)


def test_a_cache_and_workers_change_nothing(data, tmp_path):
    for name, others in (("plain", {}), ("cached", {"DATA__cache": "ram", "DATA__num_workers": 1})):
        settings = taught("mask", **others, TRAIN__epochs=1)
        assert run_main(arguments(data, tmp_path, name, **settings)) == 0
    one, two = (load_checkpoint(tmp_path / name / "last.pth")["model"] for name in ("plain", "cached"))
    assert all(identical(one[name], two[name]) for name in one)


def test_boxes_are_regions_too(data, tmp_path):
    settings = taught("cam", **{"LOSS__attention.masks": "null", "LOSS__attention.boxes": "boxes.csv"})
    assert run_main(arguments(data, tmp_path, "run", **settings, TRAIN__epochs=1)) == 0
    record = metrics_of(tmp_path / "run")[0]["attention"]
    masks = {**taught("cam"), "TRAIN__epochs": 1}
    assert run_main(arguments(data, tmp_path, "masks", **masks)) == 0
    assert metrics_of(tmp_path / "masks")[0]["attention"] == pytest.approx(record, abs=1e-6), "they are the same places"


def test_evaluation_reports_them_with_intervals(data, tmp_path, capsys):
    settings = {**CLASSES, **STUDIES, "TRAIN__epochs": 1}  # nothing was taught: figures to compare with
    assert run_main(arguments(data, tmp_path, "run", **settings)) == 0
    assert call(tmp_path / "run", "--split", "all", "--set", "LOSS.attention.masks=outline") == 0
    found = evaluated(tmp_path / "run/evaluation-all")["attention"]
    # A region of each image with a mask whose study has the lesion: 8 studies of 2 odd numbers, of which 4 have two.
    assert found["patients"] == len({n // 2 for n in range(24) if n % 2 and n % 3})
    assert found["regions"] == sum(1 + n // 2 % 2 for n in range(24) if n % 2 and n % 3)
    for name in ("energy_inside", "pointing_game"):
        figure = found[name]
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1 and not math.isnan(figure["value"])
    sentence = f"Maps against {found['regions']} annotated regions of {found['patients']} patients"
    assert sentence in capsys.readouterr().out
    assert sentence in (tmp_path / "run/evaluation-all/report.html").read_text(encoding="utf-8")


def test_other_data_without_masks_are_evaluated_all_the_same(data, tmp_path, capsys):
    assert run_main(arguments(data, tmp_path, "run", **taught("mask"), TRAIN__epochs=1)) == 0
    other = tmp_path / "other"
    shutil.copytree(data, other)
    rows = [line.rpartition(",")[0] for line in (data / "labels.csv").read_text(encoding="utf-8").splitlines()]
    (other / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert call(tmp_path / "run", "--split", "all", "--data", str(other)) == 0
    assert "attention" not in evaluated(tmp_path / "run/evaluation-all")
    assert "maps are not measured: LOSS.attention.masks 'outline' is neither" in capsys.readouterr().err
    asked = ["--set", "loss.attention.masks=outline"]  # in any spelling, what was asked for is not passed over
    assert call(tmp_path / "run", "--split", "all", "--data", str(other), "--output", tmp_path / "out", *asked) == 2
    assert "error: LOSS.attention.masks 'outline' is neither" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"LOSS__attention.masks": "outlines"}, "did you mean 'outline'"),
        ({"LOSS__attention.masks": "null", "LOSS__attention.boxes": "none.csv"}, "none.csv"),
        ({"LOSS__attention.masks": "null"}, "needs regions"),
        ({"MODEL__attention": "none"}, "cbam, multi_scale, cross_scale"),
    ],
)
def test_errors_are_one_line_before_a_run_is_there(changed, words, data, tmp_path, capsys):
    assert run_main(arguments(data, tmp_path, "run", **{**taught("mask"), **changed})) == 2
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err, err
    assert not (tmp_path / "run").exists()
