"""Settings of recipes that contradict each other, each told in one line that says what to do."""

import pytest

from configs.default_config import Config
from configs.errors import ConfigError

STUDY = "MODEL.views.aggregator=mean"
VALID = [
    ["DATA.sampling=balanced", "LOSS.pos_weight=[1, 2]", "DATA.class_names=[a, b]"],
    ["DATA.sampling={a: 2.5}", "LOSS.correct_prior=false"],
    ["DATA.mixup=0.2", "DATA.cutmix=1", "DATA.mix_probability=0.5"],
    ["DATA.mixup=0.2", "MODEL.hierarchical=true", "LOSS.consistency_weight=0", "MODEL.task=multi_label"],
    ["TRAIN.freeze=3", "TRAIN.layer_decay=0.8"],
    ["TRAIN.freeze=level_2", "TRAIN.unfreeze_epoch=3", "TRAIN.backbone_learning_rate_factor=0.1"],
]
INVALID = [
    (["DATA.sampling=balanced", "LOSS.pos_weight=auto"], "would count twice"),
    (["DATA.sampling={a: 2}", "LOSS.class_weight=auto", "MODEL.task=multi_class"], "LOSS.class_weight 'auto'"),
    (["DATA.sampling={a: 2}", "DATA.class_names=[b, c]"], "'a' is no class (b, c)"),
    (["DATA.sampling={a: 0}"], "DATA.sampling"),
    (["DATA.sampling=balance"], "did you mean 'balanced'?"),
    (["LOSS.correct_prior=false"], "nothing is to be corrected"),
    (["DATA.mixup=0.2", STUDY, "MODEL.view_kinds=[PA, L]"], "several views or with a table"),
    (["DATA.cutmix=1", "MODEL.hierarchical=true"], "LOSS.consistency_weight to 0"),
    (["DATA.mixup=1", "LOSS.attention.method=consistency"], "LOSS.attention teaches"),
    (["DATA.mix_probability=0.5"], "which are 0"),
    (["DATA.mixup=-1"], "at least 0"),
]


@pytest.mark.parametrize("overrides", VALID, ids=" ".join)
def test_what_goes_together(overrides):
    assert Config.from_overrides(overrides).complete().problems() == []


@pytest.mark.parametrize(("overrides", "words"), INVALID, ids=[words for _, words in INVALID])
def test_what_does_not(overrides, words):
    with pytest.raises(ConfigError) as caught:
        Config.from_overrides(overrides)
    assert words in str(caught.value)
