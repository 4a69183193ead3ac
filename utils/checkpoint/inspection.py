"""What a file holds, in lines for people; values are shown, never followed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from configs.default_config import Config
from utils.checkpoint.files import find_weights, read_file
from utils.checkpoint.integrity import verify
from utils.checkpoint.safetensors_files import has_digest, read_safetensors

_MAX_DISPLAYED_NAMES, _MAX_DISPLAYED_CHARACTERS = 6, 100
# Settings worth a line; the others are in the file.
_SETTINGS = ("MODEL.backbone", "MODEL.attention", "MODEL.task", "MODEL.num_classes", "DATA.image_size", "TRAIN.seed")


def describe(path: Path) -> list[str]:
    """Lines about any torch or .safetensors file. Raises CheckpointError where it cannot be read safely."""
    content: object
    if path.suffix == ".safetensors":
        weights, content = read_safetensors(path)
        lines = [*_entries(content), f"  {_weights(weights)}"] if content else [*_entries(weights)]
    else:
        content = read_file(path)
        lines = [*_entries(content)]
    return [f"{path}: {path.stat().st_size / 1e6:,.1f} MB, {_kind(path, content)}", *lines]


def _kind(path: Path, content: object) -> str:
    if path.suffix == ".safetensors":
        return f"safetensors, {'digest fits' if has_digest(path) else 'no digest'}"
    digest = "digest fits" if verify(path) else "no digest"
    if isinstance(content, Mapping) and "format_version" in content:
        return f"checkpoint of format {content['format_version']}, {digest}"
    return f"torch file, {digest}"


def _entries(content: object) -> Iterator[str]:
    if not isinstance(content, Mapping):
        yield f"  {_display(content)}"
        return
    if find_weights(content) is content:
        yield f"  {_weights(content)}"
        return
    for name, value in content.items():
        if name == "config" and isinstance(value, Mapping):
            yield f"  config: {', '.join(_settings(value))}"
        elif isinstance(value, Mapping) and (found := find_weights(value)) is not None:
            yield f"  {name}: {_weights(found)}"
        else:
            yield f"  {name}: {_display(value)}"


def _settings(config: Mapping[str, object]) -> Iterator[str]:
    for name in _SETTINGS:
        section, key = name.split(".")
        values = config.get(section)
        if isinstance(values, Mapping) and key in values:
            yield f"{name} {_display(values[key])}"


def _weights(weights: Mapping[str, Tensor]) -> str:
    numbers = sum(tensor.numel() for tensor in weights.values() if tensor.is_floating_point())
    kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()})
    names = [f"{name} {list(tensor.shape)}" for name, tensor in list(weights.items())[:_MAX_DISPLAYED_NAMES]]
    more = f", and {len(weights) - len(names)} more" if len(weights) > len(names) else ""
    return f"{len(weights)} tensors, {numbers:,} numbers ({', '.join(kinds)}): {', '.join(names)}{more}"


def _display(value: object) -> str:
    """A value in at most a hundred characters; containers by their size, so that none can be endless."""
    if isinstance(value, Tensor):
        return f"tensor {list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Config):
        today = Config()
        other = [
            f"{name}.{key}" for name, section in value.items() for key in section if section[key] != today[name][key]
        ]
        changed = ", ".join(other[:_MAX_DISPLAYED_NAMES]) or "no settings"
        return f"a Config of the previous release, which changes {changed}"
    if isinstance(value, Mapping):
        return f"{len(value)} entries: {', '.join(str(key)[:40] for key in list(value)[:_MAX_DISPLAYED_NAMES])}"
    if isinstance(value, (list, tuple)) and (len(value) > 20 or any(isinstance(v, (Mapping, list)) for v in value)):
        return f"a list of {len(value)}"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    text = str(value)
    return text if len(text) <= _MAX_DISPLAYED_CHARACTERS else f"{text[:_MAX_DISPLAYED_CHARACTERS]}…"
