"""Small data folders and files in the formats of data/sources."""

from pathlib import Path

import numpy as np
from PIL import Image

from data.sources.formats import open_csv


def image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5), value, np.uint8)).save(path)


def images(folder: Path, names: str) -> None:
    for value, name in enumerate(names.split()):
        image(folder / name, value)


def table(folder: Path, text: str, name: str = "labels.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def opened(folder: Path, text: str, **options):
    return open_csv(folder, table(folder, text), **options)


def medmnist(path: Path, labels, images=None, **changes) -> Path:
    """An .npz of 3 images per split, with the same labels in each."""
    arrays = {}
    for number, split in enumerate(("train", "val", "test")):
        default = np.random.default_rng(number).integers(0, 256, (3, 6, 7), dtype=np.uint8)
        arrays[f"{split}_images"] = default if images is None else images
        arrays[f"{split}_labels"] = np.asarray(labels)
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path
