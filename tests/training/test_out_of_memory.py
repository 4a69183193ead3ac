"""Out of memory: the window is undone and done again in less, and the step is the one that was asked for."""

import copy
import weakref

import pytest
import torch
from torch import nn

from configs.default_config import Config
from configs.errors import TrainingError
from models import HybridMedNet
from tests.training.toys import (
    CLASSES,
    SIDE,
    TensorLoader,
    by_cuda,
    by_the_cpu,
    differences,
    full_model,
    make_trainer,
    max_difference,
    plain_model,
    random_data,
    snapshot,
    tanh_model,
    warnings,
)
from training.precision import Precision
from utils.blocks import Block, block
from utils.gradient_checkpointing import Checkpointable


class Scarce(nn.Module):
    """`inside` where more than `room` images in training are too many; in a backward pass too, if told so.

    room: a number, or a function of the number of forward passes in training so far. fresh: what the last pass made, to
    see that nobody keeps it.
    """

    def __init__(self, inside: nn.Module, room, refuse=by_cuda, backward: bool = False) -> None:
        super().__init__()
        self.inside, self.refuse, self.backward = inside, refuse, backward
        self.room = room if callable(room) else lambda number: room
        self.sizes: list[int] = []
        self.fresh: weakref.ref | None = None

    def forward(self, x):
        if not self.training:
            return self.inside(x)
        assert self.fresh is None or self.fresh() is None, "a failed step is still held"
        too_many = len(x) > self.room(len(self.sizes))
        self.sizes.append(len(x))
        hidden = self.inside(x) * 1.0
        if too_many:
            self.fresh = weakref.ref(hidden)
            if not self.backward:
                self.refuse()
            hidden.register_hook(lambda gradient: self.refuse())
        return hidden


def data(count: int):
    images, target, mask = random_data(count)
    return images.double(), target, mask


def stripped(trainer) -> dict:
    """Its state, without what adapting is allowed to change, and names as without the wrapper."""
    state = snapshot(trainer)
    del state["progress"]["micro_batch_splits"], state["progress"]["recomputation"]
    return state


def figures(state: dict) -> dict:
    """What is counted: steps, windows, schedule, updates of the average."""
    progress = {k: v for k, v in state["progress"].items() if k != "sums"}
    sums = {k: v for k, v in state["progress"]["sums"].items() if k not in ("loss", "seconds", "data_wait_seconds")}
    return {"progress": progress, "sums": sums, "schedule": state["schedule"], "updates": state["ema"]["updates"]}


# ---- the same step


@pytest.mark.parametrize("refuse", [by_cuda, by_the_cpu])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("batch", "window", "room", "splits"), [(8, 1, 4, 2), (6, 2, 3, 2), (7, 2, 2, 4), (4, 3, 1, 4)]
)
def test_the_step_is_that_of_the_undisturbed_run(refuse, backward, batch, window, room, splits, caplog):
    options = {"accumulation_steps": window, "ema": 0.9, "schedule": "cosine"}
    scarce = make_trainer(Scarce(tanh_model(), room, refuse, backward), **options)
    calm = make_trainer(Scarce(tanh_model(), 1000), **options)
    for trainer in (scarce, calm):
        trainer.train_epoch(TensorLoader(*data(30), batch))
    assert scarce.state.micro_batch_splits == splits and max(scarce.model.sizes[-3:]) <= room
    assert max_difference(calm.model, Scarce(tanh_model(), 1)) > 1e-3
    difference = max_difference(scarce.model, calm.model)
    print(f"out of memory, {batch} -> {max(scarce.model.sizes[-3:])} images: weights differ by {difference:.1e}")
    assert difference < 1e-6
    assert figures(stripped(scarce)) == figures(stripped(calm))
    assert scarce.state.sums.loss == pytest.approx(calm.state.sums.loss, rel=1e-6)
    messages = warnings(caplog)
    assert len(messages) == len(set(messages)) == {2: 1, 4: 2}[splits]
    effective = f"accumulation {window} -> {2 * window}, effective batch still {batch * window}"
    assert f"micro-batch {batch} -> {-(-batch // 2)}, {effective}" in messages[0]


@pytest.mark.parametrize("failing", [0, 1, 2, 4])
@pytest.mark.parametrize("backward", [False, True])
def test_a_failed_window_leaves_nothing_behind(failing, backward, caplog):
    """Statistics, dropout's stream and gradients: as in a run that was cut like this from the start, bit for bit."""
    torch.manual_seed(3)
    model = Scarce(full_model(), lambda number: 1 if number == failing else 1000, backward=backward)
    once = make_trainer(model, "sgd", ema=0.9, accumulation_steps=2)
    once.train_epoch(TensorLoader(*random_data(24), 4))
    after = torch.get_rng_state()
    assert len(warnings(caplog)) == 1 and once.state.micro_batch_splits == 2

    torch.manual_seed(3)
    calm = make_trainer(Scarce(full_model(), 1000), "sgd", ema=0.9, accumulation_steps=2)
    batches = [b for _, b in TensorLoader(*random_data(24), 4).epoch(0)]
    calm.model.train()
    for number in range(0, 6, 2):
        calm.state.micro_batch_splits = 2 if number + 2 > failing else 1
        calm.train_step(batches[number : number + 2])
    calm.state.sums.batches = 6
    assert differences(stripped(once), stripped(calm)) == []
    assert after.equal(torch.get_rng_state())
    assert all(parameter.grad is None for parameter in once.model.parameters())


