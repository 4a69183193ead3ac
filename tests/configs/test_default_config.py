"""The settings themselves: access, checked assignment, old defaults, writing and reading again."""

import copy
import json
import pickle

import pytest

from configs.default_config import Config
from configs.errors import ConfigError
from configs.section import Section, default_text
from models import list_backbones
from tests.configs.settings import FINDINGS, SECTIONS, SETTINGS, with_values

# What users of the previous release rely on.
OLD_DEFAULTS = {
    "MODEL": {
        "name": "HybridMedNet",
        "backbone": "convnext_base",
        "pretrained": True,
        "fpn_channels": 256,
        "fusion_channels": 512,
        "dropout": 0.5,
        "hierarchical": False,
        "use_modern_attention": True,
        "use_cross_scale_attention": True,
        "num_heads": 8,
    },
    "TRAIN": {
        "batch_size": 32,
        "epochs": 50,
        "learning_rate": 1e-4,
        "lr_scheduler": "cosine",
        "gradient_accumulation_steps": 1,
        "mixed_precision": True,
        "early_stopping_patience": 10,
    },
    "DATA": {"num_workers": 4, "train_split": 0.7, "val_split": 0.15, "test_split": 0.15},
    "LOSS": {"coarse_weight": 0.4, "fine_weight": 0.6, "consistency_weight": 0.2},
    "CHECKPOINT": {"save_dir": "./checkpoints", "save_freq": 5, "save_best": True},
    "LOGGING": {"log_dir": "./logs", "tensorboard": True, "print_freq": 10},
}
# The same, where today's default is null: what a Config has that nobody completed by data.
OLD_DEFAULTS_COMPLETED = {
    "MODEL": {"task": "multi_label", "input_size": (224, 224), "num_classes": 14, "num_coarse_classes": 3},
    "TRAIN": {"warmup_epochs": 5},
    "DATA": {
        "image_size": (224, 224),
        "data_dir": "./data/sample_chest_xray",
        "sample_count": 1200,
        "sample_size": 128,
    },
    "LOSS": {"type": "bce"},
}
OLD_KEYS = {
    "TRAIN": ["weight_decay"],
    "DATA": ["data_dir", "labels_file", "use_albumentations"],
    "LOSS": ["pos_weight"],
}


@pytest.mark.parametrize("section", SECTIONS)
def test_defaults_of_the_previous_release_stay(section):
    config = Config()
    assert {key: config[section][key] for key in OLD_DEFAULTS[section]} == OLD_DEFAULTS[section]
    assert set(OLD_KEYS.get(section, [])) <= set(config[section].keys())


@pytest.mark.parametrize("section", OLD_DEFAULTS_COMPLETED)
def test_what_is_null_is_completed_to_the_defaults_of_the_previous_release(section):
    config, completed, expected = Config(), Config().complete(), OLD_DEFAULTS_COMPLETED[section]
    assert [config[section][key] for key in expected] == [None] * len(expected)
    assert {key: completed[section][key] for key in expected} == expected
    assert completed.complete() == completed and completed.problems() == []


def test_default_backbone_exists():
    assert Config().MODEL.backbone in list_backbones()


def test_no_contradictions_by_default():
    assert Config().problems() == []


def test_two_instances_share_nothing():
    first, second = Config(), Config()
    before = second.model_dump()
    for section in SECTIONS:
        assert first[section] is not second[section]
    first.MODEL.dropout = 0.1
    first.MODEL.gradient_checkpointing.enabled = True
    first.DATA.class_names = ["a"]
    first.DATA.class_names.append("b")
    assert second.model_dump() == before == Config().model_dump()


def test_an_assigned_section_is_not_shared_between_configs():
    first, second = Config(), Config()
    second.MODEL = first.MODEL
    first.MODEL.dropout = 0.1
    assert second.MODEL.dropout == 0.5


def test_assigned_lists_are_copied():
    names = ["a", "b"]
    config = Config()
    config.DATA.class_names = names
    names.append("c")
    assert config.DATA.class_names == ["a", "b"]


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["deepcopy", "pickle"]
)
def test_copies_are_equal_and_apart(duplicate):
    config = Config.from_overrides(["TRAIN.epochs=3"])
    twin = duplicate(config)
    assert twin == config and twin.TRAIN.epochs == 3
    twin.TRAIN.epochs = 4
    assert config.TRAIN.epochs == 3


