"""Settings that are each allowed and cannot be meant: other units, and pairs that contradict each other."""

import pytest

from configs import plausibility
from configs.default_config import Config
from configs.errors import ConfigError
from tests.configs.settings import with_values

VOLUME = {"DATA.image_size": (32, 64, 64)}
# ImageNet's means and deviations, in the units people write them in: the error must name these again.
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def scaled(values: list[float], scale: float) -> list[float]:
    return [value * scale for value in values]


@pytest.mark.parametrize(
    ("scale", "divisor"), [(255, 255), (100, 100), (65535, 65535), (4095, 4095)], ids=["bytes", "percent", "16", "12"]
)
def test_a_normalisation_in_another_unit_is_refused_with_the_one_that_was_meant(scale, divisor):
    (problem,) = with_values({"DATA.mean": scaled(MEAN, scale), "DATA.std": scaled(STD, scale)}).problems()
    assert f"mean [0.485, 0.456, 0.406] and std [0.229, 0.224, 0.225] (divided by {divisor})" in problem


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"DATA.mean": [124.0]}, "DATA.mean [124]"),
        ({"DATA.mean": [0.5], "DATA.std": [57.4]}, "DATA.std [57.4] cannot be"),
        ({"DATA.mean": [-0.1]}, "divided by their largest value"),
        ({"DATA.mean": [1e6]}, "DATA.mean [1e+06]"),
    ],
    ids=str,
)
def test_a_mean_or_a_deviation_alone(values, words):
    (problem,) = with_values(values).problems()
    assert words in problem


@pytest.mark.parametrize("mean, std", [([0.0], [1.0]), ([1.0], [1 / 255]), (MEAN, STD), ([0.5], [0.5])])
def test_a_normalisation_of_images_in_0_to_1_is_taken(mean, std):
    assert with_values({"DATA.mean": mean, "DATA.std": std}).problems() == []


NOTHING = {"LOSS.fine_weight": 0, "LOSS.coarse_weight": 0, "LOSS.consistency_weight": 0}

# (settings, words of the one problem)
ABSURD = [
    ({"TRAIN.learning_rate": 1e-4, "TRAIN.min_learning_rate": 0.1}, "as a share of the peak it would be 1e-05"),
    ({"TRAIN.epochs": 2, "TRAIN.warmup_epochs": 50}, "TRAIN.warmup_epochs 50 is more than TRAIN.epochs 2"),
    ({"TRAIN.learning_rate": 3}, "was 1e-3 meant?"),
    ({"TRAIN.learning_rate": 20, "TRAIN.optimizer": "sgd"}, "no learning rate of sgd, which are at most 10"),
    ({"TRAIN.learning_rate": 0.5, "TRAIN.weight_decay": 2}, "times TRAIN.weight_decay 2 is 1"),
    ({"TRAIN.ema_decay": 0.001}, "0.999 was probably meant"),
    (
        {"TRAIN.lr_scheduler": "plateau", "TRAIN.plateau_patience": 10},
        "TRAIN.early_stopping_patience 10 ends the run before TRAIN.plateau_patience 10",
    ),
    (NOTHING | {"MODEL.hierarchical": True}, "LOSS.fine_weight, coarse_weight and consistency_weight are all 0"),
    ({**VOLUME, "DATA.spacing_mm": (0.0025, 0.0007, 0.0007)}, "if it was meant in metres, it is [2.5, 0.7, 0.7]"),
    ({**VOLUME, "DATA.spacing_mm": (2500, 700, 700)}, "if it was meant in micrometres, it is [2.5, 0.7, 0.7]"),
    ({"DATA.class_names": ["a", "b", "a"]}, "DATA.class_names names 'a' twice"),
    ({"DATA.class_names": ["a", " "]}, "names nothing as number 2"),
    ({"DATA.class_names": ["a", "b"], "MODEL.num_classes": 3}, "num_classes is 3, and DATA.class_names has 2"),
    ({"MODEL.coarse_groups": {"lung": ["Mass", "Mass"]}}, "'lung' names 'Mass' twice"),
    (
        {"LOSS.pos_weight": [1.0, 2.0], "DATA.class_names": ["a", "b", "c"]},
        "LOSS.pos_weight has 2 values for 3 classes",
    ),
]


