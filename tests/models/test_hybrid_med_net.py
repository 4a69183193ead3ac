"""The whole network: every attention mode on every family builds, trains, is saved and read again, and can learn."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.default_config import Config
from configs.errors import ModelError
from models import HybridMedNet, backbone_dims, list_backbones
from models.attention import ATTENTION_MODES, CrossScaleAttention, MultiScaleAttention, NoAttention, PyramidCBAM
from models.backbones.families import smallest_of_each_family
from models.fpn import FeaturePyramidNetwork
from models.hybrid_med_net import attention_mode
from utils.batch import Inputs, Logits, call_model
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.torch_private import BatchNorm

FAMILIES = smallest_of_each_family(list_backbones())
# Every family and every mode, without all pairs: test_modern_models.py has those, saved and read again too.
EACH_ONCE = [("resnet18", mode) for mode in ATTENTION_MODES] + [
    (name, "auto") for name in FAMILIES if name != "resnet18"
]
QUICK = ("resnet18", "convnext_tiny", "vit_tiny", "swin3d_tiny")
# test_modern_models.py and test_backbones.py walk all families in less time.
MOSTLY_SLOW = [pair if pair[0] in QUICK else pytest.param(*pair, marks=pytest.mark.slow) for pair in EACH_ONCE]
FEW_QUICK = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
MODULES = {
    "none": NoAttention,
    "cbam": PyramidCBAM,
    "multi_scale": MultiScaleAttention,
    "cross_scale": CrossScaleAttention,
}


def shape_for(backbone: str, height: int = 64, width: int = 64) -> tuple[int, ...]:
    """(height, width), with a thin third axis in front for volumes."""
    return (height, width) if backbone_dims(backbone) == 2 else (16, height // 2, width // 2)


def images(backbone: str = "resnet18", batch: int = 2, channels: int = 3) -> Tensor:
    """[batch, channels, *shape_for(backbone)]"""
    return torch.randn(batch, channels, *shape_for(backbone))


def config_of(backbone: str = "resnet18", size: tuple[int, ...] | None = None, **model) -> Config:
    """Random weights, a narrow rest, 64 px."""
    config = Config()
    settings = {"backbone": backbone, "pretrained": False, "fusion_channels": 32, "fpn_channels": 64, "num_classes": 5}
    for key, value in (settings | model).items():
        config.MODEL[key] = value
    config.DATA.image_size = size or shape_for(backbone)
    return config


def build(backbone: str = "resnet18", size: tuple[int, ...] | None = None, **model) -> HybridMedNet:
    torch.manual_seed(0)
    return HybridMedNet(config_of(backbone, size, **model))


def total_loss(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    outputs = output if isinstance(output, tuple) else (output,)
    return sum(F.binary_cross_entropy_with_logits(one, torch.ones_like(one)) for one in outputs)


def parameters_without_gradient(model: nn.Module) -> list[str]:
    return [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def wake(model: nn.Module) -> nn.Module:
    """Parameters that begin at zero (timm's last norms) hide the gradient of what is before them."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("backbone, attention", MOSTLY_SLOW)
def test_a_step_reaches_every_parameter(backbone, attention):
    """And none is reached by zeros only, for which the coarsest map must have more than one place."""
    with torch.device("meta"):
        stride = max(build(backbone).backbone.feature_strides)
    size = tuple(max(side, 2 * int(stride)) for side in shape_for(backbone))
    model = wake(build(backbone, size, attention=attention)).train()
    if attention != "auto":
        assert isinstance(model.attention, MODULES[attention]) and model.attention_mode == attention
    output = model(torch.randn(2, 3, *size))
    assert output.shape == (2, 5)
    total_loss(output).backward()
    assert parameters_without_gradient(model) == []
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


@pytest.mark.parametrize(
    "backbone, attention",
    [*EACH_ONCE[: len(ATTENTION_MODES)], pytest.param("swin_tiny", "auto", marks=pytest.mark.slow)],
)
def test_saved_and_read_again_gives_identical_logits(backbone, attention, tmp_path):
    model, x = build(backbone, attention=attention), images(backbone)
    model.train()(x)  # used statistics
    save_checkpoint({"model": model.state_dict()}, tmp_path / "m.pth")
    torch.manual_seed(1)
    other = HybridMedNet(config_of(backbone, attention=attention))
    other.load_state_dict(load_checkpoint(tmp_path / "m.pth")["model"], strict=True)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), other.eval()(x))


@pytest.mark.parametrize("backbone", FEW_QUICK)
def test_an_image_is_judged_by_itself_and_trains_by_itself(backbone):
    """In eval mode its logits do not depend on what else is in the batch; in training it may be alone."""
    model, x = build(backbone).eval(), images(backbone)
    with torch.no_grad():
        together = model(x)
        for i in range(2):
            torch.testing.assert_close(model(x[i : i + 1]), together[i : i + 1], rtol=1e-4, atol=1e-4)
    total_loss(model.train()(x[:1])).backward()
    assert parameters_without_gradient(model) == []


