"""Networks that start from the weights of an earlier one: MODEL.init_from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from configs.default_config import Config
from configs.errors import CheckpointError, WeightsError, WeightsUnavailableError
from configs.fallbacks import CoarseMeaning, coarse_meanings
from models.channel_pruning import prune_channels, remove_channels
from models.head_rows import COARSE, HEAD, OUTPUTS, HeadNames, class_counts, counted, match_head
from models.hybrid_med_net import HybridMedNet
from models.state_dicts import todays_names
from utils.checkpoint import read_described_weights
from utils.listener import FileContent


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
        model.started_from = start_from(model, path, *_names_of(config))
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


def start_from(
    model: HybridMedNet,
    path: str,
    class_names: Sequence[str] | None = None,
    groups: Sequence[CoarseMeaning] | None = None,
) -> str:
    """Load a current or previous release's file, .safetensors too, into a model; returns a line for the log.

    class_names, groups: what the model's outputs stand for. Of the file's head, the rows of classes and coarse classes
    of the same name are taken, whatever their places; other rows stay the model's own. A head of another kind, or with
    no class of these, is left out as a whole; so is, where a side has no names, one for another number of classes. All
    else is loaded strictly.
    Raises CheckpointError where there are no weights to read, WeightsError where they do not fit: nothing is loaded.
    """
    try:
        return _start_from(model, path, HeadNames(class_names, groups))
    except WeightsError as error:
        raise WeightsError(f"'{path}': {error}") from None


def _names_of(config: Config) -> tuple[list[str] | None, tuple[CoarseMeaning, ...] | None]:
    """What the outputs of a network of these settings stand for; None where that is open."""
    names = config.DATA.class_names
    return names, coarse_meanings(config.MODEL.coarse_groups, names) if names else None


def _start_from(model: HybridMedNet, path: str, names: HeadNames) -> str:
    weights, described = read_described_weights(path)
    remove_channels(model, described.get("removed_channels") or ())
    found, own = todays_names(weights), model.state_dict()
    if not any(name.startswith("backbone.") for name in found):
        raise WeightsError(
            "this is no HybridMedNet, as no name in it begins with 'backbone.'; if these are the weights of a backbone "
            f"alone, say MODEL.pretrained={path} instead"
        )
    counts = class_counts(found)
    before = _names_in(described, counts)
    matched = match_head(found, own, before, names)
    kept = {name: tensor for name, tensor in own.items() if name.startswith(HEAD)}
    if counts:
        found = {name: tensor for name, tensor in found.items() if not name.startswith(HEAD)}
        found |= kept if matched is None else matched.weights
    model.load_state_dict(found)
    if matched is not None:
        return f"weights of '{path}' with its head for {matched.words}"
    if not counts:
        return f"weights of '{path}'"
    why = f"for {_words(counts)}, the new one for {_words(class_counts(own))}"
    if counts == class_counts(own):
        why = f"for other classes ({', '.join(before.classes or ())[:200]})"
    return f"weights of '{path}' but for its head: that is {why}"


def _names_in(described: FileContent, counts: Mapping[str, int]) -> HeadNames:
    """What the outputs in a file stand for, as far as it says; CheckpointError where that cannot be."""
    names = described.get("class_names") or None
    if names is None:
        return HeadNames(None)
    settings = described.get("config")
    settings = settings.get("MODEL") if isinstance(settings, Mapping) else None
    groups = settings.get("coarse_groups") if isinstance(settings, Mapping) else None
    count = max((number for name, number in counts.items() if name != COARSE), default=0)
    if not _are_names(names) or (counts and len(names) != count):
        raise CheckpointError("the class names in this file are damaged, or are not those of its head")
    if groups is not None and not (
        isinstance(groups, Mapping) and all(map(_are_names, (list(groups), *groups.values())))
    ):
        raise CheckpointError("the coarse groups in this file are damaged")
    meanings = coarse_meanings(groups, names) if settings is not None else None
    return HeadNames(names, meanings if meanings and len(meanings) == counts.get(COARSE) else None)


def _are_names(names: object) -> bool:
    """A list of texts, each once."""
    if not isinstance(names, (list, tuple)) or not all(type(name) is str for name in names):
        return False
    return len(set(names)) == len(names)


def _words(counts: Mapping[str, int]) -> str:
    return " and ".join(counted(count, OUTPUTS[name]) for name, count in counts.items())