def test_a_window_that_is_not_finite_is_still_skipped_after_running_out(caplog):
    images, target, mask = random_data(16, known=1.0)
    images[12] = torch.nan
    trainer = make_trainer(Scarce(full_model(), lambda number: 2 if number == 1 else 1000), accumulation_steps=1)
    trainer.train_epoch(TensorLoader(images, target, mask, 8))
    assert (trainer.state.global_step, trainer.state.sums.skipped, trainer.state.sums.batches) == (2, 1, 2)
    assert len(warnings(caplog)) == 1 and all(b.isfinite().all() for b in trainer.model.buffers())


def test_fp16_keeps_its_scale():
    trainer = make_trainer(Scarce(plain_model(), 4), "sgd", precision=Precision("cpu", torch.float16))
    calm = make_trainer(Scarce(plain_model(), 1000), "sgd", precision=Precision("cpu", torch.float16))
    for one in (trainer, calm):
        one.train_epoch(TensorLoader(*random_data(32), 8))
    assert trainer.learner.scaler.state_dict() == calm.learner.scaler.state_dict() and trainer.state.global_step == 4
    assert max_difference(trainer.model, calm.model) < 1e-3


def test_a_short_batch_is_told_in_the_numbers_of_the_others(caplog):
    room = [4, 1000, 1000, 1000, 2]  # the first batch of 8 is cut once, and later one of 6
    trainer = make_trainer(Scarce(plain_model(), lambda number: room[min(number, 4)]))
    trainer.train_epoch(TensorLoader(*random_data(14, known=1.0), 8))
    messages = warnings(caplog)
    assert ["micro-batch 8 -> 4" in line or "micro-batch 4 -> 2" in line for line in messages] == [True, True]
    assert all("effective batch still 8" in line for line in messages) and trainer.state.micro_batch_splits == 4


# ---- gradient checkpointing


class Blocks(Checkpointable, nn.Module):
    """Convolutions with statistics and dropout, as a list of blocks; too much for memory unless it recomputes."""

    def __init__(self, greedy: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.in_channels, self.image_size, self.greedy = 1, (SIDE, SIDE), greedy
        widths = [(1, 4), (4, 4), (4, 4), (4, 4), (4, 4)]
        layers = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.Dropout(0.2)) for a, b in widths]
        self.layers = nn.ModuleList([*layers, nn.Sequential(nn.Flatten(), nn.Linear(4 * SIDE * SIDE, CLASSES))])
        self.sizes: list[int] = []

    def blocks(self, x) -> list[Block]:
        return [block(str(i), layer) for i, layer in enumerate(self.layers)]

    def forward(self, x):
        if self.training:
            self.sizes.append(len(x))
        if self.greedy and self.training and not self.recomputes():
            by_cuda()
        return self.run_blocks(self.blocks(x), x).current()


def test_checkpointing_is_switched_on_and_changes_no_bit(caplog):
    trainers = []
    for greedy in (True, False):
        torch.manual_seed(4)
        trainer = make_trainer(Blocks(greedy), ema=0.9, accumulation_steps=2)
        trainer.state.micro_batch_splits = 1 if greedy else 2
        trainer.train_epoch(TensorLoader(*random_data(24), 4))
        trainers.append((trainer, torch.get_rng_state()))
    (greedy, random), (calm, calm_random) = trainers
    assert greedy.model.is_gradient_checkpointing_enabled() and not calm.model.is_gradient_checkpointing_enabled()
    assert greedy.state.recomputation == 2 and greedy.state.micro_batch_splits == 2
    assert differences(stripped(greedy), stripped(calm)) == [] and random.equal(calm_random)
    halved, switched = warnings(caplog)
    assert "micro-batch 4 -> 2" in halved and "switched on: 6 blocks" in switched and "micro-batch of 2" in switched
    assert greedy.model.sizes[:3] == [4, 2, 2]


