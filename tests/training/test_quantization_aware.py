"""Training for int8: the quantiser in float64, gradients, every way a layer is called, recomputation, resume."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from configs.default_config import Config
from configs.errors import ConfigError
from models import HybridMedNet
from tests.training.toys import (
    TensorLoader,
    differences,
    full_model,
    make_trainer,
    random_data,
    snapshot,
    train_windows,
)
from training.builder import build_learner, build_loop
from training.loop import TrainingLoop
from training.losses import TrainingLoss, binary_cross_entropy
from training.quantization_aware import Int8Rounding, QuantizationAware, round_input, round_weight


def slow_weight(weight: np.ndarray, axis: int) -> np.ndarray:
    """Slice by slice in float64; a scale as float32 has it."""
    out = np.empty_like(weight, np.float64)
    for i in range(weight.shape[axis]):
        part = np.take(weight, i, axis).astype(np.float64)
        step = float(np.float32(np.abs(part).max()) / np.float32(127))
        target = [slice(None)] * weight.ndim
        target[axis] = i
        out[tuple(target)] = 0.0 if step == 0 else np.clip(np.rint(part / step), -127, 127) * step
    return out


def slow_input(x: np.ndarray) -> np.ndarray:
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = float((np.float32(high) - np.float32(low)) / np.float32(255))
    zero = np.rint(-low / step)
    return (np.clip(np.rint(x.astype(np.float64) / step) + zero, 0, 255) - zero) * step


SHAPES = [((6, 5), 0), ((6, 3, 3, 3), 0), ((4, 2, 2, 2, 2), 0), ((3, 6, 2, 2), 1)]


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_weights_are_rounded_as_the_slow_quantiser_does(shape, axis):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight.select(axis, 1).zero_()  # a dead channel
    weight.select(axis, 2).mul_(1e-6)
    rounded = round_weight(weight, axis)
    expected = slow_weight(weight.numpy(), axis)
    np.testing.assert_allclose(rounded.numpy(), expected, rtol=1e-6, atol=1e-12)
    largest = weight.abs().amax([i for i in range(weight.ndim) if i != axis])
    error = (rounded - weight).abs().amax([i for i in range(weight.ndim) if i != axis])
    assert (error <= largest / 254 * 1.0001).all()


@pytest.mark.parametrize(("shift", "scale"), [(0, 1), (5, 1), (-5, 1), (0, 1e-5), (100, 3)])
def test_inputs_are_rounded_as_the_slow_quantiser_does(shift, scale):
    x = scale * (torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)) + shift)
    x[0, 0, 0] = 0
    rounded = round_input(x)
    found, expected = rounded.numpy(), slow_input(x.numpy())
    step = (max(float(x.max()), 0) - min(float(x.min()), 0)) / 255
    ties = np.abs(found - expected) > 1e-4 * step  # float32 and float64 may fall on two sides of a half
    assert ties.mean() < 0.02 and np.abs(found - expected).max() < 1.001 * step
    assert float(rounded[0, 0, 0]) == 0.0
    assert len(rounded.unique()) <= 256


@pytest.mark.parametrize("values", [torch.zeros(4, 4), torch.full((2, 3), 7.0), torch.full((2, 3), -7.0)])
def test_constant_inputs(values):
    torch.testing.assert_close(round_input(values), values, rtol=1e-6, atol=0)


def test_what_is_on_the_grid_stays():
    whole = torch.randint(-127, 128, (5, 40), generator=torch.Generator().manual_seed(0)).float()
    whole[:, 0] = 127
    weight = whole * torch.tensor([0.5, 0.25, 2.0, 1.0, 0.125])[:, None]
    assert torch.equal(round_weight(weight), weight)
    assert torch.equal(round_weight(round_weight(weight)), weight)
    x = torch.arange(0, 256).float().view(16, 16) * 0.25 - 16
    assert torch.equal(round_input(x), x)


def test_gradients_go_straight_through():
    weight, x = torch.randn(6, 5, requires_grad=True), torch.rand(7, 5, requires_grad=True)
    coefficients = torch.randn(7, 6)
    with Int8Rounding():
        y = F.linear(x, weight)
    gradients = torch.autograd.grad((y * coefficients).sum(), (weight, x))
    rounded = round_weight(weight).detach().requires_grad_(), round_input(x).detach().requires_grad_()
    expected = torch.autograd.grad((F.linear(rounded[1], rounded[0]) * coefficients).sum(), rounded)
    for gradient, one in zip(gradients, expected):
        assert torch.equal(gradient, one)
    assert torch.equal(y, F.linear(rounded[1], rounded[0]))


LAYERS = {
    "linear": (nn.Linear(4, 3), (2, 5, 4), 0),
    "conv2d": (nn.Conv2d(4, 6, 3, 2, 1, groups=2), (2, 4, 6, 6), 0),
    "reflecting conv2d": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 6, 6), 0),
    "conv3d": (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 0),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 3, 2, 2), (2, 4, 5, 5), 1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_computes_with_rounded_weights_and_inputs(name):
    layer, shape, axis = LAYERS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.weight.copy_(round_weight(layer.weight, axis))
    y = QuantizationAware(layer)(x)
    assert torch.equal(y, twin(round_input(x))) and not torch.equal(y, layer(x))


def test_a_function_that_borrows_a_layers_weight_is_rounded_too():
    layer, x = nn.Linear(4, 3), torch.randn(2, 4)
    expected = F.linear(round_input(x), round_weight(layer.weight), layer.bias)
    assert torch.equal(QuantizationAware(lambda x: F.linear(x, weight=layer.weight, bias=layer.bias))(x), expected)
    assert torch.equal(
        QuantizationAware(lambda x: F.linear(input=x, weight=layer.weight, bias=layer.bias))(x), expected
    )


def test_bfloat16_autocast_sees_rounded_numbers():
    layer, x = nn.Linear(64, 16), torch.randn(8, 64)
    with torch.autocast("cpu", torch.bfloat16):
        y = QuantizationAware(layer)(x).detach()
    assert y.dtype == torch.bfloat16
    exact = F.linear(round_input(x), round_weight(layer.weight), layer.bias).detach()
    assert float((y.float() - exact).abs().max()) < 0.03 < float(exact.abs().max()) / 10


# ---- in training


def network(backbone: str, *overrides: str) -> HybridMedNet:
    settings = [f"MODEL.backbone={backbone}", "MODEL.pretrained=false", "DATA.image_size=32", "MODEL.num_classes=3"]
    settings += ["MODEL.fusion_channels=16", "MODEL.attention=cross_scale", *overrides]
    torch.manual_seed(0)
    return HybridMedNet(Config.from_overrides(settings))


def step(model: HybridMedNet, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Loss, gradients and buffers of one training step."""
    torch.manual_seed(1)
    model.train().zero_grad()
    loss = QuantizationAware(model)(x).square().sum()
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters()} | dict(model.named_buffers())


