"""What a checkpoint says of itself is checked as it is read: wrong types and values of each field, in every reader."""

import copy
import math
import re
from pathlib import Path

import pytest
import torch

from configs.default_config import Config
from configs.errors import CheckpointError
from models import HybridMedNet
from models.initial_weights import start_from
from models.saved_model import load_model, load_models, load_teacher
from utils.checkpoint import load_checkpoint, load_resumable, read_described_weights, save_checkpoint, write_safetensors
from utils.checkpoint.description import check_description

IMAGES = {"size": [32, 32], "channels": 3, "mean": [0.5], "std": [0.25, 0.25, 0.25], "resize_mode": "stretch"}
VOLUMES = {"size": [8, 16, 16], "channels": 1, "mean": [0.5], "std": [0.2], "spacing_mm": None, "window": [-1000, 400]}
CALIBRATION = {
    "method": "platt",
    "exclusive": False,
    "slopes": [1.0, 0.5],
    "intercepts": [0.0, -1],
    "reasons": ["", ""],
}
POINT = {"calibration": CALIBRATION, "thresholds": [0.5, None], "rule": "youden", "split": "val", "images": 9}
POINT |= {"positives": [4, 0], "negatives": [5, 9]}
SOUND = {
    "config": {"MODEL": {"backbone": "resnet18"}},
    "class_names": ["Mass", "肺炎"],
    "preprocessing": IMAGES,
    "operating_point": POINT,
    "training_data": {"kind": "images", "ranges": {"mean": [0, 1.5]}, "pattern": [0.0] * 64},
    "metrics": {"epoch": 3, "mean_auroc": math.nan},
    "split_sha256": "0" * 64,
    "labels_sha256": "f" * 64,
    "training_positives": [12, 0],
    "removed_channels": [["backbone.conv1", True, [1, 2]]],
}
HUGE = "x" * 200_000
NO_NUMBERS = ["1", None, True, math.nan, math.inf, 1 << 60, [], torch.zeros(1)]

# Field (dotted) → values of wrong types, out of range, of another length.
WRONG: dict[str, list[object]] = {
    "config": [1, "x", [1], {"MODEL": torch.zeros(2)}, {"MODEL": HUGE}, {"MODEL": 1 << 70}],
    "class_names": [1, "Mass", {}, [], [1, 2], ["Mass", None], ["Mass", " "], ["Mass", "Mass"], ["Mass", "x" * 1001]]
    + [["x"] * 10_001, [b"Mass", "x"], [["Mass"], "x"], torch.zeros(2)],
    "preprocessing": [
        1,
        "x",
        [],
        {},
        {**IMAGES, "path": "/etc/passwd"},
        {k: v for k, v in IMAGES.items() if k != "size"},
    ],
    "preprocessing.size": [32, "32", None, [32], [32, 32, 32], [32, 0], [32, -1], [32, 32.0], [True, 32], ["32", "32"]],
    "preprocessing.channels": [0, 2, 4, 3.0, "3", None, True],
    "preprocessing.mean": [0.5, "x", None, [], [0.5] * 2, [0.5] * 4, *([one] for one in NO_NUMBERS)],
    "preprocessing.std": [0.5, [0.0], [-1.0], [0.5, 0.5, 0.0], *([one] for one in NO_NUMBERS)],
    "preprocessing.resize_mode": [None, 1, "crop", ["stretch"]],
    "operating_point": [1, "x", [], {}],
    "operating_point.thresholds": [
        None,
        0.5,
        "x",
        {},
        ["0.5", 0.5],
        [1.5, 0.5],
        [-0.1, 0.5],
        [math.inf, 0.5],
        [[], 0.5],
    ],
    "operating_point.positives": [1, "ab", [4], [4, 0, 1], [4, -1], [4, 0.5], [4, "0"], [4, None], [4, True]],
    "operating_point.negatives": [1, [5], [5, -1], [5, math.nan]],
    "operating_point.images": [-1, 1.5, "9", math.nan, True],
    "operating_point.rule": [1, [], HUGE],
    "operating_point.split": [1, []],
    "operating_point.calibration": [1, "x", {}, []],
    "operating_point.calibration.slopes": [1.0, [1.0], [1.0, 0.0], [1.0, -1.0], *([1.0, one] for one in NO_NUMBERS)],
    "operating_point.calibration.intercepts": [[0.0], *([1.0, one] for one in NO_NUMBERS)],
    "operating_point.calibration.method": [1, None, []],
    "training_data": [1, "x", [], {"a": torch.zeros(1)}, {"a": [0] * 1_000_001}, {"a": b"x"}, {"a": HUGE}, {HUGE: 1}],
    "metrics": [1, "x", [], {"epoch": 1 << 65}],
    "labels_sha256": [1, "x", "F" * 64, "0" * 65, ["0" * 64]],
    "training_positives": [1, "x", {}, [-1], [1.0], ["1"], [None], [True], [1 << 60], [[1]]],
    "split_sha256": [1, "x", "G" * 64, "0" * 63, ["0" * 64]],
    "removed_channels": [1, "x", {}, [1], [["a", True]], [[1, True, [1]]], [["a", "x", [1]]], [["a", True, [-1]]]]
    + [[["a", True, ["1"]]], [["a", True, 1]], [["a", True, [1 << 60]]]],
}
WRONG_VOLUMES: dict[str, list[object]] = {
    "preprocessing.size": [[16, 16], [8, 16, 16, 16]],
    "preprocessing.spacing_mm": [1.0, [1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, math.nan], "x"],
    "preprocessing.window": [1.0, [1.0], [5.0, 5.0], [5.0, 1.0], [math.nan, 1.0], ["a", "b"]],
}
CASES = [(SOUND, field, value) for field, values in WRONG.items() for value in values]
CASES += [({**SOUND, "preprocessing": VOLUMES}, field, value) for field, vs in WRONG_VOLUMES.items() for value in vs]