def test_a_single_image_is_first_recomputed(caplog):
    trainer = make_trainer(Blocks())
    trainer.train_epoch(TensorLoader(*random_data(3, known=1.0), 1))
    assert trainer.state.recomputation and trainer.state.micro_batch_splits == 1 and trainer.state.global_step == 3
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [(lambda: Scarce(tanh_model(), 1), "not possible: Scarce"), (lambda: AlreadyOn(), "is on already")],
)
def test_what_cannot_be_switched_on_is_said_once(model, message, caplog):
    trainer = make_trainer(model().double())
    trainer.train_epoch(TensorLoader(*data(16), 8))
    messages = warnings(caplog)
    assert [message in line for line in messages] == [False, True, False] and trainer.state.micro_batch_splits == 8
    assert "4 -> 2" in messages[1] and trainer.state.recomputation == 0


class AlreadyOn(Blocks):
    """Recomputes as its config said, and even so takes one image at a time."""

    def __init__(self) -> None:
        super().__init__(greedy=False)
        self.enable_gradient_checkpointing()

    def forward(self, x):
        if self.training and len(x) > 1:
            by_cuda()
        return super().forward(x)


def test_the_real_network_adapts(monkeypatch, caplog):
    overrides = ["MODEL.backbone=resnet18", "MODEL.pretrained=false", "DATA.image_size=64", "MODEL.in_channels=1"]
    config = Config.from_overrides([*overrides, "MODEL.fusion_channels=16", "MODEL.norm=group"])
    model = HybridMedNet(config.resolve(tuple("abc")))
    whole = HybridMedNet.forward

    def forward(self, x):
        if self.training and (x.studies > 2 or not self.recomputes()):
            by_cuda()
        return whole(self, x)

    monkeypatch.setattr(HybridMedNet, "forward", forward)
    trainer = make_trainer(model)
    trainer.model.train()
    images = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    _, target, mask = random_data(4, known=1.0)
    assert trainer.train_step([b for _, b in TensorLoader(images, target, mask, 4).epoch(0)])
    assert (trainer.state.micro_batch_splits, trainer.state.recomputation, len(warnings(caplog))) == (2, 2, 2)


# ---- resume


def test_a_resumed_run_goes_on_as_adapted(caplog):
    first = make_trainer(Blocks())
    first.train_epoch(TensorLoader(*random_data(8), 4))
    content = copy.deepcopy(first.learner.state_dict())
    caplog.clear()
    resumed = make_trainer(Blocks())
    resumed.learner.load_state_dict(content)
    assert (resumed.state.micro_batch_splits, resumed.state.recomputation) == (2, 2)
    assert str(resumed.model.checkpointing_plan()) == str(first.model.checkpointing_plan())
    batches = [b for _, b in TensorLoader(*random_data(8), 4).epoch(0)]
    for trainer in (first, resumed):
        torch.manual_seed(1)
        trainer.model.train()
        trainer.train_step(batches[:1])
    assert warnings(caplog) == [] and differences(snapshot(first), snapshot(resumed)) == []


# ---- the end of the ladder


def test_when_a_single_image_does_not_fit():
    trainer = make_trainer(Scarce(full_model(), 0), "sgd")
    before, random = snapshot(trainer), torch.get_rng_state()
    with pytest.raises(TrainingError) as error:
        trainer.train_epoch(TensorLoader(*random_data(16), 8))
    message = str(error.value)
    assert trainer.model.sizes == [8, 4, 2, 1] and error.value.exit_code == 2
    assert "8 was cut into single images" in message and "checkpointing is not possible" in message
    assert "DATA.image_size" in message and "MODEL.backbone" in message and "Tried to allocate 2.00 GiB" in message
    trainer.state.micro_batch_splits = 1
    assert differences(before, snapshot(trainer)) == [] and random.equal(torch.get_rng_state())
    assert error.value.__context__ is None or error.value.__suppress_context__


def test_stop_is_obeyed():
    trainer = make_trainer(Scarce(full_model(), 4), on_oom="stop")
    with pytest.raises(
        TrainingError, match=r"micro-batch of 8.*TRAIN.on_oom=adapt.*gradient_checkpointing.*image_size"
    ):
        trainer.train_epoch(TensorLoader(*random_data(16), 8))
    assert trainer.model.sizes == [8] and trainer.state.micro_batch_splits == 1


def test_other_errors_are_passed_on():
    def refuse() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    trainer = make_trainer(Scarce(full_model(), 0, refuse))
    with pytest.raises(RuntimeError, match="mat1"):
        trainer.train_epoch(TensorLoader(*random_data(8), 8))


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_an_optimizer_without_room_for_its_state(kind, monkeypatch):
    trainer = make_trainer(Scarce(full_model(), 1000), kind)
    monkeypatch.setattr(trainer.learner.optimizer, "step", lambda *_, **__: by_the_cpu())
    with pytest.raises(
        TrainingError, match=r"optimizer step 1, which may be half applied.*last checkpoint.*optimizer=sgd"
    ):
        trainer.train_epoch(TensorLoader(*random_data(16), 8))
    assert trainer.model.sizes == [8] and trainer.state.global_step == 0, "it must not be tried again"
