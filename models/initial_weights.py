"""Networks that start from the weights of an earlier one: MODEL.init_from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from configs.default_config import Config
from configs.errors import CheckpointError, WeightsError, WeightsUnavailableError
from models.channel_pruning import prune_channels, remove_channels
from models.hybrid_med_net import HybridMedNet
from models.state_dicts import todays_names
from utils.checkpoint import read_described_weights
from utils.listener import FileContent

_HEAD = "classifier."
# The biases of a head's outputs, one number per class.
_OUTPUTS = {
    f"{_HEAD}classifiers.bias": "class",
    f"{_HEAD}fine_classifier.4.bias": "class",
    f"{_HEAD}coarse_classifier.4.bias": "coarse class",
}


def create_model(config: Config, checkpoint: FileContent | None = None) -> HybridMedNet:
    """HybridMedNet(config); with MODEL.init_from built without published weights and started from that file.

    TRAIN.pruning 'structured' then takes channels out of it.
    checkpoint: of a run to resume; the network has its shape, and all weights are still to be loaded.
    Raises ModelError and CheckpointError.
    """
    if checkpoint is not None:
        model = HybridMedNet(config.without_pretrained())
        remove_channels(model, checkpoint.get("removed_channels") or ())
        return model
    path = config.MODEL.init_from
    if path is None:
        return _complete(HybridMedNet(config))
    model = HybridMedNet(config.without_pretrained())
    try:
        model.started_from = start_from(model, path, config.DATA.class_names)
    except (CheckpointError, WeightsError) as error:
        raise type(error)(f"MODEL.init_from: {error}") from None
    if config.TRAIN.pruning.method == "structured":
        _, description = prune_channels(model, config.TRAIN.pruning.amount)
        model.started_from += f", channels taken out: {description}"
    return model


def _complete(model: HybridMedNet) -> HybridMedNet:
    """The model, or the error that its pretrained weights are not available: training must not begin without them."""
    if model.lacking_weights:
        raise WeightsUnavailableError(model.lacking_weights)
    return model


def start_from(model: HybridMedNet, path: str, class_names: Sequence[str] | None = None) -> str:
    """Load a current or previous release's file, .safetensors too, into a model; returns a line for the log.

    A head for other classes, by their numbers, by whether some are coarse, or (class_names: the new ones) by the names
    that the file has, is left out as a whole, and the model's own stays; all else is loaded strictly.
    Raises CheckpointError where there are no weights to read, WeightsError where they do not fit: nothing is loaded.
    """
    try:
        return _start_from(model, path, class_names)
    except WeightsError as error:
        raise WeightsError(f"'{path}': {error}") from None


def _start_from(model: HybridMedNet, path: str, class_names: Sequence[str] | None) -> str:
    weights, described = read_described_weights(path)
    remove_channels(model, described.get("removed_channels") or ())
    found, own = todays_names(weights), model.state_dict()
    if not any(name.startswith("backbone.") for name in found):
        raise WeightsError(
            "this is no HybridMedNet, as no name in it begins with 'backbone.'; if these are the weights of a backbone "
            f"alone, say MODEL.pretrained={path} instead"
        )
    before, now = _class_counts(found), _class_counts(own)
    names = list(described.get("class_names") or ())
    renamed = bool(names and class_names) and names != list(class_names or ())
    other_classes = bool(before) and (before != now or renamed)
    if other_classes:
        kept = {name: tensor for name, tensor in own.items() if name.startswith(_HEAD)}
        found = {name: tensor for name, tensor in found.items() if not name.startswith(_HEAD)} | kept
    model.load_state_dict(found)
    if not other_classes:
        return f"weights of '{path}' with its head for {_words(now)}"
    why = f"for {_words(before)}, the new one for {_words(now)}"
    if before == now:
        why = f"for other classes ({', '.join(map(str, names))[:200]})"
    return f"weights of '{path}' but for its head: that is {why}"


def _class_counts(weights: Mapping[str, object]) -> dict[str, int]:
    """{name of an output's bias: how many classes it has}, of those that are there."""
    found = {name: weights.get(name) for name in _OUTPUTS}
    return {name: len(bias) for name, bias in found.items() if isinstance(bias, Tensor) and bias.ndim == 1}


def _words(counts: Mapping[str, int]) -> str:
    return " and ".join(f"{count} {_OUTPUTS[name]}{'' if count == 1 else 'es'}" for name, count in counts.items())