@pytest.mark.parametrize("path", SETTINGS, ids=".".join)
def test_item_attribute_and_get_agree(path):
    by_item = by_attribute = by_get = Config()
    for part in path:
        by_item, by_attribute, by_get = by_item[part], getattr(by_attribute, part), by_get.get(part, "absent")
    assert by_item == by_attribute == by_get != "absent"


def test_sections_read_like_a_dict():
    section = Config().CHECKPOINT
    assert "save_freq" in section and "save_freqs" not in section
    assert list(section) == section.keys() == [key for key, _ in section.items()]
    assert dict(section.items()) == section.model_dump()
    assert section.get("no_such_key") is None and section.get("no_such_key", 8) == 8


def test_item_assignment_is_attribute_assignment():
    config = Config()
    config.MODEL["backbone"] = "resnet50"
    assert config.MODEL.backbone == "resnet50"


def test_values_are_coerced_by_type_on_assignment():
    config = Config()
    config.TRAIN.learning_rate = "1e-3"
    config.MODEL.input_size = [64, 96]
    assert config.TRAIN.learning_rate == 1e-3 and config.MODEL.input_size == (64, 96)


BAD_ASSIGNMENTS = [
    ("TRAIN", "batch_size", 0, "at least 1|greater than 0"),
    ("TRAIN", "batch_size", 1.5, "whole number"),
    ("TRAIN", "batch_size", "many", "'many'"),
    ("TRAIN", "batch_size", None, "None"),
    ("TRAIN", "learning_rate", -1, "greater than 0"),
    ("TRAIN", "learning_rate", float("nan"), "nan"),
    ("TRAIN", "learning_rate", float("inf"), "inf"),
    ("TRAIN", "lr_scheduler", "cosin", "did you mean 'cosine'"),
    ("TRAIN", "mixed_precision", "bf61", "did you mean 'bf16'"),
    ("MODEL", "dropout", 1, "less than 1"),
    ("MODEL", "in_channels", 2, "one of 1, 3"),
    ("MODEL", "fusion_stride", 5, "one of auto, 4, 8, 16, 32"),
    ("MODEL", "input_size", (224,), "MODEL.input_size"),
    ("MODEL", "input_size", (224, 0), "MODEL.input_size"),
    (
        "DATA",
        "image_size",
        (32, 64, 64, 1),
        r"DATA\.image_size.*number \(greater than 0\) or a list, each a whole number \(greater than 0\) or null$",
    ),
    ("DATA", "image_size", (0, 64, 64), "DATA.image_size"),
    ("DATA", "spacing_mm", (1, 1), r"DATA\.spacing_mm.*a list, each a number \(greater than 0\) or null"),
    ("DATA", "spacing_mm", (1, 0, 1), "DATA.spacing_mm"),
    ("DATA", "window", (1, 2, 3), "DATA.window"),
    ("DATA", "window", 400, "DATA.window"),
    ("DATA", "format", "nhi", "did you mean 'nih'"),
    ("DATA", "mean", [0.5, "grey", 0.5], "'grey'"),
    ("DATA", "mean", [float("nan")] * 3, "DATA.mean"),
    ("DATA", "sample_size", 32, "at least 64"),
    ("LOSS", "pos_weight", "automatic", "LOSS.pos_weight"),
]


@pytest.mark.parametrize("section, key, value, words", BAD_ASSIGNMENTS, ids=lambda v: str(v)[:20])
def test_a_refused_assignment_names_key_and_value_and_changes_nothing(section, key, value, words):
    config = Config()
    before = config.model_dump()
    with pytest.raises(ConfigError, match=words) as caught:
        config[section][key] = value
    assert f"{section}.{key}" in str(caught.value)
    with pytest.raises(ConfigError):
        setattr(config[section], key, value)
    assert config.model_dump() == before


def numeric_settings() -> list[tuple[str, str]]:
    """Settings that take a number and have no use for true and false."""
    config = Config()
    return [
        (section, key)
        for section in SECTIONS
        for key, value in config[section].items()
        if isinstance(value, (int, float, tuple)) and not isinstance(value, bool)
    ]


@pytest.mark.parametrize("section, key", numeric_settings())
@pytest.mark.parametrize("value", [True, False])
def test_booleans_are_no_numbers(section, key, value):
    config = Config()
    with pytest.raises(ConfigError, match=f"{section}.{key}"):
        config[section][key] = value


