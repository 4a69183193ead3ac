"""Gradient checkpointing changes nothing but memory: bit for bit, on every family, in every circumstance."""

import copy
import io
import pickle
from datetime import timedelta

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from configs.default_config import Config
from configs.errors import ModelError
from models import HybridMedNet, backbone_dims, create_backbone, list_backbones
from models.attention import ATTENTION_MODES
from models.backbones import BaseVisionBackbone
from models.backbones.families import smallest_of_each_family
from tests.models.stochastic_depth import has_stochastic_depth
from training.ema import ExponentialMovingAverage
from utils.blocks import Block, block
from utils.gradient_checkpointing import Checkpointable
from utils.gradient_checkpointing.activation_memory import SavedActivations

FAMILIES = smallest_of_each_family(list_backbones())
QUICK = ("resnet18", "mobilenetv3_small", "swin_tiny")
STOCHASTIC = {"drop_path": 0.3}
SLOW = pytest.mark.slow


def backbone_of(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    size = (64, 64) if backbone_dims(name) == 2 else (32, 32, 32)
    return create_backbone(name, image_size=size, **options).train()


def network(backbone: str = "timm/test_resnet", **settings) -> HybridMedNet:
    torch.manual_seed(0)
    rows = {"pretrained": "false", "fusion_channels": 32, "fpn_channels": 32, "num_classes": 5} | settings
    overrides = [f"MODEL.{key}={value}" for key, value in rows.items()]
    return HybridMedNet(Config.from_overrides([f"MODEL.backbone={backbone}", "DATA.image_size=64", *overrides])).train()


def image(model, batch: int = 2) -> Tensor:
    return torch.randn(batch, model.in_channels, *model.image_size, generator=torch.Generator().manual_seed(1))


def loss_of(model, x: Tensor) -> Tensor:
    outputs = model.forward_features(x) if isinstance(model, BaseVisionBackbone) else [model(x)]
    return sum(y.float().square().mean() for y in outputs)


def step(model, x: Tensor, seed: int = 0) -> Tensor:
    """Forward, backward, a step of descent; the loss. Gradients stay."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    loss = loss_of(model, x)
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    return loss.detach()


def state_after(model) -> dict[str, Tensor]:
    gradients = {f"grad {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients | dict(model.named_buffers()) | {name: p.detach() for name, p in model.named_parameters()}


def assert_equal_states(plain, other) -> None:
    mine, theirs = state_after(plain), state_after(other)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def assert_equal_steps(plain, other, x: Tensor, steps: int = 2) -> None:
    assert other.is_gradient_checkpointing_enabled() and not plain.is_gradient_checkpointing_enabled()
    for number in range(steps):
        assert torch.equal(step(plain, x, number), step(other, x, number))
        assert_equal_states(plain, other)


def checkpointed(model, segments: int | None = None):
    other = copy.deepcopy(model)
    other.enable_gradient_checkpointing(segments)
    return other


# ---- exactness


@pytest.mark.parametrize("segments", [pytest.param(2, marks=SLOW), None])
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=SLOW) for n in FAMILIES])
def test_two_steps_of_every_family(name, segments):
    """With stochastic depth where there is any; test_modern_models.py has a step of all families that is not slow."""
    model = backbone_of(name, **(STOCHASTIC if has_stochastic_depth(name) else {}))
    assert_equal_steps(model, checkpointed(model, segments), image(model))


class WithRow(Checkpointable, nn.Module):
    """Layers of an image, then a row that belongs to it, bound into the last block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.in_channels, self.image_size = 3, (16, 16)
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.Conv2d(4, 4, 3)])
        self.row = nn.Linear(2, 4)

    def blocks(self, x: Tensor, row: Tensor | None = None) -> list[Block]:
        def add_row(y: Tensor) -> Tensor:
            return y.mean((2, 3)) if row is None else y.mean((2, 3)) + self.row(row)

        layers = [block(str(i), layer) for i, layer in enumerate(self.layers)]
        return [*layers, block("row", add_row, modules=[self.row])]

    def forward(self, x: Tensor) -> Tensor:
        row = x[:, 0, 0, :2]
        return self.run_blocks(self.blocks(x, row), x).current()


