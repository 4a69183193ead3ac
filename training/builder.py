"""From a Config to a Trainer: the only file of this folder that reads the config."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from configs.default_config import Config
from configs.errors import ConfigError
from training.ema import ExponentialMovingAverage
from training.losses import (
    ElementwiseLoss,
    GroupSpec,
    TrainingLoss,
    asymmetric,
    balanced_pos_weight,
    binary_cross_entropy,
    cross_entropy,
    focal,
)
from training.optim import LearningRateSchedule, create_optimizer
from training.precision import choose_precision
from training.trainer import Trainer, TrainerOptions


def build_trainer(
    config: Config,
    model: nn.Module,
    batches_per_epoch: int,
    train_labels,
    coarse_groups: Sequence = (),
    prefers_channels_last: bool = False,
) -> Trainer:
    """A Trainer for a model that is on its device already.

    config: resolved. train_labels: `target` and `mask` arrays [N, K] of the training split, for pos_weight.
    coarse_groups: objects with `members` and `negated`. prefers_channels_last: what channels_last: auto follows.
    """
    settings = config.TRAIN
    device = next(model.parameters()).device
    steps = -(-batches_per_epoch // settings.gradient_accumulation_steps)
    optimizer = create_optimizer(
        model, settings.optimizer, settings.learning_rate, settings.weight_decay, settings.momentum
    )
    schedule = LearningRateSchedule(
        optimizer,
        settings.lr_scheduler,
        settings.learning_rate,
        total_steps=steps * settings.epochs,
        warmup_steps=round(settings.warmup_epochs * steps),
        minimum=settings.min_learning_rate,
        patience=settings.plateau_patience,
        factor=settings.plateau_factor,
    )
    channels_last = prefers_channels_last if settings.channels_last == "auto" else settings.channels_last
    options = TrainerOptions(
        epochs=settings.epochs,
        accumulation_steps=settings.gradient_accumulation_steps,
        clip_norm=settings.gradient_clip_norm,
        early_stopping_patience=settings.early_stopping_patience,
        max_nonfinite_steps=settings.max_nonfinite_steps,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        progress=config.LOGGING.progress,
        print_freq=config.LOGGING.print_freq,
    )
    model.to(memory_format=options.memory_format)
    trainer = Trainer(
        model,
        build_loss(config, train_labels, coarse_groups, device),
        optimizer,
        schedule,
        choose_precision(settings.mixed_precision, device),
        options,
        tuple(config.DATA.class_names or ()),
        ExponentialMovingAverage(model, settings.ema_decay) if settings.ema_decay else None,
    )
    if settings.compile:
        trainer.forward = torch.compile(model)
    return trainer


def build_loss(config: Config, train_labels, coarse_groups: Sequence, device: torch.device) -> TrainingLoss:
    """The loss that LOSS and MODEL.task name."""
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
    return TrainingLoss(elementwise, weights, exclusive, settings.label_smoothing, groups)


def _elementwise(config: Config, train_labels, device: torch.device) -> ElementwiseLoss:
    settings = config.LOSS
    if settings.type == "cross_entropy":
        return cross_entropy
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
