"""From a Config to a TrainingLoop: the only file of this folder that reads the config."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import nn

from configs.attention_settings import WITH_PLACES
from configs.best_by import MEAN_AUROC, settle_best_by
from configs.default_config import Config, TrainSettings
from configs.errors import ConfigError
from configs.section import settled
from training.accumulation_window import AccumulationWindow
from training.attention_supervision import AttentionSupervision, ObservedModel
from training.classes import positives_of
from training.distillation import DistillationLoss, SavedNetwork, teacher_of
from training.ema import ExponentialMovingAverage
from training.evaluation import Evaluator
from training.freezing import Freezing, frozen_part
from training.layer_rates import backbone_rate_factors
from training.learner import Learner
from training.loop import LoopOptions, TrainingLoop
from training.losses import (
    Array,
    ElementwiseLoss,
    GroupSpec,
    Loss,
    TrainingLoss,
    asymmetric,
    balanced_class_weight,
    balanced_pos_weight,
    binary_cross_entropy,
    cross_entropy,
    exclusive_focal,
    focal,
)
from training.optim import LearningRateSchedule, create_optimizer
from training.out_of_memory import Adaptation
from training.precision import Precision, choose_available_precision, choose_memory_format, choose_precision
from training.prior import prior_shift
from training.probe import Candidate, choose_fastest, probe_shape
from training.quantization_aware import QuantizationAware
from training.sparsity import SparseWeights, prune_smallest
from utils.gradient_checkpointing import Checkpointable, checkpointing_options
from utils.kernels import prepare_kernels
from utils.listener import Listener
from utils.runs.control import Request

logger = logging.getLogger("train")


def build_learner(
    config: Config,
    model: nn.Module,
    batches_per_epoch: int,
    images_per_study: float = 1.0,
    optimizer: torch.optim.Optimizer | None = None,
) -> Learner:
    """What training changes, for a model that is on its device already: optimizer, schedule, average, pruning.

    config: resolved, and settled by `resolve_precision`. images_per_study: the mean of the training split, by which a
    micro-batch of studies is planned for. optimizer: one that `adopt_optimizer` took; None: the one that TRAIN names.
    """
    settings = config.TRAIN
    device = next(model.parameters()).device
    steps = -(-batches_per_epoch // settings.gradient_accumulation_steps)
    if optimizer is not None and (settings.backbone_learning_rate_factor, settings.layer_decay) != (1, 1):
        raise ConfigError(
            "TRAIN.backbone_learning_rate_factor and TRAIN.layer_decay are for the optimizer that TRAIN names: give "
            "your own one groups with learning rates, and leave both at 1"
        )
    optimizer = optimizer or create_optimizer(
        model,
        settings.optimizer,
        settings.learning_rate,
        settings.weight_decay,
        settings.momentum,
        settings.study_learning_rate_factor,
        backbone_rate_factors(model, settings.backbone_learning_rate_factor, settings.layer_decay),
    )
    precision = choose_precision(settings.mixed_precision, device)
    freezing = _freezing(settings, model)
    if freezing is not None and not config.MODEL.pretrained and config.MODEL.init_from is None:
        logger.warning(
            "TRAIN.freeze: %s is frozen as it was drawn by chance: MODEL.pretrained is false and MODEL.init_from null",
            freezing.part.title,
        )
    if freezing is not None and freezing.until is None:
        freezing.apply(0)  # else memory is planned for what is trained later
    if isinstance(model, Checkpointable) and config.MODEL.gradient_checkpointing.enabled:
        _plan_checkpointing(model, config, precision, images_per_study)
    model.to(memory_format=choose_memory_format(settings.channels_last))
    sparsity = _pruned(model, settings) if settings.pruning.method == "unstructured" else None
    adapts = settings.on_oom == "adapt"
    return Learner(
        model,
        optimizer,
        _schedule(settings, optimizer, steps),
        precision,
        Adaptation(model, precision.dtype, settings.gradient_accumulation_steps, adapts, images_per_study),
        ExponentialMovingAverage(model, settings.ema_decay) if settings.ema_decay else None,
        sparsity,
        freezing,
    )


def _freezing(settings: TrainSettings, model: nn.Module) -> Freezing | None:
    if settings.freeze == "none":
        return None
    return Freezing(frozen_part(model, settings.freeze), settings.unfreeze_epoch and settings.unfreeze_epoch - 1)


def build_loop(
    config: Config,
    learner: Learner,
    loss: Loss,
    listeners: Sequence[Listener] = (),
    should_stop: Callable[[], Request | None] = lambda: None,
    not_learnt: Collection[str] = (),
) -> TrainingLoop:
    """A TrainingLoop that is ready to `fit`.

    config: the one that the learner was built with. loss: of training; validation has no teacher. not_learnt: classes
    without a positive in the training split, over which no mean is.
    """
    settings, model = config.TRAIN, learner.model
    memory_format = choose_memory_format(settings.channels_last)
    training, scoring = _forwards(settings, learner)
    labels = loss.labels if isinstance(loss, DistillationLoss) else loss
    labels = labels.unshifted() if isinstance(labels, TrainingLoss) else labels
    evaluator = Evaluator(
        model,
        labels,
        learner.precision,
        tuple(config.DATA.class_names or ()),
        memory_format,
        config.LOGGING.progress,
        learner.adaptation.allowed,
        scoring,
        not_learnt,
    )
    window = AccumulationWindow(
        learner, loss, training, settings.gradient_clip_norm, memory_format, supervision=_supervision(config, model)
    )
    return TrainingLoop(window, evaluator, _options(config, learner.device), listeners, should_stop)


def _supervision(config: Config, model: nn.Module) -> AttentionSupervision | None:
    """None where LOSS.attention teaches nothing. Raises ConfigError where the network has no map to be taught."""
    settings = config.LOSS.attention
    if not settings.trains or settings.method == "none":
        return None
    assert isinstance(model, ObservedModel)
    if settings.method == "mask" and model.attention.observes == "nothing":
        raise ConfigError(
            "LOSS.attention.method 'mask' teaches the attention over places, and this network has none: set "
            f"MODEL.attention to {', '.join(WITH_PLACES)}, or use method 'cam'"
        )
    return AttentionSupervision(model, settings.method, settings.weight)


def _forwards(settings: TrainSettings, learner: Learner) -> tuple[Callable[..., object], Callable[..., object]]:
    """How the network is called in training, and to score it."""
    model = learner.model
    if settings.compile:
        prepare_kernels(model, learner.device, (torch.float32, learner.precision.dtype or torch.float32))
        compiled = torch.compile(model)
        return compiled, compiled
    return QuantizationAware(model) if settings.quantization_aware else model, model


def resolve_precision(
    config: Config,
    model: nn.Module,
    prefers_channels_last: bool,
    checkpoint: Mapping[str, object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Config:
    """A copy in which TRAIN.mixed_precision and channels_last say what `auto` is here; a probe of the model tells.

    config: resolved. model: on its device; it stays as it is. prefers_channels_last: of its backbone, for the prior.
    A run that is resumed from a checkpoint is not probed: it keeps what it started with. clock: seconds, for the probe.
    """
    settings, device = config.TRAIN, next(model.parameters()).device
    if "auto" not in (settings.mixed_precision, settings.channels_last):
        return config
    prefers = prefers_channels_last and not config.has_volumes()
    if checkpoint is not None:
        chosen = _as_started(settings, checkpoint.get("config"), prefers, device)
    else:
        shape = probe_shape(device, settings.batch_size, config.MODEL.in_channels, config.image_shape())
        freezing = _freezing(settings, model)
        with nullcontext() if freezing is None else freezing.applied():
            chosen = choose_fastest(model, *_candidates(config, prefers, device), shape, clock)
    settled = config.model_copy(deep=True)
    settled.TRAIN.channels_last = chosen.channels_last
    if settings.mixed_precision == "auto":
        settled.TRAIN.mixed_precision = chosen.precision.setting
    return settled


def _candidates(config: Config, prefers: bool, device: torch.device) -> tuple[list[Candidate], Candidate]:
    """(what the settings leave open, the prior among it): float32 on a CPU, else what `true` is; volumes contiguous."""
    precision, layout = config.TRAIN.mixed_precision, config.TRAIN.channels_last
    usual, float32 = choose_precision(precision, device), Precision(device.type, None)
    precisions = {usual: None, float32: None} if precision == "auto" else {usual: None}
    open_layouts = (False, True) if layout == "auto" and not config.has_volumes() else (prefers,)
    layouts = [choose_memory_format(layout, last) for last in open_layouts]
    first = float32 if precision == "auto" and device.type == "cpu" else usual
    prior = Candidate(first, choose_memory_format(layout, prefers))
    return [Candidate(one, memory_format) for one in precisions for memory_format in layouts], prior


def _as_started(settings: TrainSettings, before: object, prefers: bool, device: torch.device) -> Candidate:
    """What a run was started with where the settings say auto. before: the config in its checkpoint, of any type."""
    section = before.get("TRAIN") if isinstance(before, Mapping) else None
    section = section if isinstance(section, Mapping) else {}
    precision, layout = section.get("mixed_precision"), section.get("channels_last")
    if settings.mixed_precision != "auto" or not isinstance(precision, (bool, str)):
        precision = settings.mixed_precision
    if settings.channels_last != "auto" or not isinstance(layout, bool):
        layout = settings.channels_last
    choose = choose_available_precision if settings.mixed_precision == "auto" else choose_precision
    return Candidate(choose(precision, device), choose_memory_format(layout, prefers))


def _schedule(settings: TrainSettings, optimizer: torch.optim.Optimizer, steps: int) -> LearningRateSchedule:
    """steps: optimizer steps of an epoch."""
    return LearningRateSchedule(
        optimizer,
        settings.lr_scheduler,
        settings.learning_rate,
        total_steps=steps * settings.epochs,
        warmup_steps=round(settled(settings.warmup_epochs, "TRAIN.warmup_epochs") * steps),
        minimum=settings.min_learning_rate,
        patience=settings.plateau_patience,
        factor=settings.plateau_factor,
    )


def resolve_best_by(config: Config, train: KnownLabels, val: KnownLabels) -> Config:
    """A copy in which CHECKPOINT.best_by says which figure decides about the best epoch.

    train, val: labels of these splits. Raises ConfigError where a figure was asked for that is undefined on them.
    """
    names = config.DATA.class_names or ()
    learnt = np.array(positives_of(train)) > 0
    counts = [((val.target > 0.5) == side) & (val.mask > 0) for side in (True, False)]
    judged = learnt & (counts[0].any(axis=0) & counts[1].any(axis=0))
    settled_config = config.model_copy(deep=True)
    settled_config.CHECKPOINT.best_by = settle_best_by(config.CHECKPOINT.best_by, names, judged.tolist())
    if settled_config.CHECKPOINT.best_by != (config.CHECKPOINT.best_by or MEAN_AUROC):
        logger.warning(
            "no class has positives and negatives in the validation split: the epoch with the lowest validation loss "
            "is the best one (CHECKPOINT.best_by)"
        )
    return settled_config


def _options(config: Config, device: torch.device) -> LoopOptions:
    settings = config.TRAIN
    return LoopOptions(
        epochs=settings.epochs,
        accumulation_steps=settings.gradient_accumulation_steps,
        early_stopping_patience=settings.early_stopping_patience,
        max_nonfinite_steps=settings.max_nonfinite_steps,
        progress=config.LOGGING.progress,
        print_freq=config.LOGGING.print_freq,
        save_every_steps=config.CHECKPOINT.save_every_steps,
        best_by=config.CHECKPOINT.best_by,
        read_every=1 if device.type == "cpu" else config.LOGGING.print_freq,  # a CPU has nothing to be waited for
    )


def _plan_checkpointing(model: Checkpointable, config: Config, precision: Precision, images_per_study: float) -> None:
    """Plan for the precision that the device really has, and say what memory is needed on top."""
    options = checkpointing_options(config.MODEL.gradient_checkpointing)
    images = math.ceil(config.TRAIN.batch_size * images_per_study)
    model.enable_gradient_checkpointing(**options, batch_size=images, autocast=precision.dtype)
    assert isinstance(model, nn.Module)
    logger.info("gradient checkpointing: %s", _standing_memory(model, config.TRAIN))


def _pruned(model: nn.Module, settings: TrainSettings) -> SparseWeights:
    """Zero weights before anything copies them; a run that is resumed finds its own again."""
    sparsity = prune_smallest(model, settings.pruning.amount, spared=("classifier.",))
    logger.info("pruned %.1f %% of the weights of convolutions and linear layers", 100 * sparsity.fraction)
    return sparsity


def _standing_memory(model: nn.Module, settings: TrainSettings) -> str:
    """What stays in memory beside activations: float32 weights and gradients, the optimizer's state, the average."""
    numbers = sum(p.numel() for p in model.parameters())
    copies = 2 + (2 if settings.optimizer == "adamw" else 1) + bool(settings.ema_decay)
    return f"weights, gradients and optimizer take {4 * copies * numbers / 1e9:.2f} GB on top"


