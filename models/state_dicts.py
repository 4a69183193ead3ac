"""State dicts of any origin for a network: prefixes removed, old names renamed, all compared before loading."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor

from configs.errors import WeightsError
from models.legacy import rename_each, rename_previous_release
from utils.checkpoint.tensors import misfit, not_finite
from utils.torch_private import with_metadata_of

logger = logging.getLogger(__name__)

_MAX_DISPLAYED = 10


def fit_state_dict(
    own: Mapping[str, Tensor], given: Mapping[str, object], strict: bool = True
) -> OrderedDict[str, object]:
    """`given` under the names of `own`, ready for torch's load_state_dict.

    own: the network's own state dict. given: current or of the previous release, with or without what wrappers
    (DataParallel, torch.compile) leave in names. strict: their names must be the same; shapes and kinds of numbers
    always must, see `misfit`. NaN and infinities are loaded, with a warning.
    Raises WeightsError that lists both differences of the names, and the tensors that are of another kind.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"a state dict maps names to tensors, this is {type(given).__name__}")
    here = {plain_name(name): name for name in own}
    found = {here.get(name, name): value for name, value in todays_names(given).items()}
    compare(own, found, strict)
    _warn_of_what_is_not_finite(own, found)
    return with_metadata_of(given, OrderedDict(found))


def todays_names(weights: Mapping[str, object]) -> dict[str, object]:
    """The same tensors under HybridMedNet's names. WeightsError where two would have one name, or classes lack."""
    if odd := [repr(name)[:60] for name in weights if not isinstance(name, str)]:
        raise WeightsError(
            f"these are no weights of a network: names must be texts, not {', '.join(odd[:_MAX_DISPLAYED])}"
        )
    return rename_previous_release(rename_each(plain_name, weights))


def plain_name(name: str) -> str:
    """Without `_orig_mod` of torch.compile and `module` of DataParallel, wherever in the network they were put."""
    return ".".join(part for part in name.split(".") if part not in ("_orig_mod", "module")) or name


def compare(own: Mapping[str, Tensor], found: Mapping[str, object], strict: bool = True) -> None:
    """WeightsError where `found` cannot be loaded as `own`, which may be on the meta device; both by current names."""
    missing = [name for name in own if name not in found] if strict else []
    unexpected = [name for name in found if name not in own] if strict else []
    misfits = {name: why for name in own if name in found and (why := misfit(found[name], own[name]))}
    shapes = [f"{name}: {why}" for name, why in misfits.items() if _shape(found[name]) != own[name].shape]
    kinds = [f"{name}: {why}" for name, why in misfits.items() if _shape(found[name]) == own[name].shape]
    groups = (missing, "missing"), (unexpected, "unexpected"), (shapes, "of another shape"), (kinds, "of another kind")
    if any(rows for rows, _ in groups):
        differences = "; ".join(_listed(rows, what) for rows, what in groups if rows)
        raise WeightsError(f"these weights do not fit this network, nothing was loaded: {differences}")


def _shape(value: object) -> object:
    return getattr(value, "shape", None)


def _warn_of_what_is_not_finite(own: Mapping[str, Tensor], found: Mapping[str, object]) -> None:
    pairs = [(name, found[name]) for name in own if name in found]
    names = [name for name, value in pairs if isinstance(value, Tensor) and not_finite(value, own[name])]
    if names:
        logger.warning("NaN or infinity in the weights: %s", _listed(names, "tensors"))


def _listed(rows: list[str], what: str) -> str:
    """'12 missing (a, b, …)', with the first ten."""
    return f"{len(rows)} {what} ({', '.join(rows[:_MAX_DISPLAYED])}{', …' if len(rows) > _MAX_DISPLAYED else ''})"
