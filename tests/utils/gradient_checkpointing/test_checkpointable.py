"""The functional side: sequences, networks that are not ours, the function written by hand, the estimate."""

import copy
import pickle

import pytest
import torch
import torchvision
from torch import Tensor, nn

from configs.errors import ModelError
from utils.gradient_checkpointing import (
    CheckpointedSequential,
    CheckpointFunction,
    apply_gradient_checkpointing,
    checkpoint_sequential,
    estimate_memory_savings,
    remove_gradient_checkpointing,
)
from utils.gradient_checkpointing.activation_memory import SavedActivations


class Residual(nn.Module):
    """x + dropout(relu(bn(conv(x))))."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv, self.norm, self.dropout = (
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.Dropout(0.3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(torch.relu(self.norm(self.conv(x))))


class Looped(nn.Module):
    """Blocks in a ModuleList, called in a loop, with something read from each on the way."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.blocks = nn.ModuleList(Residual() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x, taps = self.stem(x), []
        for block in self.blocks:
            x = block(x)
            taps.append(x.mean((1, 2, 3)))
        return self.head(x.mean((2, 3))) + torch.stack(taps).sum(0)[:, None]


class Shuffled(Looped):
    """Calls every block on something else than the last one's output."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x * 1.0)
        return self.head(x.mean((2, 3)))


class Branching(Looped):
    """What it does depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum().item() > 0 else -x)


def sequence() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Conv2d(3, 8, 3), *(Residual() for _ in range(6))]


def step(model, x: Tensor, seed: int = 0, autocast: bool = False) -> list[Tensor]:
    """Loss, gradients and buffers of one step."""
    for p in model.parameters():
        p.grad = None
    torch.manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(x).float().square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters()), *(b.clone() for b in model.buffers())]


def assert_same(mine: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(mine) == len(theirs) and all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def peak(model, x: Tensor) -> int:
    torch.manual_seed(0)
    with SavedActivations(model, x) as memory:
        loss = model(x).float().square().mean()
        memory.start_backward()
        loss.backward()
    return memory.peak


X = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))


class Functional(nn.Sequential):
    segments = 3

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint_sequential(self, self.segments, x)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "make", [Functional, lambda *m: CheckpointedSequential(*m, segments=3), CheckpointedSequential]
)
def test_sequences_equal_nn_sequential(make, autocast):
    plain = nn.Sequential(*sequence())
    other = make(*copy.deepcopy(sequence()))
    assert isinstance(other, nn.Sequential) and list(other.state_dict()) == list(plain.state_dict())
    for seed in range(2):
        assert_same(step(plain, X, seed, autocast), step(other, X, seed, autocast))
    assert peak(other, X) < 0.7 * peak(plain, X)
    for copied in (
        copy.deepcopy(other),
        pickle.loads(pickle.dumps(other)) if make is CheckpointedSequential else other,
    ):
        assert_same(step(copy.deepcopy(plain), X, 5), step(copied, X, 5))


def test_plain_functions_in_a_sequence():
    x = X.clone().requires_grad_()
    found = checkpoint_sequential([torch.sin, torch.cos, torch.exp, torch.tanh], 4, x)
    assert torch.equal(found, x.sin().cos().exp().tanh())
    (mine,) = torch.autograd.grad(found.sum(), x)
    (exact,) = torch.autograd.grad(x.sin().cos().exp().tanh().sum(), x)
    assert torch.equal(mine, exact)


@pytest.mark.parametrize("segments", [0, 8])
def test_segments_beyond_the_sequence_are_refused(segments):
    with pytest.raises(ModelError, match=f"{segments} segments .*7"):
        checkpoint_sequential(sequence(), segments, X)
    with pytest.raises(ModelError, match=f"{segments} segments of 7 modules"):
        CheckpointedSequential(*sequence(), segments=segments)


def test_a_sequence_is_plain_in_evaluation():
    model = CheckpointedSequential(*sequence(), segments=3).eval()
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    model(X).sum().backward()
    with torch.no_grad():
        model.train()(X)
    assert len(calls) == 2


FOREIGN = {
    "a loop": Looped,
    "resnet18": torchvision.models.resnet18,
    "a vision transformer": lambda: torchvision.models.VisionTransformer(24, 8, 4, 2, 32, 64, 0.1, 0.1, 5),
    "densenet121": torchvision.models.densenet121,
    "mobilenet": torchvision.models.mobilenet_v3_small,
}


@pytest.mark.parametrize("segments", [3, None])
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in ("resnet18", "densenet121", "mobilenet") else ()) for n in FOREIGN],
)
def test_foreign_networks_are_exact_and_really_recompute(name, segments):
    torch.manual_seed(0)
    plain = FOREIGN[name]().train()
    x = torch.randn(2, 3, 24, 24) if name == "a vision transformer" else torch.randn(2, 3, 48, 48)
    other = apply_gradient_checkpointing(copy.deepcopy(plain), segments)
    assert list(other.state_dict()) == list(plain.state_dict())
    for seed in range(2):
        assert_same(step(plain, x, seed), step(other, x, seed))
    assert_same(step(plain, x, 3, True), step(other, x, 3, True))
    assert peak(other, x) < 0.85 * peak(plain, x)
    for copied in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        torch.manual_seed(0)
        assert_same(step(copy.deepcopy(plain), x, 4), step(copied, x, 4))


