"""Steps that are read every now and then: the same training as if each were read at once, without waiting."""

import math
import weakref

import pytest
import torch
from torch import nn

from configs.errors import TrainingError
from tests.training.toys import (
    CLASSES,
    TensorLoader,
    batch_of,
    differences,
    full_model,
    make_trainer,
    max_difference,
    random_data,
    snapshot,
)
from training.losses import GroupSpec, TrainingLoss, binary_cross_entropy
from training.optim import create_optimizer
from training.pending import PendingSteps, conditional_step
from training.precision import Precision
from utils.torch_private import DispatchMode


def trained(read_every: int, poisoned: tuple[int, ...] = (), kind: str = "adamw", **options):
    """A run over 40 images, 10 windows of 4, of which some have a NaN; and what it reported."""
    images, target, mask = random_data(40)
    images[[4 * number + 1 for number in poisoned]] = math.nan
    torch.manual_seed(3)
    trainer = make_trainer(full_model(1), kind, read_every=read_every, ema=0.9, print_freq=4, **options)
    reported: list = []
    trainer.on_step = lambda step, figures: reported.append(
        (step, figures["train/loss"], figures["train/learning_rate"])
    )
    trainer.train_epoch(TensorLoader(images, target, mask, 4))
    return trainer, reported


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("read_every", [3, 100])
def test_reading_late_changes_nothing(kind, read_every):
    at_once, reported = trained(1, kind=kind, schedule="cosine")
    late, reported_late = trained(read_every, kind=kind, schedule="cosine")
    assert differences(snapshot(at_once), snapshot(late)) == []
    assert reported == reported_late and [step for step, *_ in reported] == [4, 8]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("poisoned", [(0,), (3,), (9,), (0, 1, 2, 7)])
def test_skipped_steps_change_no_weight_however_late_they_are_read(kind, poisoned, caplog):
    at_once, _ = trained(1, poisoned, kind)
    late, _ = trained(100, poisoned, kind)
    one, other = snapshot(at_once), snapshot(late)
    for state in (one, other):  # the average counted the skipped steps while nobody knew of them
        state["ema"].pop("shadow")
    assert differences(one, other) == []
    assert (late.state.sums.skipped, late.state.global_step) == (len(poisoned), 10 - len(poisoned))
    assert late.schedule.step_number == late.ema.updates == 10 - len(poisoned)
    tensors = [*late.model.state_dict().values(), *late.ema.shadow.values()]
    assert all(tensor.isfinite().all() for tensor in tensors)
    steps = [f"epoch 1, step {number - before}: loss nan" for before, number in enumerate(poisoned)]
    assert [step in caplog.text for step in steps] == [True] * len(poisoned)


def test_a_moving_average_leaves_out_what_was_skipped():
    """Its decay is that of the step it thinks it is at; where that does not change, nothing differs."""
    at_once, _ = trained(1, (3, 5))
    late, _ = trained(100, (3, 5))
    own = [late.ema.shadow[name] for name, _ in late.model.named_parameters()]
    expected = [at_once.ema.shadow[name] for name, _ in at_once.model.named_parameters()]
    assert max(float((a - b).abs().max()) for a, b in zip(own, expected, strict=True)) < 5e-3
    assert max_difference(late.model, at_once.model) == 0


def test_too_many_in_a_row_stop_the_run_when_they_are_read():
    with pytest.raises(TrainingError, match=r"3 steps in a row were not finite .*step 2.*image_16.png, image_17.png"):
        trained(100, (2, 3, 4), max_nonfinite_steps=3)
    trainer, _ = trained(100, (2, 3, 5, 6), max_nonfinite_steps=3)
    assert trainer.state.sums.skipped == 4


def test_all_is_read_before_anything_is_saved():
    pending: list[int] = []
    images, target, mask = random_data(40)
    trainer = make_trainer(full_model(1), read_every=100, print_freq=100, save_every_steps=3)
    trainer.save = lambda t: pending.append((len(t.pending), t.state.global_step, t.state.sums.steps))
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
    counts = trainer._window_counts(window)
    monkeypatch.setattr(trainer, "_window_counts", lambda window: counts)  # of the host's masks
    trainer.model.train()
    trainer.train_step(window)
    with Reads() as reads:
        trainer.train_step(window)
    assert reads.found == [] and len(trainer.pending) == 2
    with Reads() as reads:
        float(trainer.pending._steps[0][0][0])
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
    pending = PendingSteps()
    for number in range(3):
        losses = [torch.tensor(float(number)), torch.tensor(0.5)]
        pending.add(
            losses, torch.tensor(number + 10.0), torch.tensor(number != 1), 0.1 * number, [torch.arange(number)]
        )
    outcomes = pending.read()
    assert [(o.step_applied, o.loss, o.norm, o.images) for o in outcomes] == [
        (True, 0.5, 10.0, 0),
        (False, 1.5, 11.0, 1),
        (True, 2.5, 12.0, 2),
    ]
    assert len(pending) == 0 and pending.read() == []
