"""What settings mean together: contradictions, and what follows from the data."""

from __future__ import annotations

from math import prod
from pathlib import PureWindowsPath
from typing import Any

from configs.default_config import Config
from configs.errors import ConfigError

_LARGEST = {2: (89_478_485, "pixels"), 3: (1 << 29, "voxels")}  # as data take them; a network's input is no larger
_LONGEST_NAME = 100  # a file system takes 255 bytes; the backbone and the time are added to a model's name


def find_problems(config: Config) -> list[str]:
    """Contradictions between settings that are each fine alone; empty where there are none."""
    found = []
    total = config.DATA.train_split + config.DATA.val_split + config.DATA.test_split
    if abs(total - 1) > 1e-6:
        found.append(f"DATA.train_split + val_split + test_split is {total:g}: they must add up to 1")
    multi_class = config.MODEL.task == "multi_class"
    if config.LOSS.is_set("type") and multi_class != (config.LOSS.type == "cross_entropy"):
        fit = "cross_entropy" if multi_class else "bce, focal or asymmetric"
        found.append(f"LOSS.type: '{config.LOSS.type}' does not fit MODEL.task '{config.MODEL.task}': use {fit}")
    if config.LOSS.pos_weight is not None and config.LOSS.type != "bce":
        found.append(f"LOSS.pos_weight works with LOSS.type 'bce' only, not '{config.LOSS.type}'")
    if config.MODEL.hierarchical and config.MODEL.task != "multi_label":
        found.append(f"MODEL.hierarchical needs MODEL.task 'multi_label', not '{config.MODEL.task}'")
    if config.MODEL.init_from is not None and isinstance(config.MODEL.pretrained, str):
        found.append(
            "MODEL.init_from and a file in MODEL.pretrained: the first brings the backbone too, set one of them"
        )
    if config.TRAIN.pruning.method != "none" and config.MODEL.init_from is None:
        found.append("TRAIN.pruning is for trained weights: name them by MODEL.init_from")
    if config.TRAIN.quantization_aware and config.TRAIN.compile:
        found.append("TRAIN.quantization_aware and TRAIN.compile do not go together: set one of them to false")
    if config.DATA.cache_dir is not None and config.DATA.cache != "disk":
        found.append(f"DATA.cache_dir is for DATA.cache 'disk', not '{config.DATA.cache}': set one of them")
    for key in ("mean", "std"):
        values = config.DATA[key]
        if values is not None and len(values) not in (1, config.MODEL.in_channels):
            found.append(f"DATA.{key} has {len(values)} values for MODEL.in_channels={config.MODEL.in_channels}")
    if isinstance(config.LOSS.pos_weight, list) and min(config.LOSS.pos_weight, default=0) <= 0:
        found.append(f"LOSS.pos_weight {config.LOSS.pos_weight}: weights must be positive")
    if config.DATA.std and min(config.DATA.std) <= 0:
        found.append(f"DATA.std {config.DATA.std} must be positive")
    return found + _problems_of_size(config) + _problems_of_names(config)


def _problems_of_names(config: Config) -> list[str]:
    """Names that become a folder's: neither paths nor what no file system takes."""
    names = {"MODEL.name": config.MODEL.name.replace("/", "_"), "LOGGING.run_name": config.LOGGING.run_name}
    return [
        f"{key}: {name!r} is not allowed: one folder's name, without a path, of at most {_LONGEST_NAME} characters"
        for key, name in names.items()
        if name and (PureWindowsPath(name).name != name or name == ".." or not name.isprintable() or _too_long(name))
    ]


def _too_long(name: str) -> bool:
    return len(name.encode()) > _LONGEST_NAME


def _problems_of_size(config: Config) -> list[str]:
    """Sizes that differ, and settings of images for volumes or the reverse."""
    data = config.DATA
    window = data.window
    found = [] if window is None or window[0] < window[1] else [f"DATA.window {window}: low must be below high"]
    try:
        volumes, shape = config.has_volumes(), config.image_shape()
    except ConfigError as error:
        return [*found, str(error)]
    most, what = _LARGEST[len(shape)]
    if prod(shape) > most:
        found.append(f"DATA.image_size {shape} has {prod(shape):,} {what}: at most {most:,} are possible")
    if volumes and data.resize != "stretch":
        found.append(f"DATA.resize '{data.resize}' is for images: DATA.spacing_mm keeps a volume's proportions")
    if volumes and config.TRAIN.channels_last is True:
        found.append("TRAIN.channels_last true is for images: leave it auto or false with volumes")
    if volumes and data.use_albumentations:
        found.append("DATA.use_albumentations is for images: leave it false with volumes")
    if data.augment_on == "device" and (volumes or data.use_albumentations):
        other = "volumes" if volumes else "DATA.use_albumentations"
        found.append(f"DATA.augment_on 'device' is for the light augmentation of images, not {other}: use auto or cpu")
    for key in ("spacing_mm", "window"):
        if not volumes and data[key] is not None:
            found.append(f"DATA.{key} is for volumes: set DATA.image_size=[depth, height, width], or {key} to null")
    return found


def resolve(given: Config, class_names: tuple[str, ...], exclusive: bool = False) -> Config:
    """A copy in which what depends on the data and on other settings is written out.

    class_names: the classes the data have; exclusive: each image has exactly one of them.
    Raises ConfigError where they contradict the settings.
    """
    config = given.model_copy(deep=True)
    count = len(class_names)
    if given.MODEL.is_set("num_classes") and given.MODEL.num_classes != count:
        raise ConfigError(
            f"MODEL.num_classes is {given.MODEL.num_classes}, but the data have {count} classes "
            f"({', '.join(class_names[:20])}): leave it unset, or name the classes in DATA.class_names"
        )
    if not given.MODEL.is_set("task"):
        config.MODEL.task = "multi_class" if exclusive else "binary" if count == 1 else "multi_label"
    if config.MODEL.task == "binary" and count != 1:
        raise ConfigError(f"MODEL.task 'binary' needs one class, the data have {count}: use multi_class")
    config.MODEL.num_classes = count
    config.DATA.class_names = list(class_names)
    size: Any = given.image_shape()
    config.MODEL.input_size = config.DATA.image_size = size
    if config.MODEL.task == "multi_class" and not given.LOSS.is_set("type"):
        config.LOSS.type = "cross_entropy"
    if not given.TRAIN.is_set("warmup_epochs") and given.TRAIN.warmup_epochs > given.TRAIN.epochs / 2:
        config.TRAIN.warmup_epochs = given.TRAIN.epochs / 10  # the default would leave a short run no training
    if config.MODEL.hierarchical:
        config.MODEL.num_coarse_classes = _coarse_count(config, class_names)
    problems = config.problems()
    if problems:
        raise ConfigError("with these data the configuration has problems:\n  " + "\n  ".join(problems))
    return config


def _coarse_count(config: Config, class_names: tuple[str, ...]) -> int:
    groups = config.MODEL.coarse_groups
    for name, members in (groups or {}).items():
        unknown = sorted(set(members) - set(class_names))
        if unknown or not members:
            raise ConfigError(
                f"MODEL.coarse_groups: '{name}' names {unknown or 'nothing'}; the classes are {', '.join(class_names)}"
            )
    count = len(groups) if groups else 2
    if config.MODEL.is_set("num_coarse_classes") and config.MODEL.num_coarse_classes != count:
        raise ConfigError(
            f"MODEL.num_coarse_classes is {config.MODEL.num_coarse_classes}, but MODEL.coarse_groups makes {count}: "
            "leave num_coarse_classes unset, or name as many groups"
        )
    return count