def changed(content: dict, field: str, value: object) -> dict:
    content = copy.deepcopy(content)
    *parents, last = field.split(".")
    inner = content
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return content


@pytest.mark.parametrize("preprocessing", [IMAGES, VOLUMES])
def test_what_training_writes_is_in_order(preprocessing):
    check_description(Path("a.pth"), {**SOUND, "preprocessing": preprocessing, "model": torch.zeros(3), "progress": 1})
    check_description(Path("a.pth"), dict.fromkeys(SOUND))
    check_description(Path("a.pth"), {})


def test_each_field_with_each_wrong_value():
    """One message of one line that names file and field, and is short whatever the value."""
    print(f"{len(CASES)} cases of {len(WRONG)} fields")
    assert len(CASES) > 130 and {field.split(".")[0] for field in WRONG} == SOUND.keys()
    for content, field, value in CASES:
        with pytest.raises(CheckpointError) as caught:
            check_description(Path("a.pth"), changed(content, field, value))
        message = str(caught.value)
        assert message.startswith("'a.pth' was edited or is damaged: " + field.split(".")[0]), (field, message)
        assert "\n" not in message and len(message) < 600, (field, len(message))


def test_values_in_messages_act_on_no_terminal():
    with pytest.raises(CheckpointError) as caught:
        check_description(Path("a.pth"), changed(SOUND, "split_sha256", "\x1b[2J\u202e"))
    assert "\x1b" not in str(caught.value) and "\u202e" not in str(caught.value)


def test_nothing_ends_without_an_end():
    content = deep = {}
    for _ in range(5_000):
        deep["a"] = deep = {}
    for field in ("config", "training_data", "metrics"):
        with pytest.raises(CheckpointError, match="deep"):
            check_description(Path("a.pth"), {field: content})


# ---- every reader


@pytest.fixture(scope="module")
def sound():
    settings = ["MODEL.backbone=mobilenetv3_small", "MODEL.pretrained=false", "MODEL.fusion_channels=16"]
    config = Config.from_overrides([*settings, "MODEL.num_classes=2", "DATA.image_size=32"])
    weights = HybridMedNet(config).state_dict()
    saved = {**SOUND, "removed_channels": [], "config": config.model_dump(mode="json")}
    return config, weights, {**saved, "preprocessing": {**IMAGES, "mean": [0.5] * 3}}


def teacher(path: Path) -> object:
    return load_teacher(Config.from_overrides([f"LOSS.teacher={path}"]))


def commands(path: Path) -> object:
    from configs.followed import PREDICT

    return load_models([path], [], PREDICT)  # evaluate, predict, export, explain and convert begin with it


READERS = [load_checkpoint, load_resumable, read_described_weights, load_model, commands, teacher]
FEW = [
    ("class_names", ["Mass", 3]),
    ("preprocessing.size", [90_000, -90_000]),
    ("preprocessing.std", [0.0]),
    ("operating_point.thresholds", [2.0, 0.5]),
    ("removed_channels", [["a", True, ["x"]]]),
]


@pytest.mark.parametrize(("field", "value"), FEW)
def test_every_reader_refuses_alike(sound, tmp_path, field, value):
    _, weights, said = sound
    wrong = changed(said, field, value)
    save_checkpoint({**wrong, "model": weights}, tmp_path / "a.pth")
    write_safetensors(tmp_path / "a.safetensors", weights, wrong)
    tried = [(reader, "a.pth") for reader in READERS]
    tried += [(reader, "a.safetensors") for reader in (read_described_weights, load_model, commands, teacher)]
    for reader, name in tried:
        with pytest.raises(
            CheckpointError, match=rf"{name}' was edited or is damaged: {re.escape(field.split('.')[0])}"
        ):
            reader(tmp_path / name)


def test_a_size_that_the_network_is_not_built_for(sound, tmp_path):
    """90,000 × 90,000 pixels would take 97 GB for one image; the file says so in 20 bytes."""
    _, weights, said = sound
    for field, value, words in (
        ("preprocessing.size", [90_000, 90_000], r"preprocessing.size is \(90000, 90000\).*built for \(32, 32\)"),
        ("preprocessing.channels", 1, "preprocessing.channels is 1"),
        (
            "operating_point",
            {"thresholds": [0.5] * 3, "rule": "youden", "split": "val", "images": 9},
            "for 3 classes, the model has 2",
        ),
        ("training_positives", [1, 2, 3], "training_positives counts 3 classes, the model has 2"),
    ):
        wrong = changed(said, field, value)
        wrong["preprocessing"]["mean"], wrong["preprocessing"]["std"] = [0.5], [0.5]
        save_checkpoint({**wrong, "model": weights}, tmp_path / "a.pth")
        for reader in (load_model, commands, teacher):
            with pytest.raises(CheckpointError, match=words):
                reader(tmp_path / "a.pth")


def test_what_is_in_order_is_read(sound, tmp_path):
    config, weights, said = sound
    save_checkpoint({**said, "model": weights}, tmp_path / "a.pth")
    write_safetensors(tmp_path / "a.safetensors", weights, said)
    for name in ("a.pth", "a.safetensors"):
        saved = load_model(tmp_path / name)
        assert saved.class_names == ("Mass", "肺炎") and saved.description["operating_point"]["thresholds"] == [
            0.5,
            None,
        ]
        start_from(HybridMedNet(config), str(tmp_path / name), ["Mass", "肺炎"])