def test_a_batch_of_one_trains_a_hierarchical_network():
    model = build(hierarchical=True, num_coarse_classes=2).train()
    total_loss(model(images(batch=1))).backward()
    assert parameters_without_gradient(model) == []


@pytest.mark.parametrize("backbone", FEW_QUICK)
def test_one_input_channel(backbone):
    """Shapes only, without time: tests of the backbones compute with one channel."""
    with torch.device("meta"):
        model = build(backbone, in_channels=1).eval()
        assert model(images(backbone, channels=1)).shape == (2, 5)
        with pytest.raises(RuntimeError):
            model(images(backbone))


@pytest.mark.parametrize("sides", [(65, 71), (40, 104)], ids=str)
@pytest.mark.parametrize("backbone, attention", MOSTLY_SLOW)
def test_odd_sizes(backbone, attention, sides):
    size = shape_for(backbone, *sides)
    try:
        model = build(backbone, size, attention=attention).eval()
    except ModelError as error:  # a backbone may refuse a size, with what it takes
        assert "multiple" in str(error)
        return
    with torch.no_grad():
        output = model(torch.randn(1, 3, *size))
    assert output.shape == (1, 5) and output.isfinite().all()


def test_hierarchical_outputs():
    model = build(hierarchical=True, num_coarse_classes=3).eval()
    with torch.no_grad():
        coarse, fine = model(torch.randn(2, 3, 64, 64))
    assert coarse.shape == (2, 3) and fine.shape == (2, 5)


# ---- what auto means


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("cross", [True, False])
@pytest.mark.parametrize("classic", [True, False])
def test_attention_auto(classic, modern, cross):
    settings = Config().MODEL
    settings.use_modern_attention, settings.use_cross_scale_attention = modern, cross
    table = {(True, True): "cross_scale", (True, False): "multi_scale"}
    assert attention_mode(settings, classic) == ("cbam" if classic else table.get((modern, cross), "cbam"))
    for attention in ATTENTION_MODES:
        settings.attention = attention
        assert attention_mode(settings, classic) == attention


def test_old_defaults_mean_cross_scale_for_convnext_and_cbam_for_resnets():
    assert build("convnext_tiny").attention_mode == "cross_scale"
    assert build("resnet18").attention_mode == "cbam"


