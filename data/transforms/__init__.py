"""From decoded pixels to a model's input: intensity, size, augmentation, normalisation."""

from importlib import import_module

# Names that stood here before the wings were built, and the modules they live in now; read when they are asked for.
_MOVED = {"Preprocess": ("data.transforms.images", "Preprocess")}


def __getattr__(name: str) -> object:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, today = _MOVED[name]
    return getattr(import_module(module), today)
