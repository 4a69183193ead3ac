"""Whether a saved run can be gone on with: everything is looked at before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict, cast

from torch import Tensor

from configs.errors import CheckpointError
from training.ema import AverageState
from utils.checkpoint.tensors import is_plain
from utils.listener import CheckpointContent, FileContent, StateDict
from utils.seed import RandomState, is_random_state

# What the optimizers keep for a parameter; of others, which users bring, it is not known.
_STATES = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "SGD": {"momentum_buffer"}}


class TrainingContent(TypedDict):
    """What training puts into a checkpoint; see Learner.state_dict.

    optimizer, scaler: as torch's classes give them. progress: the fields of TrainerState, with those of its sums.
    """

    model: StateDict
    ema: AverageState | None
    optimizer: FileContent
    optimizer_kind: str
    schedule: dict[str, float]
    scaler: FileContent
    random: RandomState
    progress: FileContent


def check_resumable(
    content: CheckpointContent,
    own: TrainingContent,
    parameters: Mapping[str, Tensor],
    earlier: Sequence[Sequence[str]] = (),
) -> TrainingContent:
    """Compare a checkpoint's content with what this learner would save, `own`; → the content, which fits.

    parameters: that are optimized, by name. earlier: see `saved_groups`.
    Raises CheckpointError where a part is lacking, or is of another model, optimizer or version.
    """
    _check_parts(content, own)
    saved = cast(TrainingContent, content)
    _check_tensors("model", saved["model"], own["model"])
    if saved["ema"] is not None and own["ema"] is not None:
        _check_values("ema", _without(saved["ema"], "shadow"), _without(own["ema"], "shadow"))
        _check_tensors("moving average", saved["ema"].get("shadow"), own["ema"]["shadow"])
    _check_optimizer(saved["optimizer"], own, parameters, earlier)
    _check_values("schedule", saved["schedule"], own["schedule"])
    _check_values("progress", _without(saved["progress"], "sums"), _without(own["progress"], "sums"))
    sums = saved["progress"].get("sums")
    sums = {"data_wait_seconds": 0.0, **sums} if isinstance(sums, Mapping) else sums  # older checkpoints do not have it
    _check_values("progress.sums", sums, own["progress"]["sums"])
    if saved["progress"]["micro_batch_splits"] < 1:
        raise CheckpointError("the progress of this checkpoint is damaged: micro_batch_splits")
    if not isinstance(saved["scaler"], Mapping):
        raise CheckpointError("the scaler of this checkpoint is damaged")
    if saved["scaler"] and own["scaler"]:
        _check_values("scaler", saved["scaler"], own["scaler"])
    if not is_random_state(saved["random"]):
        raise CheckpointError("this checkpoint has no random state of this version of torch")
    return saved


def _check_parts(content: CheckpointContent, own: TrainingContent) -> None:
    """All parts are there, and the optimizer is of the same kind."""
    lacking = [key for key in own if key not in content]
    if lacking:
        raise CheckpointError(f"this checkpoint cannot be resumed, it lacks {', '.join(lacking)}: take last.pth")
    if content["optimizer_kind"] != own["optimizer_kind"]:
        kinds = content["optimizer_kind"], own["optimizer_kind"]
        raise CheckpointError(f"the run to resume uses {kinds[0]}, TRAIN.optimizer now says {kinds[1]}")


def _check_tensors(what: str, saved: object, own: StateDict) -> None:
    """Names, shapes and types; no values."""
    saved = saved if isinstance(saved, Mapping) else {}
    reasons = [f"{name} is lacking" for name in own if name not in saved]
    reasons += [f"{name} is not there now" for name in saved if name not in own]
    reasons += [
        f"{name} is {_describe(saved[name])}, now {_describe(tensor)}"
        for name, tensor in own.items()
        if name in saved and not _alike(saved[name], tensor)
    ]
    if reasons:
        displayed = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
        raise CheckpointError(f"the run to resume has another {what} than MODEL now says: {displayed}")


def saved_groups(saved: FileContent, own: FileContent, earlier: Sequence[Sequence[str]] = ()) -> list[Sequence[str]]:
    """The names of the parameters in each group of a saved optimizer's state, in the order of its numbers.

    own: the state of this run's optimizer. earlier: the names by an earlier rule, for a file that says none: its groups
    are today's where they are as large, as that rule only moves parameters from one to the other.
    Raises CheckpointError where the saved state is damaged or of other parameters.
    """
    try:
        numbers = [list(group["params"]) for group in saved["param_groups"]]
        names: list[Sequence[str]] = [group.get("param_names") for group in saved["param_groups"]]
        if not all(type(number) is int for group in numbers for number in group):
            raise TypeError
    except (TypeError, KeyError, ValueError, AttributeError):
        raise CheckpointError("the state of the optimizer in this checkpoint is damaged") from None
    today: list[Sequence[str]] = [list(group["param_names"]) for group in own["param_groups"]]
    known: list[list[Sequence[str]]]
    known = [names] if any(group is not None for group in names) else [today, [list(group) for group in earlier]]
    in_order = [number for group in numbers for number in group] == list(range(sum(map(len, numbers))))
    for groups in known:
        fitting = in_order and [_count(group) for group in groups] == [len(group) for group in numbers]
        if fitting and _all_names(groups) == _all_names(today):
            return groups
    raise CheckpointError("the run to resume optimizes other parameters than this one")


def _count(group: object) -> int:
    """-1 for what is no list of names."""
    return len(group) if isinstance(group, list) and all(type(name) is str for name in group) else -1


def _all_names(groups: Sequence[Sequence[str]]) -> list[str]:
    return sorted(name for group in groups for name in group)


def _check_optimizer(
    saved: FileContent, own: TrainingContent, parameters: Mapping[str, Tensor], earlier: Sequence[Sequence[str]]
) -> None:
    """The same parameters in as many groups, and states of their shapes; torch takes any."""
    groups = saved_groups(saved, own["optimizer"], earlier)
    ordered = [parameters[name] for group in groups for name in group]
    try:
        states = {number: dict(state) for number, state in saved["state"].items()}
        today = own["optimizer"]["param_groups"]
        # A user's own optimizer has the groups that it was made with; ours come in pairs, one for each learning rate.
        paired = len(groups) % 2 == 0 and not any("initial_lr" in group for group in today)
        if not (paired or len(groups) == len(today)) or not all(type(number) is int for number in states):
            raise TypeError
    except (TypeError, KeyError, ValueError, AttributeError):
        raise CheckpointError("the state of the optimizer in this checkpoint is damaged") from None
    names = _STATES.get(own["optimizer_kind"])
    if names is None:
        _check_foreign_states(states, len(ordered))
        return
    for number, state in states.items():
        if not 0 <= number < len(ordered) or state.keys() != names:
            found = ", ".join(map(str, state)) or "nothing"
            raise CheckpointError(f"parameter {number} has {found} in the optimizer's state")
        for name, value in state.items():
            shape = () if name == "step" else tuple(ordered[number].shape)
            absent = value is None and name == "momentum_buffer"  # before the first step, or without momentum
            if not absent and not (is_plain(value) and value.is_floating_point() and tuple(value.shape) == shape):
                raise CheckpointError(
                    f"the optimizer's {name} of parameter {number} is {_describe(value)}, not {shape}"
                )


def _check_foreign_states(states: Mapping[int, Mapping[str, object]], count: int) -> None:
    """Of a user's own optimizer: plain tensors and values for parameters that are there; it knows the rest."""
    for number, state in states.items():
        strange = [name for name, value in state.items() if isinstance(value, Tensor) and not is_plain(value)]
        if not 0 <= number < count or strange:
            raise CheckpointError(f"the optimizer's state of parameter {number} is damaged: {', '.join(strange)}")


def _check_values(what: str, saved: object, own: Mapping[str, object]) -> None:
    """The same names, with numbers of the same types."""
    saved = saved if isinstance(saved, Mapping) else {}
    wrong = [name for name in own if name in saved and not _fits(saved[name], own[name])]
    wrong += sorted(map(str, own.keys() ^ saved.keys()))
    if wrong:
        raise CheckpointError(f"the {what} of this checkpoint is of another version or damaged: {', '.join(wrong)}")


def _fits(saved: object, own: object) -> bool:
    """Whether it is a number of the same type, and an integer none that nothing here counts to."""
    if type(saved) is int:
        return abs(saved) < 1 << 53
    return type(saved) is float and not isinstance(own, int)


def _without(values: object, name: str) -> dict[str, object]:
    return {key: value for key, value in values.items() if key != name} if isinstance(values, Mapping) else {}


def _alike(one: object, other: Tensor) -> bool:
    return is_plain(one) and one.shape == other.shape and one.dtype == other.dtype


def _describe(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    kind = "" if is_plain(value) else f", {value.layout} on {value.device}"
    return f"{tuple(value.shape)} {value.dtype}{kind}"