@pytest.mark.parametrize(
    "backbone, settings, has_fpn, level",
    [
        ("resnet18", {}, True, 0),
        ("resnet18", {"attention": "none"}, True, 0),
        ("resnet18", {"attention": "multi_scale"}, False, 2),
        ("resnet18", {"attention": "cross_scale", "fpn": True}, True, 2),
        ("resnet18", {"fpn": False, "fusion_stride": 16}, False, 2),
        ("timm/test_convnext", {}, False, 2),
        ("timm/test_convnext", {"attention": "cbam"}, False, 2),
        ("timm/test_convnext", {"fpn": True, "fusion_stride": 4}, True, 0),
        ("timm/test_convnext", {"fusion_stride": 8}, False, 1),
        ("timm/test_convnext", {"fusion_stride": 32}, False, 3),
    ],
)
def test_pyramid_and_stride_of_fusion(backbone, settings, has_fpn, level):
    model = build(backbone, **settings)
    assert isinstance(model.fpn, FeaturePyramidNetwork) == has_fpn
    assert model.fusion.target_level == level
    seen = {}
    model.fusion.register_forward_hook(lambda _, features, fused: seen.update(features=features[0], fused=fused))
    model.eval()(torch.randn(1, 3, 64, 64))
    assert seen["fused"].shape[2:] == seen["features"][level].shape[2:] == (64 // 2 ** (level + 2),) * 2
    assert {x.shape[1] for x in seen["features"]} == ({64} if has_fpn else set(model.backbone.feature_channels))


def test_every_part_is_used():
    """The output of each part depends on the one before: no part is built and left aside."""
    model, x = wake(build("resnet18", attention="cbam")).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        for part in (model.backbone.body.layer1, model.backbone.body.layer4, model.fpn, model.attention, model.fusion):
            state = copy.deepcopy(part.state_dict())
            for parameter in part.parameters():
                parameter.mul_(1.3)
            assert (model(x) - before).abs().max() > 1e-6, type(part).__name__
            part.load_state_dict(state)
        assert torch.equal(model(x), before)


def test_dropout_and_drop_path_reach_the_model():
    x = torch.randn(2, 3, 64, 64)
    heads = [m.p for m in build(dropout=0.3).modules() if isinstance(m, nn.Dropout)]
    assert heads == [0.3, 0.15]

    def two_passes(**settings) -> bool:
        model = build("timm/test_convnext", attention="none", **settings).train()
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.eval()
            if isinstance(getattr(module, "gamma", None), nn.Parameter):
                nn.init.ones_(module.gamma)
        return torch.equal(model(x), model(x))

    assert two_passes(dropout=0.0, drop_path=0.0)
    assert not two_passes(dropout=0.3, drop_path=0.0)
    assert not two_passes(dropout=0.0, drop_path=0.9)


def test_an_unknown_backbone_is_refused():
    with pytest.raises(ModelError, match="did you mean 'resnet18'"):
        HybridMedNet(config_of("resnet_18"))


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_are_independent_and_equal(duplicate):
    model, x = build("timm/test_convnext").eval(), torch.randn(1, 3, 64, 64)
    twin = duplicate(model)
    with torch.no_grad():
        assert torch.equal(model(x), twin(x))
        next(twin.classifier.parameters()).add_(1)
        assert not torch.equal(model(x), twin(x))


@pytest.mark.parametrize("attention", ATTENTION_MODES)
def test_channels_last_changes_nothing_but_speed(attention):
    model, x = build("resnet18", attention=attention).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(
            model(x.contiguous(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("attention", ATTENTION_MODES)
def test_bfloat16_autocast_stays_near_float32(attention):
    model, x = build("resnet18", (32, 32), attention=attention).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            low = model(x)
    assert (low.float() - expected).abs().max() < 0.05 * max(1, float(expected.abs().max()))


@pytest.mark.parametrize(
    "backbone, attention", [("resnet18", "auto"), pytest.param("swin_tiny", "auto", marks=pytest.mark.slow)]
)
def test_eight_images_can_be_learnt(backbone, attention):
    """Random images with random labels: 12 steps at least halve the loss."""
    model = build(backbone, attention=attention, dropout=0.0, fusion_channels=128).train()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, 64, 64, generator=generator)
    y = (torch.rand(8, 5, generator=generator) < 0.5).float()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, fused=True)
    losses = []
    for _ in range(12):
        loss = F.binary_cross_entropy_with_logits(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_group_normalisation_of_neck_and_head_does_not_see_the_batch():
    """In training mode an image's logits are its own, where batch statistics would mix them."""
    models = {norm: build("timm/test_convnext", norm=norm, dropout=0.0).train() for norm in ("batch", "group")}
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        alone = {norm: model(x[:1]) for norm, model in models.items()}
        together = {norm: model(x)[:1] for norm, model in models.items()}
    torch.testing.assert_close(alone["group"], together["group"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone["batch"], together["batch"], rtol=1e-2, atol=1e-2)


def test_a_network_for_volumes_is_built_trained_and_checkpointed():
    config = config_of("swin3d_tiny", in_channels=1, attention="cross_scale", norm="group")
    config.DATA.image_size = (16, 32, 32)
    torch.manual_seed(0)
    model = wake(HybridMedNet(config)).train()
    total_loss(model(torch.randn(2, 1, 16, 32, 32))).backward()
    assert parameters_without_gradient(model) == []
    assert model.enable_gradient_checkpointing(4).segments == 4


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": {"enabled": True, "segments": 3}}])
def test_it_is_built_from_the_model_section_alone(settings):
    """A whole Config says the same as its MODEL section, the input's size, and what recomputation is planned for."""
    config = config_of(**settings)
    config.TRAIN.batch_size, config.TRAIN.mixed_precision = 6, False
    torch.manual_seed(0)
    whole = HybridMedNet(config)
    torch.manual_seed(0)
    alone = HybridMedNet(config.MODEL, (64, 64), planned_batch=6)
    assert whole.checkpointing_plan() == alone.checkpointing_plan()
    assert (whole.checkpointing_plan() is None) == (not settings)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, alone.state_dict()[name]), name
    with pytest.raises(ModelError, match="needs image_size"):
        HybridMedNet(config.MODEL)


# ---- Inputs


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("hierarchical", [False, True])
def test_a_tensor_is_inputs_of_one_image_a_study(recomputed, hierarchical):
    model, x = build(hierarchical=hierarchical, num_coarse_classes=2).eval(), images()
    if recomputed:
        model.enable_gradient_checkpointing(batch_size=2)
        model.train()
        for module in model.modules():
            if isinstance(module, (nn.Dropout, nn.BatchNorm1d, nn.BatchNorm2d)):
                module.eval()
        assert model.recomputes()
    given, expected = call_model(model, Inputs.of_images(x)), model(x)
    assert isinstance(given, Logits if hierarchical else Tensor) and type(given) is type(expected)
    (coarse, fine), (other_coarse, other_fine) = Logits.of(given), Logits.of(expected)
    assert torch.equal(fine, other_fine) and fine.shape == (2, 5)
    assert (coarse is None) == (other_coarse is None) == (not hierarchical)
    assert coarse is None or (torch.equal(coarse, other_coarse) and coarse.shape == (2, 2))


def test_several_views_and_tables_are_refused():
    model, one = build().eval(), Inputs.of_images(images())
    two_views = one._replace(view_mask=torch.ones(1, 2, dtype=torch.bool), view_kind=torch.zeros(1, 2).long())
    with pytest.raises(ModelError, match="2 images of 1 studies with up to 2 views"):
        model(two_views._replace(table=torch.zeros(1, 0), table_mask=torch.zeros(1, 0).bool()))
    with pytest.raises(ModelError, match="3 columns of a table"):
        model(one._replace(table=torch.zeros(2, 3), table_mask=torch.zeros(2, 3).bool()))
