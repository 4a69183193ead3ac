"""Four loops around one and the same step, for benchmarks/loop.py: the bare step, ours, timm's and Lightning's.

Each has a copy of the network, AdamW with fused kernels, clipping to norm 1 and a constant learning rate; what differs
is what a loop does around it. `loop()` trains for an epoch and gives its seconds.
"""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.default_config import Config
from models import HybridMedNet
from training.builder import build_learner, build_loop, build_loss, resolve_precision
from training.loop import TrainingLoop
from training.optim import create_optimizer
from training.precision import choose_memory_format, choose_precision
from utils.batch import Batch, Inputs, Targets
from utils.listener import Listener

CLASSES, RATE, DECAY, CLIP = 14, 1e-4, 0.05, 1.0
Loop = Callable[[], float]


class BatchesInMemory:
    """A loader of batches that are there already, as our TrainingLoop asks for one, and as Lightning's does."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def names(self, index: Tensor) -> list[str]:
        """What the images of a batch are called."""
        return [str(number) for number in index.tolist()]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[int, Batch]]:
        """(number of the batch in its epoch, the batch), from batch `start` on."""
        yield from enumerate(self.batches[start:], start)


@dataclass(frozen=True)
class Work:
    """What all loops share: a network on its device, its config, batches in host memory."""

    config: Config
    model: HybridMedNet
    batches: list[Batch]
    device: torch.device

    @property
    def layout(self) -> torch.memory_format:
        """What the TrainingLoop would choose for the network."""
        return choose_memory_format(self.config.TRAIN.channels_last, self.model.backbone.prefers_channels_last)

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass, as the TrainingLoop's."""
        return choose_precision(self.config.TRAIN.mixed_precision, self.device).autocast()

    def copied_model(self) -> HybridMedNet:
        """The same network once more, training."""
        return copy.deepcopy(self.model).to(memory_format=self.layout).train()