@pytest.mark.parametrize("name", ["mobilenetv3_small", pytest.param("timm/convnext_atto", marks=pytest.mark.slow)])
def test_recomputation_rounds_as_well(name):
    """Loss, gradients and buffers are those without checkpointing, bit for bit; and not those without rounding."""
    plain, recomputing = network(name), network(name)
    x = torch.randn(2, 3, 32, 32)
    assert recomputing.enable_gradient_checkpointing(segments=4).runs
    one, other = step(plain, x), step(recomputing, x)
    assert one.keys() == other.keys() and [key for key in one if not torch.equal(one[key], other[key])] == []
    model = network(name).train()
    torch.manual_seed(1)
    assert not torch.equal(model(x).square().sum().detach(), one["loss"])
    assert plain.state_dict().keys() == model.state_dict().keys()


def quantization_aware_trainer(**options) -> TrainingLoop:
    model = full_model(1)
    return make_trainer(model, forward=QuantizationAware(model), **options)


def test_interrupted_and_resumed_bit_for_bit():
    loader = TensorLoader(*random_data(32), 4)
    torch.manual_seed(3)
    whole = quantization_aware_trainer(ema=0.9, accumulation_steps=2)
    whole.train_epoch(loader)
    torch.manual_seed(3)
    first = quantization_aware_trainer(ema=0.9, accumulation_steps=2)
    train_windows(first, loader, 2)
    saved = copy.deepcopy(first.learner.state_dict())
    second = quantization_aware_trainer(ema=0.9, accumulation_steps=2)
    second.learner.load_state_dict(saved)
    second.train_epoch(loader)
    assert differences(snapshot(whole), snapshot(second)) == []
    plain = make_trainer(full_model(1), ema=0.9, accumulation_steps=2)
    torch.manual_seed(3)
    plain.train_epoch(loader)
    assert differences(snapshot(plain), snapshot(whole))
    assert plain.model.state_dict().keys() == whole.model.state_dict().keys()


def test_the_rounded_network_is_what_learns():
    images, target, _ = random_data(128, known=1.0)
    loader = TensorLoader(images, target, torch.ones_like(target, dtype=torch.bool), 32)
    trainer = quantization_aware_trainer(rate=1e-2, epochs=5)

    def rounded_loss() -> float:
        with torch.no_grad():
            return float(F.binary_cross_entropy_with_logits(trainer.window.forward(images), target))

    trainer.model.eval()
    before = rounded_loss()
    trainer.fit(loader, loader)
    print(f"loss of the rounded network {before:.3f} → {rounded_loss():.3f}")
    assert rounded_loss() < 0.9 * before


# ---- as a setting

LOSS = TrainingLoss(binary_cross_entropy)


def test_the_setting_arrives_and_evaluation_stays_in_float():
    config = Config.from_overrides(["TRAIN.quantization_aware=true"]).resolve(("a", "b", "c"))
    model = nn.Linear(4, 3)
    trainer = build_loop(config, build_learner(config, model, 10), LOSS)
    assert isinstance(trainer.window.forward, QuantizationAware) and trainer.evaluator.forward is model
    config = Config().resolve(("a", "b", "c"))
    assert build_loop(config, build_learner(config, model, 10), LOSS).window.forward is model


def test_torch_compile_is_refused():
    overrides = ["TRAIN.quantization_aware=true", "TRAIN.compile=true"]
    with pytest.raises(ConfigError, match=r"quantization_aware and TRAIN\.compile do not go together"):
        Config.from_overrides(overrides)