def build_distillation(
    config: Config,
    labels: TrainingLoss,
    saved: SavedNetwork | None,
    preprocessing: Mapping[str, object],
    learner: Learner,
) -> TrainingLoss | DistillationLoss:
    """The loss of a learner that learns from the network in LOSS.teacher too; `labels` itself where there is none.

    saved: what models.load_teacher gave, None without a teacher. preprocessing: the student's, `as_dict`.
    Raises ConfigError where teacher and student do not fit.
    """
    if saved is None:
        return labels
    settings, memory_format = config.LOSS, choose_memory_format(config.TRAIN.channels_last)
    names = config.DATA.class_names or ()
    execution = (learner.precision, learner.device, memory_format)
    teacher = teacher_of(saved, names, preprocessing, labels.exclusive, *execution)
    logger.info("learning from '%s' too, with weight %g", settings.teacher, settings.distillation_weight)
    return DistillationLoss(labels, teacher, settings.distillation_weight, settings.distillation_temperature)


class KnownLabels(Protocol):
    """Labels of a split: 1, 0 or anything where the mask is False, [N, K]; those of coarse classes [N, G], if any."""

    @property
    def target(self) -> Array: ...
    @property
    def mask(self) -> Array: ...
    @property
    def coarse_target(self) -> Array | None: ...
    @property
    def coarse_mask(self) -> Array | None: ...