@pytest.mark.parametrize("values, words", ABSURD, ids=lambda value: str(value)[:50])
def test_what_is_absurd_together_is_one_problem_of_a_training_and_none_of_a_model(values, words):
    """A file that was saved with such settings can be looked at and evaluated."""
    config = with_values(values)
    (problem,) = config.problems()
    assert words in problem and config.problems_of_saved() == []
    assert Config.from_values(config.model_dump(mode="json")) == config


def test_it_is_refused_where_a_run_begins_and_where_one_goes_on(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(with_values({"TRAIN.epochs": 4, "TRAIN.warmup_epochs": 9}).to_yaml())
    with pytest.raises(ConfigError, match="warmup_epochs 9 is more than"):
        Config.from_yaml(path)
    assert Config.from_yaml(path, saved=True).TRAIN.warmup_epochs == 9
    assert Config.from_yaml(path, ["TRAIN.epochs=9"]).TRAIN.epochs == 9
    with pytest.raises(ConfigError, match="warmup_epochs 5 is more than"):
        with_values({"TRAIN.epochs": 3, "TRAIN.warmup_epochs": 5}).resolve(("a", "b"))


SENSIBLE = [
    {"TRAIN.epochs": 1, "TRAIN.warmup_epochs": 1},
    {"TRAIN.min_learning_rate": 1e-4, "TRAIN.learning_rate": 1e-4},
    {"TRAIN.learning_rate": 1.0},
    {"TRAIN.learning_rate": 10.0, "TRAIN.optimizer": "sgd"},
    {"TRAIN.ema_decay": 0.0},
    {"TRAIN.ema_decay": 0.5},
    {"TRAIN.lr_scheduler": "plateau", "TRAIN.early_stopping_patience": 0, "TRAIN.plateau_patience": 20},
    {"TRAIN.early_stopping_patience": 2},  # no plateau that it comes before
    NOTHING,  # no coarse classes, so not used
    {"MODEL.hierarchical": True, "LOSS.fine_weight": 0, "LOSS.coarse_weight": 0},
    {**VOLUME, "DATA.spacing_mm": (5, 0.7, 0.7)},
    {"DATA.image_size": (128, 256, 256), "DATA.spacing_mm": (0.01, 0.01, 0.01)},  # micro-CT
    {"LOSS.pos_weight": [3.0], "DATA.class_names": ["a", "b", "c"]},
]


@pytest.mark.parametrize("values", SENSIBLE, ids=str)
def test_what_is_unusual_is_taken(values):
    assert with_values(values).problems() == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("MODEL.dropout=20", "20 % is 0.2"),
        ("LOSS.label_smoothing=10", "10 % is 0.1"),
        ("DATA.val_split=15", "15 % is 0.15"),
        ("DATA.horizontal_flip='50 %'", "50 % is 0.5"),
        ("TRAIN.pruning.amount=75", "75 % is 0.75"),
        ("TRAIN.momentum=90", "90 % is 0.9"),
    ],
)
def test_a_share_in_percent_is_refused_with_the_share(override, words):
    with pytest.raises(ConfigError, match=words):
        Config.from_overrides([override])


@pytest.mark.parametrize("override", ["MODEL.dropout=-1", "MODEL.dropout=1000", "MODEL.dropout=half"])
def test_what_is_no_percentage_gets_no_such_hint(override):
    with pytest.raises(ConfigError) as caught:
        Config.from_overrides([override])
    assert " % is " not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "batch_size", "steps", "words"),
    [
        (40, 16, 4, "TRAIN.gradient_accumulation_steps 4 is more than the 3 batches of an epoch"),
        (40, 64, 1, "TRAIN.batch_size 64 is more than the 40 training images"),
        (40, 16, 3, None),
        (40, 40, 1, None),
    ],
)
def test_a_step_that_is_larger_than_an_epoch_is_told(images, batch_size, steps, words):
    notes = plausibility.step_notes(images, batch_size, steps)
    assert [words in note for note in notes] == ([True] if words else [])
