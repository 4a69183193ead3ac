"""What joins studies learns at a rate of its own, and its tokens do not decay."""

import itertools

import pytest
import torch

from configs.default_config import Config
from models import HybridMedNet
from training.optim import LearningRateSchedule, create_optimizer, parameter_groups

SMALL = ["MODEL.backbone=timm/test_resnet", "MODEL.pretrained=false", "DATA.image_size=32", "MODEL.fusion_channels=16"]
STUDY = ["MODEL.views.aggregator=cross_attention", "MODEL.view_kinds=[a, b]", "MODEL.table.fusion=attention"]
STUDY += ["MODEL.table_columns={age: numeric, sex: 3}", "MODEL.num_classes=3"]


@pytest.fixture(scope="module")
def study() -> HybridMedNet:
    return HybridMedNet(Config.from_overrides([*SMALL, *STUDY]))


def test_each_parameter_is_in_one_group_and_tokens_do_not_decay(study):
    groups = parameter_groups(study, 0.1, 3.0)
    assert [(group["weight_decay"], group["rate_factor"]) for group in groups] == [(0.1, 1), (0, 1), (0.1, 3), (0, 3)]
    names = [group["param_names"] for group in groups]
    assert sorted(itertools.chain(*names)) == sorted(name for name, _ in study.named_parameters())
    assert not any(name.startswith("classifier.study.") for name in names[0] + names[1])
    part = {name.removeprefix("classifier.study.") for name in names[2]}
    assert {"adapter.inner.weight", "aggregator.attention.key_value.weight", "fusion.outer.weight"} <= part
    tokens = {
        "tokens.numbers",
        "tokens.categories.0",
        "fusion.cls",
        "fusion.columns",
        "no_image",
        "adapter.kinds.weight",
    }
    assert {f"classifier.study.{name}" for name in tokens} <= set(names[3])


def test_networks_of_images_keep_their_two_groups():
    image = HybridMedNet(Config.from_overrides([*SMALL, "MODEL.num_classes=3"]))
    groups = parameter_groups(image, 0.1, 3.0)
    assert [(group["weight_decay"], group["rate_factor"]) for group in groups] == [(0.1, 1), (0, 1)]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_its_rate_is_so_many_times_the_schedules(study, kind):
    optimizer = create_optimizer(study, kind, 1e-3, 0.1, study_rate_factor=3.0)
    schedule = LearningRateSchedule(optimizer, "cosine", 1e-3, total_steps=10, warmup_steps=2)
    for _ in range(10):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([schedule.learning_rate] * 2 + [3 * schedule.learning_rate] * 2)
        schedule.step()
    before = {name: p.detach().clone() for name, p in study.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
        group["lr"], group["weight_decay"] = group["lr"] or 0.1 * group["rate_factor"], 0.0
    optimizer.step()
    moved = {name: float((p.detach() - before[name]).abs().mean()) for name, p in study.named_parameters()}
    assert moved["classifier.study.no_image"] == pytest.approx(3 * moved["classifier.classifiers.bias"], rel=1e-3)