def test_blocks_may_be_bound_to_more_than_the_image():
    model = WithRow().train()
    x = image(model, 4)
    assert not torch.equal(model(x), model.run_blocks(model.blocks(x), x).current()), "the row must matter"
    assert_equal_steps(copy.deepcopy(model), checkpointed(model, 3), x)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_number_of_segments(name):
    model = backbone_of(name)
    x = image(model)
    count = len(model.blocks(x))
    assert count >= 4
    for segments in range(2, count + 1, max(count // 8, 1)):
        other = checkpointed(model, segments)
        assert other.checkpointing_plan().segments == segments
        assert_equal_steps(copy.deepcopy(model), other, x)


@pytest.mark.parametrize("attention", ATTENTION_MODES)
@pytest.mark.parametrize(
    "backbone", ["timm/test_resnet", *(pytest.param(n, marks=SLOW) for n in ("resnet18", "swin_tiny"))]
)
def test_the_whole_network_with_dropout(backbone, attention):
    plain, other = (network(backbone, attention=attention, dropout=0.5) for _ in range(2))
    other.enable_gradient_checkpointing(5)
    assert_equal_steps(plain, other, image(plain))


def test_both_outputs_of_a_hierarchical_network():
    plain = network(hierarchical=True)
    other = checkpointed(plain, 4)
    x = image(plain)
    for model in (plain, other):
        torch.manual_seed(0)
        coarse, fine = model(x)
        (coarse.square().mean() + fine.square().mean()).backward()
    assert_equal_states(plain, other)


@pytest.mark.parametrize(
    "backbone", ["vit_tiny", *(pytest.param(n, marks=SLOW) for n in ("resnet18", "convnext_tiny", "vim_tiny"))]
)
def test_bf16_autocast(backbone):
    """Convolutions of bf16 take ten times as long on a CPU that lacks them."""
    plain = network(backbone, attention="cross_scale")
    other = checkpointed(plain, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal_steps(plain, other, image(plain))


def test_accumulated_micro_batches():
    plain = network()
    other = checkpointed(plain, 4)
    for model in (plain, other):
        for number in range(3):
            torch.manual_seed(number)
            (loss_of(model, image(model, 2 + number)) / 3).backward()
    assert_equal_states(plain, other)


def test_a_batch_of_one_whose_maps_are_single_values():
    plain = backbone_of("resnet18")
    x = torch.randn(1, 3, 32, 32)
    assert_equal_steps(plain, checkpointed(plain, 4), x)


def _two_processes(rank: int, file: str, results: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2, timeout=timedelta(minutes=2)
    )
    plain = network(dropout=0.0)
    models = [DistributedDataParallel(model) for model in (plain, checkpointed(plain, 4))]
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(rank))
    for model in models:
        for number in range(2):
            model.zero_grad(set_to_none=True)
            torch.manual_seed(number)
            model(x).square().mean().backward()
            torch.optim.SGD(model.parameters(), lr=0.01).step()
    states = [state_after(model.module) for model in models]
    different = [name for name in states[0] if not torch.equal(states[0][name], states[1][name])]
    with open(f"{results}.{rank}", "w", encoding="utf-8") as out:  # noqa: PTH123
        out.write(",".join(different) or "equal")
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    """This one is the first of them."""
    files = (str(tmp_path / "rendezvous"), str(tmp_path / "result"))
    other = mp.get_context("spawn").Process(target=_two_processes, args=(1, *files))
    other.start()
    _two_processes(0, *files)
    other.join()
    assert other.exitcode == 0
    assert [(tmp_path / f"result.{rank}").read_text() for rank in range(2)] == ["equal", "equal"]


# ---- memory and operations


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "vit_tiny",
        *(pytest.param(n, marks=SLOW) for n in ("convnext_tiny", "swin_tiny", "densenet121", "vim_tiny")),
    ],
)
def test_the_foretold_peak_is_the_measured_one(name):
    model = backbone_of(name)
    x = image(model)
    for segments in (2, 5, None):
        plan = model.enable_gradient_checkpointing(segments, batch_size=len(x))
        with SavedActivations(model, x) as memory:
            loss = loss_of(model, x)
            memory.start_backward()
            loss.backward()
        assert memory.peak == pytest.approx(plan.peak_bytes, rel=0.1)
        assert memory.peak < 0.75 * plan.plain_bytes


def test_recomputation_is_what_the_plan_says():
    model = backbone_of("resnet18")
    x = image(model)

    def flops(network) -> int:
        with FlopCounterMode(display=False) as counter:
            loss_of(network, x).backward()
        return counter.get_total_flops()

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    forward, plain = counter.get_total_flops(), flops(model)
    for segments in (2, 4, 10):
        plan = model.enable_gradient_checkpointing(segments)
        again = flops(model) - plain
        assert again / plain < 0.34 and again == pytest.approx(plan.recompute * forward, rel=0.02)


