"""The settings themselves: access, checked assignment, old defaults, what follows from the data, who reads them."""

import ast
import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from configs.default_config import Config
from configs.errors import ConfigError
from configs.section import Section, default_text
from models import list_backbones

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = list(Config.model_fields)
FINDINGS = ("nodule", "mass", "effusion")

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


def all_settings(section: type[Section] = Config, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """('MODEL', 'backbone'), …, ('MODEL', 'gradient_checkpointing', 'enabled'): the leaves."""
    for key, field in section.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, Section):
            yield from all_settings(nested, (*path, key))
        else:
            yield (*path, key)


SETTINGS = list(all_settings())


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
    section = Config().LOSS
    assert "teacher" in section and "teachers" not in section
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


# ---- image_shape, problems, resolve


@pytest.mark.parametrize(
    "overrides, expected",
    [
        ([], (224, 224)),
        (["DATA.image_size=112"], (112, 112)),
        (["DATA.image_size=[64, 96]"], (64, 96)),
        (["MODEL.input_size=96"], (96, 96)),
        (["MODEL.input_size=[96, 64]"], (96, 64)),
        (["MODEL.input_size=96", "DATA.image_size=[96, 96]"], (96, 96)),
        (["DATA.image_size=[32, 64, 48]"], (32, 64, 48)),
        (["MODEL.input_size=[32, 64, 48]"], (32, 64, 48)),
        (["MODEL.input_size=[32, 64, 48]", "DATA.image_size=[32, 64, 48]"], (32, 64, 48)),
    ],
    ids=str,
)
def test_either_size_decides(overrides, expected):
    config = Config.from_overrides(overrides)
    assert config.image_shape() == expected and config.has_volumes() is (len(expected) == 3)


def test_two_different_sizes_are_a_contradiction():
    config = Config()
    config.MODEL.input_size, config.DATA.image_size = 96, 64
    with pytest.raises(ConfigError, match=r"\(64, 64\).*\(96, 96\)"):
        config.image_shape()
    assert len(config.problems()) == 1 and "differ" in config.problems()[0]


CONTRADICTIONS = {
    "DATA.train_split": {"DATA.train_split": 0.8},
    "LOSS.type": {"LOSS.type": "cross_entropy", "MODEL.task": "multi_label"},
    "LOSS.pos_weight": {"LOSS.pos_weight": "auto", "LOSS.type": "focal"},
    "MODEL.hierarchical": {"MODEL.hierarchical": True, "MODEL.task": "binary"},
    "MODEL.init_from": {"MODEL.init_from": "a.pth", "MODEL.pretrained": "b.pth"},
    "DATA.mean": {"DATA.mean": [0.5, 0.5]},
    "DATA.std has": {"DATA.std": [0.5, 0.5]},
    "DATA.std [0": {"DATA.std": [0.0]},
    "differ": {"MODEL.input_size": 64, "DATA.image_size": 96},
    "(32, 64, 64) and MODEL.input_size (64, 64) differ": {"MODEL.input_size": 64, "DATA.image_size": (32, 64, 64)},
    "DATA.spacing_mm is for volumes: set DATA.image_size=[depth": {"DATA.spacing_mm": (5, 1, 1)},
    "DATA.window is for volumes: set DATA.image_size=[depth": {"DATA.window": (-1000, 400)},
    "DATA.window (400.0, -1000.0): low": {"DATA.window": (400, -1000), "DATA.image_size": (32, 64, 64)},
    "DATA.resize 'letterbox' is for images": {"DATA.resize": "letterbox", "DATA.image_size": (32, 64, 64)},
    "DATA.use_albumentations is for": {"DATA.use_albumentations": True, "DATA.image_size": (32, 64, 64)},
    "images, not volumes: use auto or cpu": {"DATA.augment_on": "device", "DATA.image_size": (32, 64, 64)},
    "images, not DATA.use_albumentations: use auto": {"DATA.augment_on": "device", "DATA.use_albumentations": True},
}


def with_values(values: dict) -> Config:
    config = Config()
    for name, value in values.items():
        section, key = name.split(".")
        config[section][key] = value
    return config


@pytest.mark.parametrize("words, values", CONTRADICTIONS.items(), ids=CONTRADICTIONS)
def test_each_contradiction_is_one_problem(words, values):
    (problem,) = with_values(values).problems()
    assert words in problem


def test_all_contradictions_are_told_at_once():
    config = with_values(
        {
            "DATA.train_split": 0.8,
            "MODEL.task": "multi_label",
            "LOSS.type": "cross_entropy",
            "LOSS.pos_weight": "auto",
            "DATA.std": [0.0, 1.0],
        }
    )
    assert len(config.problems()) == 5


