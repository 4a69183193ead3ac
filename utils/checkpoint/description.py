"""What a checkpoint says beside its tensors: checked once, as it is read, before any command uses a word of it.

A file may come from anybody. Its settings are checked by `Config`, its tensors against the network, what training alone
needs by `training/state_check.py`; here is the rest.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from configs.default_config import Config
from configs.errors import CheckpointError
from utils.listener import FileContent
from utils.text import printable

# Any: a value out of a file, which is looked at here.
_Value: TypeAlias = Any
_MOST_CLASSES, _LONGEST_NAME = 10_000, 1_000
_MOST_VALUES, _LONGEST_TEXT, _DEEPEST = 1_000_000, 100_000, 20
_IMAGE_KEYS = {"size", "channels", "mean", "std", "resize_mode"}
_VOLUME_KEYS = {"size", "channels", "mean", "std", "spacing_mm", "window"}


def check_description(path: Path, content: FileContent) -> None:
    """CheckpointError naming the file, the field, its value and what is allowed, for the first that cannot be.

    content: of a checkpoint or .safetensors of this program. Fields that are absent or None are in order: the reader
    says what follows from that.
    """
    for field, check in _FIELDS.items():
        value = content.get(field)
        if value is None:
            continue
        try:
            check(value)
        except _Wrong as reason:
            raise CheckpointError(f"'{path}' was edited or is damaged: {field}{reason}") from None


def check_classes_and_input(path: Path, content: FileContent, config: Config) -> None:
    """CheckpointError where what a file says of classes and preprocessing is not of its own settings, completed."""
    classes = config.MODEL.num_classes
    point = content.get("operating_point")
    thresholds = point.get("thresholds") if isinstance(point, Mapping) else None
    if thresholds is not None and len(thresholds) != classes:
        raise CheckpointError(
            f"'{path}': the stored operating point is for {len(thresholds)} classes, the model has {classes}: fit it "
            "again"
        )
    positives = content.get("training_positives")
    if positives is not None and len(positives) != classes:
        raise CheckpointError(
            f"'{path}' was edited or is damaged: training_positives counts {len(positives)} classes, the model has "
            f"{classes}"
        )
    preprocessing = content.get("preprocessing")
    if preprocessing is None:
        return
    said = tuple(preprocessing["size"]), preprocessing["channels"]
    built = config.image_shape(), config.MODEL.in_channels
    for name, one, other in zip(("size", "channels"), said, built):
        if one != other:
            raise CheckpointError(
                f"'{path}' was edited or is damaged: preprocessing.{name} is {one}, its network is built for {other}"
            )


class _Wrong(Exception):
    """What is wrong, after the field's name: '.size is …: …'."""


def _wrong(where: str, value: _Value, allowed: str) -> _Wrong:
    return _Wrong(f"{where} is {printable(reprlib.repr(value))}: {allowed}")


def _check_class_names(value: _Value) -> None:
    if not _is_list(value) or not 0 < len(value) <= _MOST_CLASSES:
        raise _wrong("", value, f"1 to {_MOST_CLASSES:,} names")
    for number, name in enumerate(value):
        if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST_NAME:
            raise _wrong(f"[{number}]", name, f"a name of at most {_LONGEST_NAME:,} characters")
    counts: Counter[str] = Counter(value)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise _wrong("", value, f"each name once, and {reprlib.repr(twice[0])} is there more often")


def _check_preprocessing(value: _Value) -> None:
    keys = set(map(str, value)) if isinstance(value, Mapping) else set()
    if keys not in (_IMAGE_KEYS, _VOLUME_KEYS):
        raise _wrong("", value, f"{', '.join(sorted(_IMAGE_KEYS))}; of volumes {', '.join(sorted(_VOLUME_KEYS))}")
    size = value["size"]
    volumes = keys == _VOLUME_KEYS
    if not _is_list(size) or len(size) != 2 + volumes or not all(_is_count(side) and side > 0 for side in size):
        raise _wrong(".size", size, f"{2 + volumes} whole numbers above 0")
    if not (_is_count(value["channels"]) and value["channels"] in (1, 3)):
        raise _wrong(".channels", value["channels"], "1 or 3")
    for key in ("mean", "std"):
        _check_numbers(f".{key}", value[key], (1, value["channels"]), above=0.0 if key == "std" else -math.inf)
    if volumes:
        _check_volume_keys(value)
    elif value["resize_mode"] not in ("stretch", "letterbox"):
        raise _wrong(".resize_mode", value["resize_mode"], "stretch or letterbox")


def _check_volume_keys(value: _Value) -> None:
    if value["spacing_mm"] is not None:
        _check_numbers(".spacing_mm", value["spacing_mm"], (3,), above=0.0)
    window = value["window"]
    if window is not None:
        _check_numbers(".window", window, (2,))
        if window[0] >= window[1]:
            raise _wrong(".window", window, "two numbers, the lower one first")


