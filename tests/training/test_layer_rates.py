"""A rate per block of the backbone: each parameter once, by the rule of BEiT and timm."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from configs.default_config import Config
from configs.errors import ConfigError
from models import HybridMedNet
from tests.training.toys import plain_model
from training.layer_rates import backbone_rate_factors, describe_rates
from training.optim import LearningRateSchedule, create_optimizer, parameter_groups

DECAY = 0.7


def network(name: str, size: int, *overrides: str) -> HybridMedNet:
    given = [f"MODEL.backbone={name}", "MODEL.pretrained=false", f"DATA.image_size={size}", "MODEL.num_classes=3"]
    return HybridMedNet(Config.from_overrides([*given, "MODEL.fusion_channels=16", *overrides]))


def test_a_vision_transformer_has_the_rates_of_timm():
    """But for the last norm, which timm has with the head, and whose layer here is the last block's."""
    model = network("timm/test_vit", 160)
    found = backbone_rate_factors(model, 1.0, DECAY)
    ours = {name: found.get(parameter, 1.0) for name, parameter in model.backbone.body.named_parameters()}
    theirs = {}
    body = timm.create_model("test_vit", img_size=160, num_classes=3)
    names = {parameter: name for name, parameter in body.named_parameters()}
    for group in param_groups_layer_decay(body, weight_decay=0.1, layer_decay=DECAY):
        theirs |= {names[parameter]: group["lr_scale"] for parameter in group["params"]}
    common = [name for name in ours if name in theirs and not name.startswith("norm.")]
    assert len(common) > 20
    assert {name: ours[name] for name in common} == pytest.approx({name: theirs[name] for name in common})


@pytest.mark.parametrize(("name", "size"), [("timm/test_resnet", 32), ("timm/test_vit", 160)])
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_each_parameter_is_in_one_group_at_one_rate(name, size, decay):
    model = network(name, size)
    factors = backbone_rate_factors(model, 0.1, decay)
    groups = parameter_groups(model, 0.1, rate_factors=factors)
    everything = [parameter for group in groups for parameter in group["params"]]
    assert len(everything) == len(set(everything)) and set(everything) == set(model.parameters())
    before = {name for group in parameter_groups(model, 0.1)[::2] for name in group["param_names"]}
    assert {name for group in groups[::2] for name in group["param_names"]} == before  # what decays
    for group in groups:
        assert all(factors.get(parameter, 1.0) == group["rate_factor"] for parameter in group["params"])
    added = {parameter for layer in model.backbone.new_layers() for parameter in layer.parameters()}
    assert set(factors) == set(model.backbone.parameters()) - added
    # Along the list of blocks the rate only rises, and ends with factor · decay.
    blocks = model.backbone.blocks(torch.zeros(1, 3, size, size))
    along = [factors[p] for one in blocks for p in one.all_parameters() if p in factors]
    assert along == sorted(along) and along[-1] == pytest.approx(0.1 * decay)


def test_backbones_of_several_views_and_what_joins_them():
    views = ["MODEL.views.aggregator=attention", "MODEL.views.backbones=separate", "MODEL.view_kinds=[PA, L]"]
    model = network("timm/test_resnet", 32, *views)
    factors = backbone_rate_factors(model, 0.1, 0.5)
    one, other = model.backbone, model.view_backbones[0]
    assert [factors[p] for p in one.parameters()] == [factors[p] for p in other.parameters()]
    groups = parameter_groups(model, 0.1, 3.0, rate_factors=factors)
    rates = sorted({group["rate_factor"] for group in groups}, reverse=True)
    assert rates[:3] == [3.0, 1.0, 0.05]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_the_schedule_multiplies_every_rate():
    model = network("timm/test_resnet", 32)
    optimizer = create_optimizer(model, "adamw", 1e-3, 0.1, rate_factors=backbone_rate_factors(model, 0.1, 0.5))
    schedule = LearningRateSchedule(optimizer, "cosine", 1e-3, total_steps=4, warmup_steps=1)
    for _ in range(4):
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(schedule.learning_rate * group["rate_factor"])
        schedule.step()
    lines = describe_rates(optimizer.param_groups, 1e-3)
    layers = len({group["rate_factor"] for group in optimizer.param_groups}) - 1
    count = sum(parameter.numel() for parameter in model.backbone.parameters())
    assert lines[0].startswith("learning rate 0.001: ") and len(lines) == 2
    lowest = 0.1 * 0.5**layers
    rates = f"learning rates 5e-05 to {1e-3 * lowest:.3g} (0.05 to {lowest:.3g} of 0.001) in {layers} layers"
    assert lines[1] == f"{rates}: {count:,} parameters"


def test_without_rates_the_groups_are_the_two_that_ever_were():
    assert backbone_rate_factors(plain_model()) == {}
    model = network("timm/test_resnet", 32)
    assert [group["rate_factor"] for group in parameter_groups(model, 0.1)] == [1.0, 1.0]


def test_networks_without_a_list_of_blocks_are_refused():
    with pytest.raises(ConfigError, match="Sequential has none"):
        backbone_rate_factors(plain_model(), decay=0.5)
    whole = network("timm/test_resnet", 32)
    one = whole.backbone.blocks(torch.zeros(1, 3, 32, 32))[0]._replace(modules=(whole.backbone,))
    assert isinstance(whole.backbone, nn.Module)
    whole.backbone.blocks = lambda x: [one]  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="no list of blocks here"):
        backbone_rate_factors(whole, decay=0.5)
    assert set(backbone_rate_factors(whole, factor=0.5).values()) == {0.5}