class Group(Protocol):
    """A coarse class: present if any member is, if negated where none is. members: columns of the classes."""

    @property
    def members(self) -> Sequence[int]: ...
    @property
    def negated(self) -> bool: ...


def build_loss(
    config: Config,
    train_labels: KnownLabels,
    coarse_groups: Sequence[Group],
    device: torch.device,
    drawn: np.ndarray | None = None,
) -> TrainingLoss:
    """The loss that LOSS and MODEL.task name. train_labels: of the training split, for LOSS.pos_weight. drawn: how
    often each of its studies is drawn [N]; None: once.
    """
    settings = config.LOSS
    exclusive = config.MODEL.task == "multi_class"
    groups = [GroupSpec(list(group.members), group.negated) for group in coarse_groups]
    weights = {"labels": 1.0}
    if groups:
        weights = {
            "fine": settings.fine_weight,
            "coarse": settings.coarse_weight,
            "consistency": settings.consistency_weight,
        }
    elementwise = _elementwise(config, train_labels, device)
    loss = TrainingLoss(elementwise, weights, exclusive, settings.label_smoothing, groups)
    if drawn is None or not settings.correct_prior:
        return loss
    shift = prior_shift(train_labels.target, train_labels.mask, drawn, exclusive)
    loss = replace(loss, shift=torch.tensor(shift, dtype=torch.float32, device=device))
    if train_labels.coarse_target is None or train_labels.coarse_mask is None:
        return loss
    coarse = prior_shift(train_labels.coarse_target, train_labels.coarse_mask, drawn, False)
    return replace(loss, coarse_shift=torch.tensor(coarse, dtype=torch.float32, device=device))