def random_batches(count: int, size: int, images: int, pinned: bool) -> list[Batch]:
    """`count` batches of random images [images, 3, size, size] and labels, all of which are known."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        image = torch.randn(images, 3, size, size, generator=generator)
        target = (torch.rand(images, CLASSES, generator=generator) < 0.2).float()
        index = torch.arange(number * images, (number + 1) * images)
        image = image.pin_memory() if pinned else image
        known = torch.ones(images, CLASSES, dtype=torch.bool)
        found.append(Batch(Inputs.of_images(image), Targets(target, known), index))
    return found


def make_work(overrides: list[str], size: int, images: int, batches: int, device: torch.device) -> Work:
    """A network of these settings without dropout, so that all loops compute the same, and its data."""
    fixed = ["MODEL.pretrained=false", "MODEL.dropout=0", "LOSS.pos_weight=null", f"TRAIN.device={device.type}"]
    training = [f"TRAIN.learning_rate={RATE}", f"TRAIN.weight_decay={DECAY}", f"TRAIN.gradient_clip_norm={CLIP}"]
    schedule = ["TRAIN.lr_scheduler=constant", "TRAIN.warmup_epochs=0", "LOGGING.progress=plain"]
    shape = [f"DATA.image_size={size}", f"TRAIN.batch_size={images}"]
    settings = Config.from_overrides([*fixed, *training, *schedule, *shape, *overrides])
    config = settings.resolve(tuple(f"finding {number}" for number in range(CLASSES)), False)
    torch.manual_seed(0)
    model = HybridMedNet(config).to(device)
    config = resolve_precision(config, model, model.backbone.prefers_channels_last)
    return Work(config, model, random_batches(batches, size, images, device.type == "cuda"), device)


def now(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(epoch: Callable[[], None], device: torch.device) -> Loop:
    """The epoch as a loop that gives its seconds."""

    def loop() -> float:
        started = now(device)
        epoch()
        return now(device) - started

    return loop


def trainer_of(
    config: Config, model: nn.Module, batches: int, labels, listeners: Sequence[Listener] = ()
) -> TrainingLoop:
    """The TrainingLoop that train.py would have for a flat model on its device. batches: of an epoch."""
    learner = build_learner(config, model, batches)
    return build_loop(config, learner, build_loss(config, labels, (), learner.device), listeners)


def our_trainer(work: Work, listeners: Sequence[Listener] = ()) -> tuple[TrainingLoop, Loop]:
    """The TrainingLoop that train.py would have, and an epoch of its own."""
    known = np.concatenate([batch.targets.labels.numpy() for batch in work.batches])
    labels = SimpleNamespace(target=known, mask=np.ones_like(known, bool))
    model = work.copied_model()
    trainer = trainer_of(work.config, model, len(work.batches), labels, listeners)
    loader = BatchesInMemory(work.batches)
    return trainer, timed(lambda: one_epoch(trainer, loader), work.device)


def one_epoch(trainer: TrainingLoop, loader) -> None:
    """train_epoch, then what the TrainingLoop does to its counts before the next one."""
    trainer.train_epoch(loader)
    assert trainer.state.sums.steps == len(loader), "a step was skipped"
    trainer.next_epoch()


def bare_loop(work: Work) -> tuple[nn.Module, Loop]:
    """What cannot be left out of a step: transfer, forward, loss, backward, clip, optimizer."""
    model = work.copied_model()
    optimizer = create_optimizer(model, "adamw", RATE, DECAY)

    def epoch() -> None:
        for batch in work.batches:
            batch = batch.to(work.device, work.layout)
            with work.autocast():
                logits = model(batch.inputs)
            F.binary_cross_entropy_with_logits(logits.float(), batch.targets.labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return model, timed(epoch, work.device)


def timm_loop(work: Work) -> tuple[nn.Module, Loop]:
    """The inner loop of timm's training script: its task, optimizer, scheduler, clipping, meters and log interval."""
    from timm.models import model_parameters
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.task import MultiLabelClassificationTask
    from timm.utils import AverageMeter, dispatch_clip_grad

    model = work.copied_model()
    task = MultiLabelClassificationTask(model, nn.BCEWithLogitsLoss(), device=work.device, verbose=False).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=RATE, weight_decay=DECAY, fused=True)
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="step", num_epochs=10**6, decay_epochs=10**6, warmup_epochs=0,
        step_on_epochs=False, updates_per_epoch=len(work.batches),
    )  # fmt: skip
    log, interval = logging.getLogger("timm"), 50

    def epoch() -> None:
        loss_meter, time_meter = AverageMeter(), AverageMeter()
        optimizer.zero_grad()
        for number, batch in enumerate(work.batches):
            started = time.perf_counter()
            image = batch.inputs.image.to(work.device, non_blocking=True).contiguous(memory_format=work.layout)
            target = batch.targets.labels.to(work.device, non_blocking=True)
            with work.autocast():
                loss = task(image, target)["loss"]
            loss.backward()
            dispatch_clip_grad(model_parameters(model), value=CLIP, mode="norm")
            optimizer.step()
            loss_meter.update(loss.item(), image.size(0))
            optimizer.zero_grad()
            time_meter.update(time.perf_counter() - started)
            if number % interval == 0:
                rate = sum(group["lr"] for group in optimizer.param_groups) / len(optimizer.param_groups)
                log.info("%d loss %.3g time %.3f rate %.3e", number, loss_meter.avg, time_meter.avg, rate)
            scheduler.step_update(num_updates=number, metric=loss_meter.avg)

    return model, timed(epoch, work.device)


def lightning_loop(work: Work) -> tuple[nn.Module, Loop]:
    """Lightning's Trainer without logger, checkpoints, bar and summary; timed without what `fit` does around it."""
    import lightning

    class Module(lightning.LightningModule):
        """The network with Lightning's hooks."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model
            self.optimizer = create_optimizer(model, "adamw", RATE, DECAY)
            self.started = self.seconds = 0.0

        def on_train_epoch_start(self) -> None:
            self.started = now(work.device)

        def on_train_epoch_end(self) -> None:
            self.seconds = now(work.device) - self.started

        def training_step(self, batch: Batch) -> Tensor:
            with work.autocast():
                logits = self.model(batch.inputs)
            return F.binary_cross_entropy_with_logits(logits.float(), batch.targets.labels)

        def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
            return batch.to(device, work.layout)

        def configure_optimizers(self):
            return self.optimizer

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = Module(work.copied_model())

    def loop() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of batches without workers
            lightning.Trainer(
                accelerator="gpu" if work.device.type == "cuda" else "cpu",
                devices=1,
                gradient_clip_val=CLIP,
                max_epochs=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            ).fit(module, BatchesInMemory(work.batches))
        return module.seconds

    return module.model, loop
