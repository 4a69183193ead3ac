"""Networks that start from the weights of an earlier one: MODEL.init_from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from configs.default_config import Config
from configs.errors import CheckpointError, WeightsError, WeightsUnavailableError
from configs.fallbacks import CoarseMeaning, coarse_meanings
from models.channel_pruning import prune_channels, remove_channels
from models.head_rows import COARSE, HEAD, OUTPUTS, HeadNames, class_counts, counted, match_head
from models.hybrid_med_net import STUDY, VIEW_BACKBONES, HybridMedNet
from models.state_dicts import todays_names
from utils.checkpoint import read_described_weights
from utils.checkpoint.tensors import misfit
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
    no class of these, is left out as a whole; so is, where a side has no names, one for another number of classes. What
    joins views and adds a table is taken where the file has it for the same kinds of views and columns, and else begins
    as the image alone. All else is loaded strictly.
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
    completed, about_study = _with_own_study(model, weights, _model_settings(described))
    description = _start_from_file(model, path, names, completed, described)
    return f"{description}; {about_study}" if about_study else description


def _with_own_study(
    model: HybridMedNet, weights: Mapping[str, object], settings: Mapping[object, object]
) -> tuple[dict[str, object], str]:
    """The weights with the model's own study parts where the file's are not for them, and what there is to say.

    settings: MODEL of the file, as far as it says.
    """
    found = _with_view_backbones(model, todays_names(weights), settings)
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(STUDY)}
    theirs = {name: tensor for name, tensor in found.items() if name.startswith(STUDY)}
    if not own:
        return found, ""
    rest: dict[str, object] = {name: tensor for name, tensor in found.items() if name not in theirs}
    new = "what joins views and adds the table is new"
    if not theirs:
        return rest | own, new
    for key, now in model.study_parts.items():
        before = settings.get(key, now)
        if _in_order(before) != _in_order(now):
            return rest | own, f"{new}, as the file's MODEL.{key} is {before} and not {now}"
    if own.keys() != theirs.keys() or any(misfit(theirs[name], tensor) for name, tensor in own.items()):
        return rest | own, f"{new}, as the file's is of another kind"
    return found, ""


def _with_view_backbones(
    model: HybridMedNet, found: dict[str, object], settings: Mapping[object, object]
) -> dict[str, object]:
    """Separate backbones all begin as the file's one, unless it has them for the same kinds of views."""
    count = len(model.view_backbones)
    same = _in_order(settings.get("view_kinds")) == model.study_parts["view_kinds"]
    if not count or (same and any(name.startswith(VIEW_BACKBONES) for name in found)):
        return found
    first = {name.removeprefix("backbone."): value for name, value in found.items() if name.startswith("backbone.")}
    rest = {name: value for name, value in found.items() if not name.startswith(VIEW_BACKBONES)}
    return rest | {f"{VIEW_BACKBONES}{i}.{name}": value for i in range(count) for name, value in first.items()}


def _in_order(value: object) -> object:
    """Of mappings, the order counts."""
    return list(value.items()) if isinstance(value, Mapping) else value


def _start_from_file(
    model: HybridMedNet, path: str, names: HeadNames, weights: Mapping[str, object], described: FileContent
) -> str:
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
    kept = {name: tensor for name, tensor in own.items() if _is_of_head(name)}
    if counts:
        found = {name: tensor for name, tensor in found.items() if not _is_of_head(name)}
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
    settings = _model_settings(described)
    groups = settings.get("coarse_groups")
    count = max((number for name, number in counts.items() if name != COARSE), default=0)
    if not _are_names(names) or (counts and len(names) != count):
        raise CheckpointError("the class names in this file are damaged, or are not those of its head")
    if groups is not None and not (
        isinstance(groups, Mapping) and all(map(_are_names, (list(groups), *groups.values())))
    ):
        raise CheckpointError("the coarse groups in this file are damaged")
    meanings = coarse_meanings(groups, names) if settings else None
    return HeadNames(names, meanings if meanings and len(meanings) == counts.get(COARSE) else None)


def _model_settings(described: FileContent) -> Mapping[object, object]:
    """The MODEL section of the config in a file; empty where it has none."""
    config = described.get("config")
    settings = config.get("MODEL") if isinstance(config, Mapping) else None
    return settings if isinstance(settings, Mapping) else {}


def _is_of_head(name: str) -> bool:
    """Of its classes; what is of studies does not depend on them."""
    return name.startswith(HEAD) and not name.startswith(STUDY)


def _are_names(names: object) -> bool:
    """A list of texts, each once."""
    if not isinstance(names, (list, tuple)) or not all(type(name) is str for name in names):
        return False
    return len(set(names)) == len(names)


def _words(counts: Mapping[str, int]) -> str:
    return " and ".join(counted(count, OUTPUTS[name]) for name, count in counts.items())
