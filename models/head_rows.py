"""The rows of a saved head for the classes of a new one: matched by their names, not by their positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.fallbacks import CoarseMeaning
from utils.checkpoint.tensors import is_plain

HEAD = "classifier."
# The biases of a head's outputs, one number per class.
FLAT, FINE, COARSE = (f"{HEAD}{name}.bias" for name in ("classifiers", "fine_classifier.4", "coarse_classifier.4"))
OUTPUTS = {FLAT: "class", FINE: "class", COARSE: "coarse class"}
_HIDDEN = ("classifiers.hidden.weight", "classifiers.hidden.bias")  # as many rows for each class, one after another
_ROWS = {
    FLAT: ("classifiers.weight", "classifiers.bias"),
    FINE: ("fine_classifier.4.weight", "fine_classifier.4.bias"),
    COARSE: ("coarse_classifier.4.weight", "coarse_classifier.4.bias"),
}
_SEEN = f"{HEAD}fine_classifier.0.weight"  # its last columns are the coarse logits, which the findings are fed with
_MOST_SHOWN = 20


@dataclass(frozen=True)
class HeadNames:
    """What a head's outputs stand for, in their order; None where a file does not say.

    groups: coarse classes, of which both the name and the meaning count.
    """

    classes: Sequence[str] | None
    groups: Sequence[CoarseMeaning] | None = None


@dataclass(frozen=True)
class MatchedHead:
    """weights: those of the head, ready to be loaded. words: what it is for and what is new in it."""

    weights: dict[str, Tensor]
    words: str


@dataclass(frozen=True)
class _Match:
    """Of outputs of one kind. places: for each new one its place in the file, None where it is not there."""

    places: Sequence[int | None]
    before: Sequence[str]
    now: Sequence[str]

    @property
    def kept(self) -> bool:
        return any(place is not None for place in self.places)

    @property
    def as_before(self) -> bool:
        return list(self.places) == list(range(len(self.before)))

    def words(self, what: str) -> str:
        """'3 classes'; 'the classes b, a in their new order'; 'the classes a, b (new: c; left out: d)'."""
        if self.as_before:
            return counted(len(self.now), what)
        if not any(self.now):
            return f"{counted(len(self.now), what)}, which are new"
        new = [name for name, place in zip(self.now, self.places) if place is None]
        out = [name for number, name in enumerate(self.before) if number not in self.places]
        listed = _listed([name for name, place in zip(self.now, self.places) if place is not None])
        if not new and not out:
            return f"the {what}es {listed} in their new order"
        parts = [f"{word}: {_listed(names)}" for word, names in (("new", new), ("left out", out)) if names]
        return f"{f'the {what}es {listed}' if listed else f'none of the {what}es'} ({'; '.join(parts)})"


def match_head(
    found: Mapping[str, object], own: Mapping[str, Tensor], before: HeadNames, now: HeadNames
) -> MatchedHead | None:
    """The head in a file, `found`, for the classes and coarse classes of a model's own; None where it has none of them.

    Outputs of the same name get their rows from the file, the others keep the model's own. Where one side has no names,
    as many outputs are the same, in their order, and others are not. What does not fit by its shape is left as it is,
    for the loading to refuse.
    """
    counts, own_counts = class_counts(found), class_counts(own)
    if counts.keys() != own_counts.keys() or not counts:
        return None
    findings = FLAT if FLAT in own_counts else FINE
    classes = _match(counts[findings], own_counts[findings], before.classes, now.classes)
    if classes is None or not classes.kept:
        return None
    matched = {name: value for name, value in found.items() if name.startswith(HEAD) and isinstance(value, Tensor)}
    _take(matched, own, findings, classes)
    words, unnamed = classes.words("class"), ["classes"] if now.classes and not before.classes else []
    if COARSE in own_counts:
        groups = _match_groups(counts[COARSE], own_counts[COARSE], before, now)
        if not groups.kept and before.classes is None:
            return None
        _take_coarse(matched, own, groups)
        words += f" and {groups.words('coarse class')}"
        unnamed += ["coarse classes"] if now.groups and not before.groups and groups.kept else []
    if unnamed:
        words += f", in the order of the file, which does not name its {' and '.join(unnamed)}"
    return MatchedHead(matched, words)


def class_counts(weights: Mapping[str, object]) -> dict[str, int]:
    """{name of an output's bias: how many classes it has}, of those that are there."""
    found = {name: weights.get(name) for name in OUTPUTS}
    return {name: len(bias) for name, bias in found.items() if isinstance(bias, Tensor) and bias.ndim == 1}


def counted(count: int, what: str) -> str:
    """'1 class', '2 classes'."""
    return f"{count} {what}{'' if count == 1 else 'es'}"


def _match(count: int, own_count: int, before: Sequence[str] | None, now: Sequence[str] | None) -> _Match | None:
    if before is not None and now is not None:
        places = {name: number for number, name in enumerate(before)}
        return _Match([places.get(name) for name in now], before, now)
    if count != own_count:
        return None
    return _Match(range(count), [""] * count, [""] * count)


def _match_groups(count: int, own_count: int, before: HeadNames, now: HeadNames) -> _Match:
    """A group is the same where its name and its findings are; without names, where all classes are the same."""
    if before.groups is not None and now.groups is not None:
        was, names = list(before.groups), [[group.name for group in side] for side in (before.groups, now.groups)]
        return _Match([was.index(group) if group in was else None for group in now.groups], *names)
    same = count == own_count
    return _Match([number if same else None for number in range(own_count)], [""] * count, [""] * own_count)


def _take(matched: dict[str, Tensor], own: Mapping[str, Tensor], output: str, match: _Match) -> None:
    """Rows of the findings' outputs, and of what belongs to one of them alone."""
    for name in _ROWS[output]:
        _put(matched, own, HEAD + name, match)
    if output == FLAT:
        for name in _HIDDEN:
            _put(matched, own, HEAD + name, match, blocks=True)


def _take_coarse(matched: dict[str, Tensor], own: Mapping[str, Tensor], match: _Match) -> None:
    """Rows of coarse outputs, and the columns by which the findings see them; without any, all of that classifier."""
    for name in _ROWS[COARSE]:
        _put(matched, own, HEAD + name, match)
    if not match.kept:
        matched |= {name: value for name, value in own.items() if name.startswith(f"{HEAD}coarse_classifier.")}
    saved, mine = matched.get(_SEEN), own[_SEEN]
    groups, before = len(match.places), len(match.before)
    if saved is None or saved.ndim != 2 or saved.shape[1] - before != mine.shape[1] - groups:
        return
    channels = mine.shape[1] - groups
    columns = _rows(saved[:, channels:].T, mine[:, channels:].T, match.places)
    if columns is not None:
        matched[_SEEN] = torch.cat([saved[:, :channels], columns.T.to(saved.dtype)], dim=1)


def _put(matched: dict[str, Tensor], own: Mapping[str, Tensor], name: str, match: _Match, blocks: bool = False) -> None:
    """blocks: each output has several rows, one after another."""
    saved, mine = matched.get(name), own[name]
    if not is_plain(saved) or saved.ndim != mine.ndim or saved.shape[0] % max(len(match.before), 1):
        return
    if blocks:
        saved, mine = (t.unflatten(0, (n, -1)) for t, n in ((saved, len(match.before)), (mine, len(match.places))))
    rows = _rows(saved, mine, match.places)
    if rows is not None:
        matched[name] = rows.flatten(0, 1) if blocks else rows


def _rows(saved: Tensor, mine: Tensor, places: Sequence[int | None]) -> Tensor | None:
    """`mine` with the rows that are in `saved`; None where they are of another shape or kind of number."""
    if saved.shape[1:] != mine.shape[1:] or saved.is_floating_point() != mine.is_floating_point():
        return None
    pairs = [(new, old) for new, old in enumerate(places) if old is not None]
    if any(old >= len(saved) for _, old in pairs):
        return None
    result = mine.detach().clone()
    for new, old in pairs:
        result[new] = saved[old]
    return result


def _listed(names: Sequence[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > _MOST_SHOWN else ""
    return ", ".join(names[:_MOST_SHOWN]) + more
