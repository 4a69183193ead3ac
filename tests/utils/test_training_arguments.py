"""Shortcuts mean what --set means, and a setting that both say is refused."""

import pytest

import train
from configs.default_config import Config
from configs.errors import ConfigError
from utils.training_arguments import SHORTCUTS, given_overrides

VALUES = {
    "--epochs": "5",
    "--batch-size": "8",
    "--lr": "1e-4",
    "--seed": "3",
    "--device": "cpu",
    "--backbone": "timm/test_resnet",
    "--data": "my: data, [1] # 胸片",
    "--labels": "null",
    "--image-size": "64",
    "--num-workers": "0",
    "--save-dir": "~",
    "--run-name": "7",
}


def value_of(config: Config, key: str) -> object:
    section, name = key.split(".")
    return config[section][name]


def test_each_shortcut_sets_its_setting():
    assert {*VALUES} == {*SHORTCUTS}
    words = [word for pair in VALUES.items() for word in pair]
    config = Config.from_overrides(given_overrides(train.parse_arguments(words)))
    assert value_of(config, "TRAIN.learning_rate") == 1e-4 and config.image_shape() == (64, 64)
    for name in ("--data", "--labels", "--save-dir", "--run-name", "--backbone", "--device"):
        assert value_of(config, SHORTCUTS[name][0][0]) == VALUES[name]
    for name in ("--epochs", "--batch-size", "--seed", "--num-workers"):
        assert value_of(config, SHORTCUTS[name][0][0]) == int(VALUES[name])


@pytest.mark.parametrize(
    "words, twice",
    [
        (["--epochs", "5", "--set", "train.epochs=6"], "--epochs 5 and --set train.epochs=6"),
        (["--backbone", "a", "--set", "model.backbone.type=b"], "--backbone a and --set model.backbone.type=b"),
        (["--image-size", "64", "--set", "MODEL.input_size=64"], "--image-size 64 and --set MODEL.input_size=64"),
    ],
)
def test_the_same_setting_twice_is_refused(words, twice):
    with pytest.raises(ConfigError, match=twice):
        given_overrides(train.parse_arguments(words))


def test_others_go_together_and_a_wrong_value_is_told_as_the_settings():
    options = train.parse_arguments(["--epochs", "five", "--set", "TRAIN.batch_size=2"])
    assert given_overrides(options) == {"TRAIN.batch_size=2": "--set", "TRAIN.epochs=five": "--epochs"}
    with pytest.raises(ConfigError, match=r"TRAIN\.epochs: 'five' is not allowed"):
        train.load_settings(options, None)