@pytest.mark.parametrize(
    "section, key, value",
    [
        ("DATA", "mean", [True, False, True]),
        ("DATA", "image_size", [True, 224]),
        ("DATA", "image_size", [True, 64, 64]),
        ("DATA", "spacing_mm", [True, 1, 1]),
        ("MODEL", "input_size", (224, True)),
        ("LOSS", "pos_weight", [True]),
    ],
)
def test_booleans_are_no_numbers_inside_lists_either(section, key, value):
    config = Config()
    with pytest.raises(ConfigError, match=f"{section}.{key}"):
        config[section][key] = value


@pytest.mark.parametrize("path", [path for path in SETTINGS if len(path[-1]) > 3], ids=".".join)
def test_a_misspelt_key_is_named_with_its_neighbour(path):
    *sections, key = path
    section = Config()
    for part in sections:
        section = section[part]
    wrong = key[:-2] + key[-1] + key[-2] + "x"
    for mistake in (lambda: section[wrong], lambda: setattr(section, wrong, 1), lambda: section.__setitem__(wrong, 1)):
        with pytest.raises(ConfigError) as caught:
            mistake()
        message = str(caught.value)
        assert ".".join([*sections, wrong]) in message
        assert any(f"did you mean '{near}'" in message for near in section if near[:3] == key[:3])


@pytest.mark.parametrize("wrong, meant", [("MODLE", "MODEL"), ("TRIAN", "TRAIN"), ("LOGING", "LOGGING")])
def test_a_misspelt_section_is_named_with_its_neighbour(wrong, meant):
    config = Config()
    for mistake in (lambda: config[wrong], lambda: setattr(config, wrong, {})):
        with pytest.raises(ConfigError, match=f"{wrong}: did you mean '{meant}'"):
            mistake()


def test_a_whole_section_is_checked_when_it_is_assigned():
    config = Config()
    config.MODEL = {"backbone": "resnet18"}
    assert config.MODEL.backbone == "resnet18" and config.MODEL.dropout == 0.5
    with pytest.raises(ConfigError, match=r"MODEL\.backbon: did you mean 'backbone'"):
        config.MODEL = {"backbon": "resnet50"}
    assert config.MODEL.backbone == "resnet18"


@pytest.mark.parametrize(
    "words, value", [("true", True), ("False", False), (True, True), (False, False), ("true.pth", "true.pth")]
)
def test_pretrained_is_a_switch_or_a_path(words, value):
    config = Config()
    config.MODEL.pretrained = words
    assert config.MODEL.pretrained == value and type(config.MODEL.pretrained) is type(value)


@pytest.mark.parametrize("path", SETTINGS, ids=".".join)
def test_every_setting_has_help_and_a_default_that_can_be_shown(path):
    section: type[Section] = Config
    for part in path[:-1]:
        section = section.model_fields[part].annotation
    field = section.model_fields[path[-1]]
    assert len(field.description.split()) >= 2
    assert default_text(field).strip()


# ---- writing and reading again


CHANGED = {
    "MODEL.input_size": (64, 96),
    "MODEL.coarse_groups": {"Läsion": ["nodule"]},
    "MODEL.pretrained": "weights/net.pth",
    "TRAIN.learning_rate": 1e-7,
    "TRAIN.gradient_clip_norm": None,
    "DATA.mean": [0.1, 0.2, 1e-5],
    "DATA.class_names": ["no", "012", "1e-3", "null", "Größe: 3", "a#b"],
    "DATA.data_dir": None,
    "LOGGING.run_name": "2026-11-21",
}


@pytest.mark.parametrize(
    "config", [Config(), with_values(CHANGED), Config().resolve(FINDINGS, True)], ids=["default", "changed", "resolved"]
)
def test_yaml_comes_back_equal(config, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert Config.from_yaml(path).model_dump() == config.model_dump()
    assert Config.from_yaml(path).to_yaml() == config.to_yaml()


def test_yaml_leaves_to_the_data_what_nobody_set(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(Config().to_yaml(), encoding="utf-8")
    resolved = Config.from_yaml(path).resolve(FINDINGS, True)
    assert (resolved.MODEL.num_classes, resolved.MODEL.task, resolved.LOSS.type) == (3, "multi_class", "cross_entropy")


def test_plain_values_for_checkpoints_and_json():
    content = with_values(CHANGED).model_dump(mode="json")
    assert json.loads(json.dumps(content)) == content