def _check_operating_point(value: _Value) -> None:
    _check_mapping(value)
    thresholds = value.get("thresholds")
    if not _is_list(thresholds):
        raise _wrong(".thresholds", thresholds, "a number of 0 to 1, or None, for each class")
    for number, one in enumerate(thresholds):
        # One above 1 by rounding flags nothing: a specificity was asked for that no score reaches.
        known = one is None or (_is_number(one) and (math.isnan(one) or 0 <= one <= 1 + 1e-9))
        if not known:
            raise _wrong(f".thresholds[{number}]", one, "a number of 0 to 1, or None")
    if not _is_count(value.get("images", 0)):
        raise _wrong(".images", value["images"], "a whole number")
    for key in ("rule", "split", "positive_class"):
        if not isinstance(value.get(key, ""), (str, type(None))):
            raise _wrong(f".{key}", value[key], "a text")
    for key in ("positives", "negatives"):
        if value.get(key):
            _check_counts(f".{key}", value[key], len(thresholds))
    calibration = value.get("calibration")
    if calibration is not None:
        _check_calibration(calibration, len(thresholds))


def _check_calibration(value: _Value, classes: int) -> None:
    _check_mapping(value, ".calibration")
    for key, above in (("slopes", 0.0), ("intercepts", -math.inf)):
        _check_numbers(f".calibration.{key}", value.get(key), (classes,), above)
    if not isinstance(value.get("method"), str):
        raise _wrong(".calibration.method", value.get("method"), "a text")


def _check_counts(where: str, value: _Value, classes: int | None = None) -> None:
    if not _is_list(value) or not all(map(_is_count, value)) or classes not in (None, len(value)):
        raise _wrong(where, value, "a whole number for each class")


def _check_digest(value: _Value) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise _wrong("", value, "64 hexadecimal digits")


def _check_removed(value: _Value) -> None:
    if not _is_list(value):
        raise _wrong("", value, "a list")
    for number, one in enumerate(value):
        sound = _is_list(one) and len(one) == 3 and isinstance(one[0], str) and type(one[1]) in (bool, int)
        if not sound or not _is_list(one[2]) or not all(_is_count(channel) for channel in one[2]):
            raise _wrong(f"[{number}]", one, "[layer, whether of its outputs, numbers of channels]")


def _check_name(value: _Value) -> None:
    if not isinstance(value, str) or not value.isidentifier() or len(value) > _LONGEST_NAME:
        raise _wrong("", value, "the name of a class")


def _check_flag(value: _Value) -> None:
    if not isinstance(value, bool):
        raise _wrong("", value, "True or False")


def _check_mapping(value: _Value, where: str = "") -> None:
    """Text → plain values of any depth, of a size that can be shown and written."""
    if not isinstance(value, Mapping):
        raise _wrong(where, value, "names with values")
    left, todo = _MOST_VALUES, [(value, 0)]
    while todo:
        one, depth = todo.pop()
        inner = [*one, *one.values()] if isinstance(one, Mapping) else list(one) if _is_list(one) else []
        left -= 1 + len(inner)
        if left < 0 or depth > _DEEPEST:
            raise _wrong(where, "too much", f"at most {_MOST_VALUES:,} values, {_DEEPEST} deep")
        if not inner and not isinstance(one, (str, int, float, type(None), Mapping, list, tuple)):
            raise _wrong(where, one, "plain values")
        if isinstance(one, str) and len(one) > _LONGEST_TEXT:
            raise _wrong(where, one, f"texts of at most {_LONGEST_TEXT:,} characters")
        if isinstance(one, int) and not -(1 << 63) <= one < 1 << 64:
            raise _wrong(where, "too large a number", "numbers of 64 bits")
        todo += [(each, depth + 1) for each in inner]


def _check_numbers(where: str, value: _Value, counts: Sequence[int], above: float = -math.inf) -> None:
    sound = _is_list(value) and len(value) in counts and all(_is_number(one) and math.isfinite(one) for one in value)
    if not sound or not all(one > above for one in value):
        finite = "finite numbers" + (" above 0" if above == 0 else "")
        raise _wrong(where, value, f"{' or '.join(map(str, dict.fromkeys(counts)))} {finite}")


def _is_list(value: _Value) -> bool:
    return isinstance(value, (list, tuple))


def _is_count(value: _Value) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def _is_number(value: _Value) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 1 << 53)


_FIELDS: dict[str, Callable[[_Value], None]] = {
    "config": _check_mapping,
    "class_names": _check_class_names,
    "view_kinds": _check_class_names,
    "table": _check_mapping,
    "preprocessing": _check_preprocessing,
    "operating_point": _check_operating_point,
    "training_data": _check_mapping,
    "metrics": _check_mapping,
    "split_sha256": _check_digest,
    "labels_sha256": _check_digest,
    "training_positives": lambda value: _check_counts("", value),
    "removed_channels": _check_removed,
    "own_model": _check_name,
    "own_loader": _check_flag,
}