def test_a_foreign_network_is_plain_in_evaluation_and_after_removal():
    model = apply_gradient_checkpointing(Looped(), 3)
    step(model, X)
    calls = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    step(model, X)
    assert len(calls) == 2
    model.eval()(X).sum().backward()
    with torch.no_grad():
        model.train()(X)
    assert len(calls) == 4
    remove_gradient_checkpointing(model)
    step(model, X)
    assert len(calls) == 5


@pytest.mark.parametrize(
    "model, message",
    [
        (nn.Linear(3, 3), "Linear has no sequence of blocks"),
        (Shuffled(), "no two modules of its sequences are called one after another"),
        (Branching(), "cannot be planned without running it"),
        (nn.Sequential(*[nn.Conv2d(3, 3, 1)] * 3), "has no sequence|several times"),
    ],
)
def test_what_cannot_be_recomputed_is_refused(model, message):
    with pytest.raises(ModelError, match=message):
        step(apply_gradient_checkpointing(model), X)


def test_more_segments_than_blocks_are_refused():
    with pytest.raises(ModelError, match="7 segments asked for, but Looped has 6 blocks"):
        apply_gradient_checkpointing(Looped(), 7)


def test_a_module_that_changes_its_input_in_place_is_refused():
    layers = [nn.Conv2d(3, 3, 1), nn.Hardswish(inplace=True), nn.Conv2d(3, 3, 1), nn.Hardswish(inplace=True)]
    model = apply_gradient_checkpointing(nn.Sequential(*layers), 4)
    with pytest.raises(ModelError, match="Hardswish changes its input in place"):
        step(model, X)


def test_an_error_in_the_forward_pass_leaves_nothing_open():
    model = apply_gradient_checkpointing(Looped(), 3)
    expected = step(model, X)
    broken = model.blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step(model, X)
    broken.remove()
    assert torch.equal(step(model, X)[0], expected[0])


def test_a_plan_that_fails_inside_a_module_leaves_nothing_open():
    """Batch normalisation of one value. What counts saved tensors there would hold all later ones."""
    recomputed = Functional(*sequence())
    expected = peak(recomputed, X)
    plain = nn.Sequential(nn.Conv2d(3, 4, 24), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    with pytest.raises(ModelError, match="cannot be planned without running it: Expected more than 1 value"):
        apply_gradient_checkpointing(plain)(X[:1])
    assert peak(recomputed, X) == expected


def test_the_function_by_hand_agrees():
    """An unused input, one without gradient, dropout and batch statistics in bf16."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.3), nn.Conv2d(8, 4, 3))

    def function(x: Tensor, unused: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        y = layers(x) * scale
        return y, y.mean()

    def run(by_hand: bool) -> list[Tensor]:
        x, unused, scale = X.clone().requires_grad_(), torch.ones(2, requires_grad=True), torch.tensor(3.0)
        torch.manual_seed(4)
        parameters = list(layers.parameters())
        layers.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            inputs = (x, unused, scale)
            y, mean = CheckpointFunction.apply(function, 3, *inputs, *parameters) if by_hand else function(*inputs)
        after = torch.rand(1)
        (y.float().square().mean() + mean.float()).backward()
        assert unused.grad is None
        return [y.detach(), after, x.grad, *(p.grad for p in parameters)]

    assert_same(run(True), run(False))


def test_the_function_by_hand_agrees_with_the_engine():
    layers = sequence()
    parameters = [p for layer in layers for p in layer.parameters()]

    def gradients(run) -> list[Tensor]:
        torch.manual_seed(0)
        return list(torch.autograd.grad(run().square().mean(), parameters))

    whole = nn.Sequential(*layers)
    by_hand = gradients(lambda: CheckpointFunction.apply(whole, 1, X, *parameters))
    assert_same(by_hand, gradients(lambda: checkpoint_sequential(layers, 4, X)))


@pytest.mark.parametrize("make", [Looped, torchvision.models.resnet18])
def test_the_estimate_measures_and_leaves_the_model_alone(make):
    model = make().eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = estimate_memory_savings(model, (3, 48, 48), batch_size=2)
    assert set(found) == {"without_checkpoint", "with_checkpoint", "savings", "savings_percent"}
    x = torch.randn(2, 3, 48, 48)
    assert found["without_checkpoint"] == pytest.approx(peak(copy.deepcopy(model).train(), x) / 1e6, rel=0.02)
    assert found["savings"] == found["without_checkpoint"] - found["with_checkpoint"] > 0
    assert found["savings_percent"] == pytest.approx(100 * found["savings"] / found["without_checkpoint"])
    torch.set_rng_state(state)
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
