"""A network from a file alone: a current checkpoint, .safetensors converted from one, or the previous release's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from configs.consistency import positive_class_problems
from configs.default_config import Config
from configs.errors import CheckpointError, ConfigError, ModelError, OwnLoaderError, WeightsError
from configs.followed import CLASS_NAMES, COARSE_GROUPS, PREPROCESSING, TASK, Followed
from configs.section import settled
from models.channel_pruning import Removed, remove_channels
from models.hybrid_med_net import HybridMedNet
from models.legacy import rename_each, rename_previous_release, settings_of_previous_release
from models.state_dicts import compare, plain_name, todays_names
from utils.checkpoint import find_weights, load_checkpoint, read_file, read_safetensors
from utils.checkpoint.description import check_classes_and_input, check_description
from utils.decision import Task
from utils.listener import FileContent


@dataclass(frozen=True)
class SavedModel:
    """model: in eval mode, with the averaged weights where there were some. config: what it was made with.

    class_names, preprocessing (`as_dict` of data's Preprocess or VolumePreprocess): None in files of the previous
    release, which do not say. source: 'checkpoint', 'safetensors' or 'previous release'.
    description: what else the file says beside weights and settings: plain values, {} in the previous release's.
    """

    model: HybridMedNet
    config: Config
    class_names: tuple[str, ...] | None
    preprocessing: FileContent | None
    source: str
    description: FileContent = field(default_factory=dict)

    def task(self, class_names: Sequence[str] | None = None) -> Task:
        """What its classes are to each other. class_names: where its file does not say; else they are numbered.

        Raises ConfigError where DATA.positive_class is none of them.
        """
        count = settled(self.config.MODEL.num_classes, "MODEL.num_classes")
        names = self.class_names or class_names or [f"class {number + 1}" for number in range(count)]
        positive, kind = self.config.DATA.positive_class, self.config.MODEL.task
        if problems := positive_class_problems(positive, kind, names):
            raise ConfigError(problems[0])
        return Task(tuple(names), kind == "multi_class", positive)

    def not_learnt(self) -> frozenset[str]:
        """The classes that no image of its training split was positive for, as far as its file says."""
        names, counts = self.class_names or (), self.description.get("training_positives")
        return frozenset(name for name, count in zip(names, counts or ()) if count == 0)


def load_models(paths: Sequence[Path], overrides: Sequence[str], followed: Followed) -> list[SavedModel]:
    """`load_model` of each, with those overrides that the command follows for it.

    Raises ConfigError where an override has an effect with none of them, and what `load_model` raises.
    """
    named = Config.override_keys(overrides)
    files = [_read(path) for path in paths]
    followed.check(named, [file.silent() for file in files])
    return [_build(path, file, followed.of(named, file.silent())) for path, file in zip(paths, files)]


def _studies_of(config: Config) -> str:
    """What a network takes of a study, with its kinds of views and its columns; '' for single images."""
    kinds, columns = ", ".join(config.MODEL.view_kinds or ()), ", ".join(config.MODEL.table_columns or ())
    parts = [f"views: {kinds}"] * (config.MODEL.views.aggregator is not None)
    parts += [f"table: {columns}"] * (config.MODEL.table.fusion is not None)
    return "; ".join(parts)


def load_model(path: str | Path, overrides: Sequence[str] = ()) -> SavedModel:
    """Build the network that a file's weights are of, and load them; torch's random stream is left as it is.

    overrides: 'SECTION.key=value' on top of the file's settings, such as DATA.class_names of an old file. No path that
    a file names is opened: MODEL.pretrained and MODEL.init_from of its settings are not followed.
    Raises CheckpointError where the file is damaged or holds something else, ConfigError where its settings are not
    valid, ModelError where its backbone is unknown, WeightsError where its weights are not of its settings.
    """
    path = Path(path)
    return _build(path, _read(path), overrides)


def _build(path: Path, file: _File, overrides: Sequence[str]) -> SavedModel:
    weights, settings, description, source = file
    config = Config.from_values(settings, overrides, f"the settings in '{path}'").without_pretrained().complete()
    names = description.get("class_names") or config.DATA.class_names
    if names and len(names) != config.MODEL.num_classes:
        raise ConfigError(f"'{path}' has {config.MODEL.num_classes} classes, DATA.class_names names {len(names)}")
    check_classes_and_input(path, description, config)
    _take_positive_class(config, description, overrides)
    if names and (problems := positive_class_problems(config.DATA.positive_class, config.MODEL.task, names)):
        raise ConfigError(f"'{path}': {problems[0]}")
    removed = description.get("removed_channels") or ()
    with torch.random.fork_rng(devices=[]):  # initial values, which the file's replace
        _compare_before_building(config, weights, removed)
        model = HybridMedNet(config)
        remove_channels(model, removed)
    model.load_state_dict(weights)
    names, preprocessing = tuple(names) if names else None, description.get("preprocessing")
    metadata = {key: value for key, value in description.items() if key not in _TRAINING}
    return SavedModel(model.eval(), config, names, preprocessing, source, metadata)


def _take_positive_class(config: Config, description: FileContent, overrides: Sequence[str]) -> None:
    """What the file's operating point was fitted for goes before its settings, and the user's word before both."""
    point = description.get("operating_point")
    asked = {key for keys in Config.override_keys(overrides).values() for key in keys}
    if "DATA.positive_class" not in asked and isinstance(point, Mapping) and point.get("positive_class") is not None:
        config.DATA.positive_class = str(point["positive_class"])


def _compare_before_building(config: Config, weights: Mapping[str, Tensor], removed: Removed) -> None:
    """WeightsError where a file's settings are those of another network than its weights are of.

    They are compared with an outline of the network, which has shapes but no memory (torch's meta device): a small file
    whose settings ask for terabytes must not get them.
    """
    outline = config.model_copy(deep=True)
    outline.MODEL.gradient_checkpointing.enabled = False  # plans by what is computed
    with torch.device("meta"):
        network = HybridMedNet(outline)
        remove_channels(network, removed)
    compare(network.state_dict(), todays_names(weights))
    needed = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    given = sum(tensor.nbytes for tensor in weights.values())
    if needed > _BUFFERS_AT_MOST + 8 * given:
        raise WeightsError(
            f"a network of these settings takes {needed / 1e6:,.0f} MB, and its weights are {given / 1e6:,.1f} MB"
        )


def load_teacher(config: Config) -> SavedModel | None:
    """The network in LOSS.teacher, None where there is none.

    Raises what `load_model` does, naming the setting, and ConfigError where it takes other views or another table.
    """
    if config.LOSS.teacher is None:
        return None
    try:
        teacher = load_model(config.LOSS.teacher)
    except (CheckpointError, ConfigError, ModelError) as error:
        raise type(error)(f"LOSS.teacher: {error}") from None
    if (its := _studies_of(teacher.config)) != (own := _studies_of(config)):
        raise ConfigError(
            f"LOSS.teacher takes {its or 'single images'}, and the network {own or 'single images'}: a teacher must be "
            "given what the network is given"
        )
    return teacher


# Bytes of a network that need not be in its file: masks and coordinates, which follow from DATA.image_size.
_BUFFERS_AT_MOST = 1 << 29
# What only training needs of a checkpoint.
_TRAINING = ("model", "ema", "optimizer", "optimizer_kind", "schedule", "scaler", "random", "progress", "scalars")


class _File(NamedTuple):
    """settings: by section. description: what else is said. source: where it comes from."""

    weights: Mapping[str, Tensor]
    settings: FileContent
    description: FileContent
    source: str

    def silent(self) -> list[str]:
        """The facts of configs.followed that the file does not say."""
        found = [PREPROCESSING] if self.description.get("preprocessing") is None else []
        found += [] if self.description.get("class_names") else [CLASS_NAMES]
        return found + ([TASK, COARSE_GROUPS] if self.source == "previous release" else [])


def _read(path: Path) -> _File:
    if path.suffix == ".safetensors":
        tensors, description = read_safetensors(path)
        if isinstance(description.get("config"), dict):
            check_description(path, description)
            return _File(tensors, description["config"], description, "safetensors")
        return _previous_release(path, tensors)
    content = read_file(path)
    if not isinstance(content, Mapping) or "format_version" not in content:
        return _previous_release(path, find_weights(content))
    content = load_checkpoint(path)
    if content.get("own_loader"):
        network = content.get("own_model")
        raise OwnLoaderError(
            f"'{path}' was trained from a user's own loader{f', the network {network}' if network else ''}: it does "
            "not say how an image becomes an input. hybridmednet.from_pretrained takes it, with what is lacking"
        )
    weights = find_weights(content["ema"]["shadow"] if content.get("ema") else content.get("model"))
    if weights is None or not isinstance(content.get("config"), dict):
        raise CheckpointError(f"'{path}' is a checkpoint without weights or without its settings")
    return _File(weights, content["config"], content, "checkpoint")


def _previous_release(path: Path, weights: Mapping[str, Tensor] | None) -> _File:
    found = rename_previous_release(rename_each(plain_name, weights)) if weights is not None else {}
    renamed = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    settings = settings_of_previous_release(renamed)
    if settings is None:
        raise CheckpointError(
            f"'{path}' is neither a current nor a v1.x HybridMedNet checkpoint; MODEL.pretrained=<file> takes "
            "the weights of a backbone"
        )
    return _File(renamed, {"MODEL": settings}, {}, "previous release")