def describe_sampling(config: Config, train_labels: KnownLabels, drawn: np.ndarray) -> str:
    """How often each study is drawn, what that does to logits, and whether probabilities are corrected for it."""
    names = config.DATA.class_names or []
    shift = prior_shift(train_labels.target, train_labels.mask, drawn, config.MODEL.task == "multi_class")
    kind = "corrected to that of the training split" if config.LOSS.correct_prior else "of what is drawn, not corrected"
    listed = ", ".join(f"{name} {value:+.2f}" for name, value in zip(names[:20], shift))
    return (
        f"DATA.sampling: a study is drawn {drawn.min():.2g} to {drawn.max():.2g} times an epoch; probabilities are "
        f"{kind}; the draw shifts logits by {listed}"
    )


def _elementwise(config: Config, train_labels: KnownLabels, device: torch.device) -> ElementwiseLoss:
    settings = config.LOSS
    if config.MODEL.task == "multi_class":
        weights = _class_weight(config, train_labels, device)
        if settings.type == "focal":
            return partial(exclusive_focal, gamma=settings.focal_gamma, weight=weights)
        return cross_entropy if weights is None else partial(cross_entropy, weight=weights)
    if settings.type == "focal":
        return partial(focal, gamma=settings.focal_gamma)
    if settings.type == "asymmetric":
        return partial(
            asymmetric,
            gamma_positive=settings.asymmetric_gamma_positive,
            gamma_negative=settings.asymmetric_gamma_negative,
            clip=settings.asymmetric_clip,
        )
    weight = settings.pos_weight
    if weight is None:
        return binary_cross_entropy
    values = balanced_pos_weight(train_labels.target, train_labels.mask) if weight == "auto" else weight
    if len(values) not in (1, config.MODEL.num_classes):
        raise ConfigError(f"LOSS.pos_weight has {len(values)} values for {config.MODEL.num_classes} classes")
    return partial(binary_cross_entropy, pos_weight=torch.tensor(values, device=device))


def _class_weight(config: Config, train_labels: KnownLabels, device: torch.device) -> torch.Tensor | None:
    """LOSS.class_weight, float32 [K]."""
    weight = config.LOSS.class_weight
    if weight is None:
        return None
    values = balanced_class_weight(train_labels.target, train_labels.mask) if weight == "auto" else weight
    names = config.DATA.class_names or [f"class {k + 1}" for k in range(len(values))]
    if len(values) != config.MODEL.num_classes:
        raise ConfigError(
            f"LOSS.class_weight has {len(values)} values for {config.MODEL.num_classes} classes "
            f"({', '.join(names[:20])})"
        )
    logger.info("class weights: %s", ", ".join(f"{name} {value:.3g}" for name, value in zip(names, values)))
    return torch.tensor(values, device=device)
