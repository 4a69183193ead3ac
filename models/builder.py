"""What a network takes from a whole Config beside its MODEL section."""

from __future__ import annotations

from typing import NamedTuple

import torch

from configs.default_config import Config, ModelSettings


class NetworkArguments(NamedTuple):
    """The arguments of HybridMedNet."""

    settings: ModelSettings
    image_size: tuple[int, ...]
    planned_batch: int
    planned_autocast: torch.dtype | None


def network_arguments(config: Config) -> NetworkArguments:
    """Sizes of the input, and the micro-batch that gradient checkpointing is planned for.

    The trainer, which knows the device, plans again for the precision that it really has.
    """
    config = config.complete()
    autocast = None if config.TRAIN.mixed_precision is False else torch.bfloat16
    return NetworkArguments(config.MODEL, config.image_shape(), config.TRAIN.batch_size, autocast)
