"""LOSS.attention: what goes together and what does not, all at once, before anything is read."""

import pytest

from configs.default_config import Config
from configs.errors import ConfigError

REGIONS = "LOSS.attention.masks=masks"


@pytest.mark.parametrize("method", ["mask", "cam"])
@pytest.mark.parametrize("regions", ["LOSS.attention.masks=masks", "LOSS.attention.boxes=boxes.csv"])
def test_methods_with_what_they_need(method, regions):
    config = Config.from_overrides([f"LOSS.attention.method={method}", regions])
    assert config.LOSS.attention.trains and config.LOSS.attention.has_regions


def test_nothing_is_taught_by_default_nor_with_weight_0():
    assert not Config().LOSS.attention.trains
    assert not Config.from_overrides(
        ["LOSS.attention.method=mask", REGIONS, "LOSS.attention.weight=0"]
    ).LOSS.attention.trains
    assert Config.from_overrides([REGIONS]).LOSS.attention.has_regions  # measured, not taught


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["method=mask"], "'mask' needs regions"),
        (["method=cam"], "'cam' needs regions"),
        (["masks=a", "boxes=b"], "both boxes and masks"),
        (["method=consistency", "DATA.augment=false"], "set DATA.augment to true"),
        (["method=mask", "masks=a", "MODEL.attention=none"], "cbam, multi_scale, cross_scale have one"),
        (["method=cam", "masks=a", "DATA.use_albumentations=true"], "set DATA.use_albumentations to false"),
        (["masks=a", "DATA.use_albumentations=true"], "set DATA.use_albumentations to false"),
        (["method=cam", "masks=a", "TRAIN.compile=true"], "set TRAIN.compile to false"),
        (["method=cam", "masks=a", "TRAIN.quantization_aware=true"], "set TRAIN.quantization_aware to false"),
        (["method=consistency", "DATA.image_size=[32,32,32]"], "for images, not for volumes"),
        (["masks=a", "DATA.image_size=[32,32,32]"], "for images, not for volumes"),
        (["weight=-1"], "at least 0"),
        (["method=maks"], "mask"),
    ],
)
def test_contradictions(settings, said):
    given = [one if one[0].isupper() else f"LOSS.attention.{one}" for one in settings]
    with pytest.raises(ConfigError, match=said):
        Config.from_overrides(given)


def test_problems_are_told_together():
    with pytest.raises(ConfigError) as error:
        Config.from_overrides(["LOSS.attention.method=mask", "MODEL.attention=none", "TRAIN.compile=true"])
    assert all(word in str(error.value) for word in ("needs regions", "has none", "TRAIN.compile"))
