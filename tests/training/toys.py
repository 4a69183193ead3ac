"""What the tests of training share: small networks, loaders over tensors, trainers, and how states differ."""

import copy
import dataclasses
import math

import torch
from torch import nn

from training.accumulation_window import AccumulationWindow
from training.distillation import DistillationLoss
from training.ema import ExponentialMovingAverage
from training.evaluation import Evaluator
from training.learner import Learner
from training.loop import LoopOptions, TrainingLoop
from training.losses import TrainingLoss, binary_cross_entropy
from training.optim import LearningRateSchedule, create_optimizer
from training.out_of_memory import Adaptation
from training.precision import Precision
from utils.batch import Batch, Inputs, Targets
from utils.listener import EpochEnd, Listener

CLASSES, SIDE = 3, 8


class TensorLoader:
    """A loader over tensors, in their order; bad: numbers of batches none of whose images can be read."""

    def __init__(self, images, target, mask, batch_size: int, bad: tuple[int, ...] = ()) -> None:
        self.tensors, self.batch_size, self.bad = (images, target, mask, torch.arange(len(images))), batch_size, bad

    def __len__(self) -> int:
        return -(-len(self.tensors[0]) // self.batch_size)

    def names(self, index) -> list[str]:
        return [f"image_{i}.png" for i in index.tolist()]

    def epoch(self, epoch: int, start: int = 0):
        parts = list(zip(*(tensor.split(self.batch_size) for tensor in self.tensors)))
        for number in range(start, len(parts)):
            yield number, None if number in self.bad else batch_of(*parts[number])


def batch_of(images, target, mask, index=None, *coarse) -> Batch:
    """A batch of single images; coarse: targets and mask of coarse classes."""
    index = torch.arange(len(images)) if index is None else index
    return Batch(Inputs.of_images(images), Targets(target, mask, *coarse), index)


def with_coarse(batch: Batch) -> Batch:
    """The same batch with coarse classes: two of the labels."""
    labels, mask, *_ = batch.targets
    return dataclasses.replace(batch, targets=Targets(labels, mask, labels[:, :2], mask[:, -2:]))


def random_data(count: int, seed: int = 0, known: float = 0.6):
    """Images, targets that a network can learn, and masks spread unevenly."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, SIDE, SIDE, generator=generator)
    target = (images.mean((2, 3)) + 0.1 * torch.randn(count, CLASSES, generator=generator) > 0).float()
    mask = torch.rand(count, CLASSES, generator=generator) < known
    return images, target, mask


def plain_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def full_model(seed: int = 0) -> nn.Module:
    """With all that makes training depend on more than weights: BatchNorm and dropout."""
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, CLASSES)
    return nn.Sequential(*layers)


class CoarseAndFine(nn.Module):
    """Coarse logits, which are halves of the first two fine ones, and fine logits, those of `body`."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x):
        fine = self.body(x)
        return fine[:, :2] * 0.5, fine


class Notes(Listener):
    """A listener that keeps what it is told, and passes it on to functions."""

    def __init__(self, on_step=None, on_epoch=None, save=None) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []
        self.ends: list[EpochEnd] = []
        self.hooks = on_step, on_epoch, save

    def on_step(self, step: int, figures) -> None:
        self.steps.append((step, dict(figures)))
        if self.hooks[0]:
            self.hooks[0](step, figures)

    def on_epoch(self, end: EpochEnd) -> None:
        self.ends.append(end)
        if self.hooks[1]:
            self.hooks[1](end)

    def save(self, content) -> None:
        if self.hooks[2]:
            self.hooks[2](content)

    @property
    def records(self) -> list[dict]:
        return [{**end.record, "is_best": end.is_best} for end in self.ends]


def make_learner(model: nn.Module, kind="adamw", rate=1e-2, schedule="constant", steps=10, ema=0.0, **options):
    """options: weight_decay, precision, warmup, sparsity, accumulation_steps, on_oom."""
    optimizer = create_optimizer(model, kind, rate, options.get("weight_decay", 0.05))
    precision = options.get("precision", Precision("cpu", None))
    adapts = options.get("on_oom", "adapt") == "adapt"
    return Learner(
        model,
        optimizer,
        LearningRateSchedule(optimizer, schedule, rate, steps, warmup_steps=options.get("warmup", 0)),
        precision,
        Adaptation(model, precision.dtype, options.get("accumulation_steps", 1), adapts),
        ExponentialMovingAverage(model, ema) if ema else None,
        options.get("sparsity"),
    )


def make_trainer(
    model: nn.Module,
    kind="adamw",
    rate=1e-2,
    schedule="constant",
    steps=10,
    ema=0.0,
    *,
    loss=None,
    forward=None,
    parallel=None,
    listeners=(),
    should_stop=lambda: None,
    **options,
) -> TrainingLoop:
    """A trainer whose first listener is Notes. options: of `make_learner`, clip_norm, and of LoopOptions."""
    learner = make_learner(model, kind, rate, schedule, steps, ema, **options)
    for name in ("weight_decay", "precision", "warmup", "sparsity", "on_oom"):
        options.pop(name, None)
    loss = loss or TrainingLoss(binary_cross_entropy)
    labels = loss.labels if isinstance(loss, DistillationLoss) else loss
    adapts, names = learner.adaptation.allowed, tuple("abc"[:CLASSES])
    return TrainingLoop(
        AccumulationWindow(learner, loss, forward, options.pop("clip_norm", 1.0), parallel=parallel),
        Evaluator(model, labels, learner.precision, names, progress="plain", adapt=adapts),
        LoopOptions(**{"epochs": 1, "print_freq": 1, **options}),
        [Notes(), *listeners],
        should_stop,
    )


def snapshot(trainer: TrainingLoop) -> dict:
    """All that a checkpoint holds, copied."""
    return copy.deepcopy({key: value for key, value in trainer.learner.state_dict().items() if key != "random"})


def differences(one, other, path: str = "") -> list[str]:
    """Where two nested states differ; tensors are compared bit by bit, NaN equal to NaN, times left out."""
    if path.endswith((".seconds", ".data_wait_seconds")):
        return []
    if isinstance(one, dict) and isinstance(other, dict):
        keys = one.keys() | other.keys()
        return [d for key in keys for d in differences(one.get(key), other.get(key), f"{path}.{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [d for i, pair in enumerate(zip(one, other)) for d in differences(*pair, f"{path}.{i}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.numpy().tobytes() == other.numpy().tobytes() else [path]
    both_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    return [] if both_nan or one == other else [path]


def max_difference(one: nn.Module, other: nn.Module) -> float:
    return max(float((p - q).detach().abs().max()) for p, q in zip(one.parameters(), other.parameters()))


def loader_with_scores(count: int = 40, seed: int = 7) -> TensorLoader:
    images, target, mask = random_data(count, seed, known=0.8)
    target[:, 2] = 0  # a class without positives
    target[~mask] = -1
    return TensorLoader(images, target, mask, 8)


def fit(trainer: TrainingLoop, train_loader, val_loader) -> list[dict]:
    """The records of the epochs that are trained."""
    notes = trainer.listeners[0]
    before = len(notes.ends)
    trainer.fit(train_loader, val_loader)
    return notes.records[before:]


def train_windows(trainer: TrainingLoop, loader, count: int) -> None:
    """The first windows of an epoch, as a run that is killed after them."""
    trainer.model.train()
    for window in list(trainer._windows(loader))[:count]:
        trainer.train_step(window.batches, window.sent)
        trainer.state.sums.batches = window.numbers[-1] + 1


def by_cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def by_the_cpu() -> None:
    torch.empty(10**15)  # no machine has it: a real refusal of the allocator


def warnings(caplog) -> list[str]:
    """What was said of memory."""
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "out of memory" in r.getMessage()]


def tanh_model(seed: int = 0) -> nn.Module:
    return plain_model(seed).double()