@pytest.mark.parametrize(
    "values",
    [
        {"MODEL.task": "multi_class"},
        {"MODEL.task": "multi_class", "LOSS.type": "cross_entropy"},
        {"LOSS.type": "cross_entropy"},  # the data may have one class an image
        {"MODEL.in_channels": 1, "DATA.mean": [0.5], "DATA.std": [0.25]},
        {"DATA.train_split": 0.8, "DATA.val_split": 0.2, "DATA.test_split": 0.0},
        {"LOSS.pos_weight": [1.0, 2.0]},
        {"MODEL.init_from": "a.pth", "MODEL.pretrained": True},
        {"DATA.image_size": (32, 64, 64), "DATA.spacing_mm": (5, 1, 1), "DATA.window": (-1000, 400)},
    ],
    ids=str,
)
def test_sound_settings_have_no_problems(values):
    assert with_values(values).problems() == []


def test_resolve_takes_the_classes_from_the_data():
    config = Config()
    before = config.model_dump()
    resolved = config.resolve(FINDINGS)
    assert resolved.MODEL.num_classes == 3 and resolved.DATA.class_names == list(FINDINGS)
    assert resolved.MODEL.input_size == resolved.DATA.image_size == (224, 224)
    assert resolved.problems() == [] and config.model_dump() == before


def test_sizes_of_volumes_are_written_out_and_come_back(tmp_path):
    config = with_values({"DATA.image_size": (32, 64, 64), "DATA.spacing_mm": (5, 1, 1), "DATA.window": (-1000, 400)})
    resolved = config.resolve(FINDINGS)
    assert resolved.MODEL.input_size == resolved.DATA.image_size == (32, 64, 64)
    (tmp_path / "config.yaml").write_text(resolved.to_yaml(), encoding="utf-8")
    again = Config.from_yaml(tmp_path / "config.yaml")
    assert again.model_dump() == resolved.model_dump() and again.has_volumes()


def test_resolving_twice_changes_nothing():
    config = with_values({"MODEL.hierarchical": True, "DATA.image_size": 96})
    once = config.resolve(FINDINGS)
    assert once.resolve(FINDINGS) == once


def test_number_of_classes_contradicts_the_data():
    config = with_values({"MODEL.num_classes": 14})
    with pytest.raises(ConfigError, match=r"14.*3 classes \(nodule, mass, effusion\)"):
        config.resolve(FINDINGS)
    assert with_values({"MODEL.num_classes": 3}).resolve(FINDINGS).MODEL.num_classes == 3


@pytest.mark.parametrize(
    "names, exclusive, task, loss",
    [
        (FINDINGS, False, "multi_label", "bce"),
        (FINDINGS, True, "multi_class", "cross_entropy"),
        (("pneumonia",), False, "binary", "bce"),
    ],
)
def test_the_task_follows_the_data(names, exclusive, task, loss):
    resolved = Config().resolve(names, exclusive)
    assert (resolved.MODEL.task, resolved.LOSS.type) == (task, loss)


def test_a_task_that_was_set_stays():
    assert with_values({"MODEL.task": "multi_label"}).resolve(FINDINGS, True).MODEL.task == "multi_label"
    with pytest.raises(ConfigError, match="'binary' needs one class, the data have 3"):
        with_values({"MODEL.task": "binary"}).resolve(FINDINGS)


def test_a_contradiction_that_only_the_data_show_is_told():
    config = with_values({"LOSS.type": "focal"})
    with pytest.raises(ConfigError, match=r"'focal' does not fit MODEL\.task 'multi_class'"):
        config.resolve(FINDINGS, exclusive=True)


class TestCoarseGroups:
    groups: ClassVar = {"lesion": ["nodule", "mass"], "fluid": ["effusion"], "any": list(FINDINGS)}

    def test_two_classes_without_groups(self):
        assert with_values({"MODEL.hierarchical": True}).resolve(FINDINGS).MODEL.num_coarse_classes == 2

    def test_as_many_as_groups(self):
        config = with_values({"MODEL.hierarchical": True, "MODEL.coarse_groups": self.groups})
        assert config.resolve(FINDINGS).MODEL.num_coarse_classes == 3

    @pytest.mark.parametrize(
        "groups, words", [({"lesion": ["nodul"]}, "nodul"), ({"lesion": []}, "nothing")], ids=["unknown", "empty"]
    )
    def test_members_must_be_classes(self, groups, words):
        config = with_values({"MODEL.hierarchical": True, "MODEL.coarse_groups": groups})
        with pytest.raises(ConfigError, match=f"'lesion' names .*{words}.*nodule, mass, effusion"):
            config.resolve(FINDINGS)

    def test_a_number_that_contradicts_the_groups(self):
        values = {"MODEL.hierarchical": True, "MODEL.coarse_groups": self.groups, "MODEL.num_coarse_classes": 2}
        with pytest.raises(ConfigError, match=r"num_coarse_classes is 2, but .* makes 3"):
            with_values(values).resolve(FINDINGS)


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


# ---- every key has a reader


