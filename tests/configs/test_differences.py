"""Settings that a resumed run changes: which differ, and which of them matter."""

import pytest

from configs.default_config import Config
from configs.differences import WITHOUT_EFFECT, differences


def dump(*overrides: str) -> dict:
    return Config.from_overrides(list(overrides)).model_dump(mode="json")


def test_equal_settings_do_not_differ():
    assert differences(dump("DATA.mean=[0.5]"), dump("DATA.mean=[0.5]")) == []


@pytest.mark.parametrize(
    ("override", "text", "matters"),
    [
        ("TRAIN.learning_rate=0.5", "TRAIN.learning_rate 0.0001 → 0.5", True),
        ("TRAIN.epochs=60", "TRAIN.epochs 50 → 60", True),
        ("MODEL.gradient_checkpointing.enabled=true", "MODEL.gradient_checkpointing.enabled False → True", False),
        ("MODEL.coarse_groups={a: [b]}", "MODEL.coarse_groups None → {'a': ['b']}", True),
        ("DATA.num_workers=0", "DATA.num_workers 4 → 0", False),
        ("DATA.image_size=[96, 64]", "DATA.image_size None → [96, 64]", True),
        ("LOGGING.print_freq=1", "LOGGING.print_freq 10 → 1", False),
        ("CHECKPOINT.save_freq=1", "CHECKPOINT.save_freq 5 → 1", False),
    ],
)
def test_a_difference_says_what_it_was_and_whether_it_matters(override, text, matters):
    (found,) = differences(dump(), dump(override))
    assert (str(found), found.matters) == (text, matters)


def test_settings_that_one_side_does_not_know():
    old, new = dump(), dump()
    del old["TRAIN"]["ema_decay"]
    old["TRAIN"]["gone"] = 3
    assert [str(found) for found in differences(old, new)] == [
        "TRAIN.ema_decay '(unknown)' → 0.0",
        "TRAIN.gone 3 → '(unknown)'",
    ]


def test_the_settings_without_effect_are_settings():
    for name in WITHOUT_EFFECT:
        section, *keys = name.split(".")
        assert section in Config.model_fields, name
        settings = Config()[section]
        for key in keys:
            assert key in settings.keys(), name  # noqa: SIM118
            settings = settings[key]