@pytest.mark.parametrize("training", [True, False])
def test_planning_touches_nothing(training):
    model = network().train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    model.enable_gradient_checkpointing()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {module.training for module in model.modules()} == {training}
    assert all(p.grad is None and type(p) is nn.Parameter for p in model.parameters())


# ---- switched on and off


class Calls:
    """How often the first block of a ResNet has been run."""

    def __init__(self, model) -> None:
        self.count = 0
        model.backbone.body.layer1[0].register_forward_hook(self)

    def __call__(self, *_) -> None:
        self.count += 1


def test_off_in_evaluation_and_without_gradients():
    model = network()
    model.enable_gradient_checkpointing(4)
    calls = Calls(model)
    model.eval()(image(model)).sum().backward()
    with torch.no_grad():
        model.train()(image(model))
    assert calls.count == 2
    model(image(model)).sum().backward()
    assert calls.count == 4


def test_switched_between_steps():
    plain, other = network(), network()
    x = image(plain)
    for number, segments in enumerate((3, None, 0, 5)):
        if segments == 0:
            other.disable_gradient_checkpointing()
        else:
            other.enable_gradient_checkpointing(segments)
        assert other.is_gradient_checkpointing_enabled() == (segments != 0)
        assert torch.equal(step(plain, x, number), step(other, x, number))
        assert_equal_states(plain, other)


def test_enabled_only_if_something_is_recomputed():
    model = network()
    assert not model.is_gradient_checkpointing_enabled()
    model.enable_gradient_checkpointing(1)
    assert not model.is_gradient_checkpointing_enabled()
    model.enable_gradient_checkpointing(2)
    assert model.is_gradient_checkpointing_enabled()


def test_a_backbone_alone_inside_a_network():
    plain, other = network("resnet18"), network("resnet18")
    other.backbone.enable_gradient_checkpointing(4)
    assert_equal_steps(plain, other, image(plain))
    calls = Calls(other)
    step(other, image(other))
    assert calls.count == 2
    other.disable_gradient_checkpointing()
    assert not other.backbone.is_gradient_checkpointing_enabled()


def test_copies_and_pickles_and_averages_recompute_too():
    model = network()
    names = list(model.state_dict())
    plain = copy.deepcopy(model)
    model.enable_gradient_checkpointing(4)
    assert list(model.state_dict()) == names
    average = ExponentialMovingAverage(model, 0.9)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_equal_steps(copy.deepcopy(plain), other, image(plain))
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    average.update(model, torch.tensor(True))


def test_segments_asked_are_segments_made_or_refused():
    model = network()
    count = len(model.blocks(image(model)))
    for segments in (2, 7, count):
        assert model.enable_gradient_checkpointing(segments).segments == segments
    with pytest.raises(ModelError, match=f"{count + 1} segments asked for, but there are {count} blocks"):
        model.enable_gradient_checkpointing(count + 1)
    assert model.checkpointing_plan().segments == count  # the refused wish leaves the plan as it was


def test_a_family_without_a_list_of_blocks_is_refused():
    model = create_backbone("timm/xcit_nano_12_p8_224", image_size=(224, 224))
    with pytest.raises(ModelError, match=r"timm/xcit_nano_12_p8_224' cannot be recomputed"):
        model.enable_gradient_checkpointing(2)


def test_settings_reach_the_network():
    settings = {"gradient_checkpointing.enabled": "true", "gradient_checkpointing.segments": 3}
    assert network(**settings).checkpointing_plan().segments == 3
    tight = network(**{"gradient_checkpointing.enabled": "true", "gradient_checkpointing.fraction": 0.3})
    assert tight.checkpointing_plan().cuts[-1] <= 0.35 * tight.checkpointing_plan().blocks
    with pytest.raises(ModelError, match="cannot be met"):
        network(**{"gradient_checkpointing.enabled": "true", "gradient_checkpointing.memory_budget_gb": 1e-6})


@pytest.mark.slow
def test_under_torch_compile():
    """Statistics are counted once there too; values may differ by rounding."""
    plain = backbone_of("resnet18")
    other = checkpointed(plain, 4)
    x = image(plain)
    compiled = torch.compile(other, backend="aot_eager")
    for model in (plain, compiled):
        torch.manual_seed(0)
        model(x).square().mean().backward()
    mine, theirs = state_after(plain), state_after(other)
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-5)