def sources() -> list[Path]:
    """The project's own Python files, tests and benchmarks apart."""
    folders = ("configs", "data", "models", "training", "utils")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    files += [path for path in ROOT.glob("*.py") if not path.name.startswith("test_")]
    return sorted(files)


class Reads(ast.NodeVisitor):
    """Collects (section, key) for every read such as `config.TRAIN.epochs`, `config.TRAIN["epochs"]`,
    `config["TRAIN"].get("epochs")`, or through a name that stands for a section: `settings = config.TRAIN`,
    `def f(settings: TrainSettings)`.
    """

    def __init__(self) -> None:
        self.found: set[tuple[str, ...]] = set()
        self.scopes: list[dict[str, tuple[str, ...]]] = [{}]

    def section_of(self, node: ast.AST) -> tuple[str, ...] | None:
        """The section that an expression stands for, if it does: ('TRAIN',) for config.TRAIN."""
        if isinstance(node, ast.Name):
            return next((scope[node.id] for scope in reversed(self.scopes) if node.id in scope), None)
        path = self.read_of(node)
        return path if path is not None and path in SECTION_PATHS else None

    def read_of(self, node: ast.AST) -> tuple[str, ...] | None:
        """The path that an attribute, an item or a get reads: ('TRAIN',), ('TRAIN', 'epochs')."""
        if isinstance(node, ast.Attribute):
            owner, key = node.value, node.attr
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            owner, key = node.value, node.slice.value
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "get"
            and node.args
        ):
            owner, key = node.func.value, getattr(node.args[0], "value", None)
        else:
            return None
        if key in SECTIONS:
            return (key,)
        section = self.section_of(owner)
        return (*section, key) if section is not None and isinstance(key, str) else None

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name == "problems":
            return  # a check alone is no use of a setting
        scope = {}
        arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        for argument in arguments:
            for name in ast.walk(argument.annotation) if argument.annotation else ():
                if isinstance(name, ast.Name) and name.id in SECTION_CLASSES:
                    scope[argument.arg] = SECTION_CLASSES[name.id]
        self.scopes.append(scope)
        self.generic_visit(node)
        self.scopes.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts))
            for one, value in pairs:
                section = self.section_of(value)
                if isinstance(one, ast.Name) and section is not None:
                    self.scopes[-1][one.id] = section
        self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> None:
        path = self.read_of(node)
        if path is not None and not isinstance(getattr(node, "ctx", None), (ast.Store, ast.Del)):
            self.found.add(path)
        super().generic_visit(node)


def section_classes(section: type[Section] = Config, path: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """{'TrainSettings': ('TRAIN',), …}, nested ones too."""
    found = {section.__name__: path} if path else {}
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= section_classes(field.annotation, (*path, key))
    return found


SECTION_CLASSES = section_classes()
SECTION_PATHS = set(SECTION_CLASSES.values())
NESTED = ("MODEL", "gradient_checkpointing", "enabled")


def reads(text: str) -> set[tuple[str, ...]]:
    visitor = Reads()
    visitor.visit(ast.parse(text))
    return visitor.found & set(SETTINGS)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("x = config.TRAIN.epochs", {("TRAIN", "epochs")}),
        ("x = config['TRAIN']['epochs']", {("TRAIN", "epochs")}),
        ("x = config.TRAIN.get('epochs', 3)", {("TRAIN", "epochs")}),
        ("def f(c):\n a, b = c.TRAIN, c.DATA\n return a.seed, b.mean", {("TRAIN", "seed"), ("DATA", "mean")}),
        ("def f(s: TrainSettings): return s.epochs", {("TRAIN", "epochs")}),
        ("def f(s: ModelSettings): return s.gradient_checkpointing.enabled", {NESTED}),
        ("config.TRAIN.epochs = 3", set()),
        ("torch.compile(model); x.format(); net.name", set()),
        ("def problems(self): return self.TRAIN.epochs", set()),
    ],
)  # fmt: skip
def test_the_search_for_readers_finds_reads_only(text, expected):
    assert reads(text) == expected


def test_every_key_has_a_reader():
    files = [path for path in sources() if path != ROOT / "configs" / "section.py"]
    read = set().union(*(reads(path.read_text(encoding="utf-8")) for path in files))
    unread = [".".join(path) for path in SETTINGS if path not in read]
    assert not unread, f"settings that nothing reads: {', '.join(unread)}"


@pytest.mark.parametrize(
    ("size", "fits"),
    [
        ([9459, 9459], True),
        ([9460, 9460], False),
        (1_000_000, False),
        ([512, 1024, 1024], True),
        ([513, 1024, 1024], False),
    ],
)
def test_a_network_reads_no_larger_images_than_data_give(size, fits):
    found = "\n".join(Config.model_validate({"DATA": {"image_size": size}}).problems())
    assert ("are possible" in found) is not fits, found
