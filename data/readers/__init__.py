"""One file to one value: images, DICOM, NIfTI, tables; and which files may be opened at all."""

from importlib import import_module

# Names that stood here before the wings were built, and the modules they live in now; read when they are asked for.
_MOVED = {"read_picture": ("data.readers.images", "read_image")}


def __getattr__(name: str) -> object:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, today = _MOVED[name]
    return getattr(import_module(module), today)
