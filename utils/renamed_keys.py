"""Today's keys for what earlier versions wrote under others, into checkpoints and metrics.jsonl.

The one place that knows the old keys. It can be deleted when no file of before 2026-12 is read any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from utils.listener import FileContent

V = TypeVar("V")

# Whole keys of a row of metrics.jsonl, and of TensorBoard's tags what follows the last '/'.
_FIGURES = {"pictures_per_second": "images_per_second", "waiting_for_data": "data_wait_fraction"}
_SUMS = {"pictures": "images", "waited": "data_wait_seconds"}
_PROGRESS = {"micro_splits": "micro_batch_splits"}
_COUNTED = {"pictures": "images"}
_KINDS = {"pictures": "images"}


def todays_figures(row: Mapping[str, V]) -> dict[str, V]:
    """A row of metrics.jsonl, or figures by their TensorBoard tags, under current keys."""
    return {_todays_tag(key): value for key, value in row.items()}


def todays_content(content: FileContent) -> FileContent:
    """What a checkpoint or a .safetensors file says, under current keys; entries of other types are left as they are.

    Renamed are those of the progress and its sums, of the operating point, of the description of the training data, of
    the best epoch's metrics and of the scalars that were last written.
    """
    found = dict(content)
    if isinstance(progress := found.get("progress"), Mapping):
        progress = _renamed(progress, _PROGRESS)
        if isinstance(progress.get("sums"), Mapping):
            progress["sums"] = _renamed(progress["sums"], _SUMS)
        found["progress"] = progress
    if isinstance(point := found.get("operating_point"), Mapping):
        found["operating_point"] = _renamed(point, _COUNTED)
    if isinstance(data := found.get("training_data"), Mapping):
        data = _renamed(data, _COUNTED)
        if isinstance(data.get("kind"), str):
            data["kind"] = _KINDS.get(data["kind"], data["kind"])
        found["training_data"] = data
    if isinstance(row := found.get("metrics"), Mapping):
        found["metrics"] = todays_figures(row)
    if isinstance(scalars := found.get("scalars"), Mapping) and isinstance(scalars.get("figures"), Mapping):
        found["scalars"] = {**scalars, "figures": todays_figures(scalars["figures"])}
    return found


def _todays_tag(tag: str) -> str:
    if not isinstance(tag, str):  # a damaged file's keys may be anything
        return tag
    group, slash, name = tag.rpartition("/")
    return group + slash + _FIGURES.get(name, name)


def _renamed(values: Mapping[str, V], keys: Mapping[str, str]) -> dict[str, V]:
    return {keys.get(key, key) if isinstance(key, str) else key: value for key, value in values.items()}
