"""Settings together: the input's shape, contradictions, and what is filled from the data."""

from typing import ClassVar

import pytest

from configs.default_config import Config
from configs.errors import ConfigError
from tests.configs.settings import FINDINGS, with_values


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
        {"LOSS.type": "cross_entropy"},  # the data may have one class per image
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
    config = with_values({"LOSS.type": "asymmetric"})
    with pytest.raises(ConfigError, match=r"'asymmetric' does not fit MODEL\.task 'multi_class'"):
        config.resolve(FINDINGS, exclusive=True)


@pytest.mark.parametrize(
    ("names", "positive"),
    [
        (("NORMAL", "PNEUMONIA"), "PNEUMONIA"),
        (("COVID-19", "normal"), "COVID-19"),
        (("Effusion", "No Finding"), "Effusion"),
        (("benign", "malignant"), "malignant"),
        (("abnormal", "Normal"), "abnormal"),
        (("Tumor", "no_tumor"), "Tumor"),
        (("fracture", "non-fracture"), "fracture"),
        (("0", "1"), "1"),
        (("正常", "肺炎"), "肺炎"),
        (("结节", "无结节"), "结节"),
        (("bacteria", "virus"), "virus"),
        (("negative", "normal"), "normal"),
    ],
)
def test_of_two_exclusive_classes_one_is_positive(names, positive):
    assert Config().resolve(names, exclusive=True).DATA.positive_class == positive
    other = next(name for name in names if name != positive)
    asked = with_values({"DATA.positive_class": other}).resolve(names, exclusive=True)
    assert asked.DATA.positive_class == other


def test_a_positive_class_is_of_two_exclusive_classes():
    assert Config().resolve(FINDINGS, exclusive=True).DATA.positive_class is None
    assert Config().resolve(FINDINGS[:2]).DATA.positive_class is None
    config = with_values({"DATA.positive_class": FINDINGS[0]})
    with pytest.raises(ConfigError, match="there are 3"):
        config.resolve(FINDINGS, exclusive=True)
    with pytest.raises(ConfigError, match="not for 'multi_label'"):
        config.resolve(FINDINGS)
    with pytest.raises(ConfigError, match="'nodule' is neither 'a' nor 'b'"):
        config.resolve(("a", "b"), exclusive=True)


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
