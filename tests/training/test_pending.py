"""Steps that are read every now and then: the same training as if each were read at once, without waiting."""

import math
import weakref

import pytest
import torch
from torch import nn

from configs.errors import TrainingError
from tests.training.toys import (
    CLASSES,
    Notes,
    TensorLoader,
    batch_of,
    differences,
    full_model,
    make_trainer,
    plain_model,
    random_data,
    snapshot,
)
from training.accumulation_window import StepResult
from training.losses import GroupSpec, TrainingLoss, binary_cross_entropy
from training.optim import create_optimizer
from training.pending import PendingStep, read_outcomes
from training.precision import Precision
from utils.torch_private import DispatchMode, conditional_step


def trained(read_every: int, poisoned: tuple[int, ...] = (), kind: str = "adamw", **options):
    """A run over 40 images, 10 windows of 4, of which some have a NaN; and what it reported."""
    images, target, mask = random_data(40)
    images[[4 * number + 1 for number in poisoned]] = math.nan
    torch.manual_seed(3)
    trainer = make_trainer(full_model(1), kind, read_every=read_every, ema=0.9, print_freq=4, **options)
    trainer.train_epoch(TensorLoader(images, target, mask, 4))
    return trainer, [
        (step, {name: value for name, value in figures.items() if name.startswith("train/")})
        for step, figures in trainer.listeners[0].steps
    ]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("read_every", [3, 100])
def test_reading_late_changes_nothing(kind, read_every):
    at_once, reported = trained(1, kind=kind, schedule="cosine")
    late, reported_late = trained(read_every, kind=kind, schedule="cosine")
    assert differences(snapshot(at_once), snapshot(late)) == []
    assert reported == reported_late and [step for step, _ in reported] == [4, 8]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("read_every", [3, 10, 100])
@pytest.mark.parametrize("poisoned", [(0,), (3,), (9,), (0, 1, 2, 7), (1, 3, 4, 8)])
def test_when_skipped_steps_are_read_changes_no_bit(kind, read_every, poisoned, caplog):
    """Of weights, average, schedule, counters and what is reported. On CUDA LOGGING.print_freq says when it is."""
    at_once, reported = trained(1, poisoned, kind, schedule="cosine", warmup=4)
    expected = [step for step in (4, 8) if step - 1 not in poisoned]
    assert [step for step, _ in reported] == expected
    caplog.clear()
    late, reported_late = trained(read_every, poisoned, kind, schedule="cosine", warmup=4)
    assert differences(snapshot(at_once), snapshot(late)) == [] and reported == reported_late
    assert (late.state.sums.skipped, late.state.sums.steps) == (len(poisoned), 10 - len(poisoned))
    assert late.state.global_step == late.schedule.step_number == late.learner.ema.updates == 10
    tensors = [*late.model.state_dict().values(), *late.learner.ema.shadow.values()]
    assert all(tensor.isfinite().all() for tensor in tensors)
    steps = [f"epoch 1, step {number + 1}: loss nan" for number in poisoned]
    assert [step in caplog.text for step in steps] == [True] * len(poisoned)


@pytest.mark.parametrize("read_every", [1, 100])
def test_a_skipped_step_is_a_step_at_which_nothing_moved(read_every):
    """By hand in float64: SGD without momentum, a cosine, an average with its warm-up; every step counts."""
    images, target, mask = random_data(24, known=1.0)
    images[9] = math.nan  # step 3 of 6
    model = plain_model().double()
    options = {"weight_decay": 0.0, "clip_norm": None, "read_every": read_every, "print_freq": 100}
    trainer = make_trainer(model, "sgd", 0.5, "cosine", 6, ema=0.999, **options)
    for group in trainer.learner.optimizer.param_groups:
        group["momentum"], group["nesterov"] = 0.0, False
    slow = plain_model().double()
    average = [p.detach().clone() for p in slow.parameters()]
    trainer.train_epoch(TensorLoader(images.double(), target.double(), mask, 4))
    for step in range(6):
        if step != 2:
            rows = slice(4 * step, 4 * step + 4)
            logits = slow(images[rows].double())
            loss = nn.functional.binary_cross_entropy_with_logits(logits, target[rows].double())
            gradients = torch.autograd.grad(loss, list(slow.parameters()))
            rate, decay = 0.5 * (1 + math.cos(math.pi * step / 6)) / 2, (2 + step) / (11 + step)
            with torch.no_grad():
                for p, mean, g in zip(slow.parameters(), average, gradients):
                    p -= rate * g
                    mean.mul_(decay).add_((1 - decay) * p)
    shadow = [trainer.learner.ema.shadow[name] for name, _ in model.named_parameters()]
    pairs = [*zip(model.parameters(), slow.parameters()), *zip(shadow, average)]
    assert max(float((a - b).detach().abs().max()) for a, b in pairs) < 1e-6  # the loss is float32


