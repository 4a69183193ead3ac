"""State dicts for a network, whatever wrote them: prefixes off, old names renamed, all compared before loading."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from configs.errors import WeightsError
from models.legacy import rename_each, rename_previous_release

_SHOWN = 10


def fit_state_dict(own: Mapping[str, Any], given: Mapping[str, Any], strict: bool = True) -> OrderedDict[str, Any]:
    """`given` under the names of `own`, ready for torch's load_state_dict.

    own: the network's own state dict. given: of today or of the previous release, with or without what wrappers
    (DataParallel, torch.compile) leave in names. strict: their names must be the same; shapes always must.
    Raises WeightsError that lists both differences of the names, and the shapes that differ.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"a state dict maps names to tensors, this is {type(given).__name__}")
    here = {plain_name(name): name for name in own}
    found = {here.get(name, name): value for name, value in todays_names(given).items()}
    _compare(own, found, strict)
    fitted = OrderedDict(found)
    fitted._metadata = getattr(given, "_metadata", None)  # type: ignore[attr-defined]  # versions of layers, for torch
    return fitted


def todays_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The same tensors under HybridMedNet's names. WeightsError where two would have one name, or classes lack."""
    return rename_previous_release(rename_each(plain_name, weights))


def plain_name(name: str) -> str:
    """Without `_orig_mod` of torch.compile anywhere, and without `module` of DataParallel at the beginning."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return ".".join(parts)


def _compare(own: Mapping[str, Any], found: Mapping[str, Any], strict: bool) -> None:
    missing = [name for name in own if name not in found] if strict else []
    unexpected = [name for name in found if name not in own] if strict else []
    shapes = [
        f"{name}: {_shape(found[name])} instead of {_shape(own[name])}"
        for name in own
        if name in found and _shape(found[name]) != _shape(own[name])
    ]
    groups = ((missing, "missing"), (unexpected, "unexpected"), (shapes, "of another shape"))
    if missing or unexpected or shapes:
        differences = "; ".join(_listed(rows, what) for rows, what in groups if rows)
        raise WeightsError(f"these weights do not fit this network, nothing was loaded: {differences}")


def _listed(rows: list[str], what: str) -> str:
    """'12 missing (a, b, …)', with the first ten."""
    return f"{len(rows)} {what} ({', '.join(rows[:_SHOWN])}{', …' if len(rows) > _SHOWN else ''})"


def _shape(value: Any) -> tuple[int, ...] | str:
    """A tensor's shape; for what is no tensor, the name of its type."""
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
