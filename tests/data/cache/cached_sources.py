"""Data of every kind for the tests of the cache: a folder of mixed images, and what its loaders give."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from configs.default_config import Config
from data.builder import Loaders, build_loaders, open_data, split_data

COUNT = 24
SPLITS = ["train"] * 14 + ["val"] * 6 + ["test"] * 4
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def draw(path: Path, number: int) -> None:
    """One image of its number's kind: grey or RGB of 8 bits, grey or RGB of 16, a JPEG large enough to be reduced."""
    rng = np.random.default_rng(number)
    kind = number % 5
    if kind == 4:
        small = rng.integers(0, 256, (12, 14), dtype=np.uint8)
        Image.fromarray(small).resize((112, 96), Image.Resampling.BICUBIC).save(path, format="JPEG", quality=95)
        return
    shape = (20, 24) if kind in (0, 2) else (20, 24, 3)
    dtype, top = (np.uint8, 256) if kind < 2 else (np.uint16, 4096)
    assert cv2.imwrite(str(path), rng.integers(0, top, shape, dtype=dtype))


def deep(number: int) -> bool:
    """Whether that image has more than 8 bits."""
    return number % 5 in (2, 3)


def write_mixed(folder: Path) -> Path:
    """COUNT images with labels of three classes, in SPLITS."""
    (folder / "images").mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "a", "b", "c", "split"])
        for number in range(COUNT):
            draw(folder / "images" / f"{number:02d}.png", number)
            writer.writerow([f"images/{number:02d}.png", number % 2, (number + 1) % 2, number % 3 == 0, SPLITS[number]])
    return folder


def config_of(folder: Path | None, *overrides: str) -> Config:
    """Small images, small batches, no workers."""
    locations = [f"DATA.data_dir={folder}"] if folder else []
    return Config.from_overrides(
        [*locations, "DATA.num_workers=0", "DATA.image_size=16", "TRAIN.batch_size=4", *overrides]
    )


def loaders_of(folder: Path | None, *overrides: str) -> Loaders:
    """As train.py builds them."""
    config = config_of(folder, *overrides)
    dataset_index = open_data(config)
    config = config.resolve(dataset_index.class_names, dataset_index.exclusive)
    return build_loaders(config, dataset_index, split_data(config, dataset_index), MEAN, STD)


def inputs(loader, epoch: int = 0, start: int = 0) -> dict[int, torch.Tensor]:
    """Row of the dataset index → the network's input, in the epoch's order."""
    batches = [batch for _, batch in loader.epoch(epoch, start) if batch is not None]
    return {index: image for batch in batches for index, image in zip(batch.index.tolist(), batch.inputs.image)}


def all_inputs(loaders: Loaders) -> dict[int, torch.Tensor]:
    """Of the three splits."""
    return {**inputs(loaders.train), **inputs(loaders.val), **inputs(loaders.test)}


def cache_files(folder: Path) -> list[Path]:
    """What lies in the folder of the cache, whatever it is called."""
    return sorted((folder / ".hybridmednet_cache").iterdir())