def test_too_many_in_a_row_stop_the_run_when_they_are_read():
    with pytest.raises(TrainingError, match=r"3 steps in a row were not finite .*step 5.*image_16.png, image_17.png"):
        trained(100, (2, 3, 4), max_nonfinite_steps=3)
    trainer, _ = trained(100, (2, 3, 5, 6), max_nonfinite_steps=3)
    assert trainer.state.sums.skipped == 4


def test_all_is_read_before_anything_is_saved():
    pending: list = []
    images, target, mask = random_data(40)

    def save(content: dict) -> None:
        progress = content["progress"]
        pending.append((len(trainer.pending), progress["global_step"], progress["sums"]["steps"]))

    options = {"read_every": 100, "print_freq": 100, "save_every_steps": 3}
    trainer = make_trainer(full_model(1), listeners=[Notes(save=save)], **options)
    trainer.train_epoch(TensorLoader(images, target, mask, 4))
    assert pending == [(0, 3, 3), (0, 6, 6), (0, 9, 9)]


def test_batches_are_not_held_until_their_steps_are_read():
    trainer = make_trainer(full_model(1), read_every=100, print_freq=100)
    batch = next(TensorLoader(*random_data(4), 4).epoch(0))[1]
    image = weakref.ref(batch.inputs.image)
    trainer.train_step([batch])
    del batch
    assert len(trainer.pending) == 1 and image() is None


class Reads(DispatchMode):
    """Counts what makes the host wait for a device: numbers that become Python's, and shapes that depend on values."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        name = function.name().split("::")[1].split(".")[0]
        if name in self.WAITING:
            self.found.append(name)
        return function(*arguments, **(kwargs or {}))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.coarse = full_model(1), nn.Linear(CLASSES, 2)

    def forward(self, x):
        fine = self.body(x)
        return self.coarse(fine), fine


@pytest.mark.parametrize("hierarchical", [False, True])
@pytest.mark.parametrize("precision", [None, torch.float16])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_step_waits_for_nothing(kind, precision, hierarchical, monkeypatch):
    images, target, mask = random_data(8)
    groups = [GroupSpec([0, 1]), GroupSpec([2], negated=True)] if hierarchical else []
    weights = {"fine": 0.6, "coarse": 0.4, "consistency": 0.2} if hierarchical else {"labels": 1.0}
    options = {"loss": TrainingLoss(binary_cross_entropy, weights, groups=groups), "ema": 0.9, "read_every": 100}
    model = TwoHeads() if hierarchical else full_model(1)
    trainer = make_trainer(model, kind, print_freq=100, precision=Precision("cpu", precision), **options)
    coarse = (target[:, :2], mask[:, :2]) if hierarchical else ()
    window = [batch_of(images, target, mask, None, *coarse)]
    counts = trainer.window._global_counts(window)
    monkeypatch.setattr(trainer.window, "_global_counts", lambda window: counts)  # of the host's masks
    trainer.model.train()
    trainer.train_step(window)
    with Reads() as reads:
        trainer.train_step(window)
    assert reads.found == [] and len(trainer.pending) == 2
    with Reads() as reads:
        float(trainer.pending[0].result.losses[0])
    assert reads.found == ["_local_scalar_dense"]  # what would have been found


def test_a_first_step_of_sgd_that_is_skipped_leaves_no_momentum():
    """torch allocates it without a value then; it must be zero."""
    layer = nn.Linear(64, 64)
    optimizer = create_optimizer(layer, "sgd", 0.1, 0.0)
    reference = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9, nesterov=True)
    layer.weight.grad, layer.bias.grad = torch.full((64, 64), math.nan), torch.zeros(64)
    before = [p.detach().clone() for p in layer.parameters()]
    conditional_step(optimizer, torch.tensor(False))
    assert all(p.equal(b) for p, b in zip(layer.parameters(), before, strict=True))
    layer.weight.grad, layer.bias.grad = torch.ones(64, 64), torch.ones(64)
    conditional_step(optimizer, torch.tensor(True))
    stepped = [p.detach().clone() for p in layer.parameters()]
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), before):
            parameter.copy_(value)
    reference.step()
    assert all(torch.equal(a, b) for a, b in zip(stepped, layer.parameters(), strict=True))
    assert not hasattr(optimizer, "found_inf") and not hasattr(optimizer, "grad_scale")


def test_outcomes_come_in_order_with_their_numbers():
    pending = []
    for number in range(3):
        losses = [torch.tensor(float(number)), torch.tensor(0.5)]
        result = StepResult(losses, torch.tensor(number + 10.0), torch.tensor(number != 1))
        pending.append(PendingStep(number + 1, result, 0.1 * number, [torch.arange(number)]))
    outcomes = read_outcomes(pending)
    assert [(o.step, o.step_applied, o.loss, o.norm, o.images) for o in outcomes] == [
        (1, True, 0.5, 10.0, 0),
        (2, False, 1.5, 11.0, 1),
        (3, True, 2.5, 12.0, 2),
    ]
    assert read_outcomes([]) == []
