"""The pipelines that benchmarks/data.py compares: ours without and with a cache, PIL with torchvision, MONAI's caches.

Each is an epoch(number) that gives batches of float32 [B, 3, 224, 224], lightly augmented (±7°, ±5 %
shift, ±10 % scale, brightness and contrast) and normalised, as a training epoch has them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from configs.default_config import Config
from configs.errors import ConfigError
from data.builder import build_loaders, open_data, split_data
from data.cache.reader import CachedReader
from data.loading.loaders import ImageLoader
from data.phantom.radiographs import draw_images

SIZE, IMAGE, BATCH = 224, 1024, 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DISTINCT = 16  # images that are drawn; the others are copies, which cost as much to decode

Epoch = Callable[[int], Iterator[torch.Tensor]]


@dataclass(frozen=True)
class Source:
    """Images of one format: the folder or .npz that we open, and the files, none of an .npz."""

    name: str
    location: Path
    files: tuple[Path, ...]


def images() -> list[np.ndarray]:
    """uint16 [1024, 1024] of 12 bits: drawn chests, enlarged, with the noise of a detector."""
    rng = np.random.default_rng(0)
    drawn = [cv2.resize(one.image, (IMAGE, IMAGE), interpolation=cv2.INTER_CUBIC) for one in draw_images(DISTINCT, 512)]
    return [np.clip(x * 16.0 + rng.normal(0, 24, x.shape), 0, 4095).astype(np.uint16) for x in drawn]


def write_dicom(path: Path, pixels: np.ndarray) -> None:
    """A digital radiograph, uncompressed."""
    from pydicom.dataset import Dataset as Header
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForProcessing, ExplicitVRLittleEndian, generate_uid

    header = Header()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForProcessing
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    header.Rows, header.Columns, header.SamplesPerPixel = *pixels.shape, 1
    header.PhotometricInterpretation, header.PixelRepresentation = "MONOCHROME2", 0
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 12, 11
    header.WindowCenter, header.WindowWidth = 2048, 4096
    header.PixelData = pixels.astype("<u2").tobytes()
    header.save_as(path, enforce_file_format=True)


def write_sources(folder: Path, count: int) -> list[Source]:
    """`count` images as PNG, JPEG (quality 90) and DICOM of 1,024 px, and as an .npz of 224 px."""
    drawn = images()
    eight = [(x // 16).astype(np.uint8) for x in drawn]
    writers: dict[str, tuple[str, Callable[[Path, int], None]]] = {
        "JPEG": (".jpg", lambda path, n: Image.fromarray(eight[n]).save(path, quality=90)),
        "PNG": (".png", lambda path, n: Image.fromarray(eight[n]).save(path)),
        "DICOM": (".dcm", lambda path, n: write_dicom(path, drawn[n])),
    }
    return [
        *(_write_files(folder / name, name, suffix, write, count) for name, (suffix, write) in writers.items()),
        _write_npz(folder / "npz" / "images.npz", eight, count),
    ]


def _write_files(folder: Path, name: str, suffix: str, write: Callable[[Path, int], None], count: int) -> Source:
    folder.mkdir(parents=True)
    paths = tuple(folder / f"{number:05d}{suffix}" for number in range(count))
    for number, path in enumerate(paths):
        if number < DISTINCT:
            write(path, number)
        else:
            shutil.copyfile(paths[number % DISTINCT], path)
    rows = [f"{path.name},{number % 2},{split_of(number, count)}" for number, path in enumerate(paths)]
    (folder / "labels.csv").write_text("\n".join(["image,finding,split", *rows]) + "\n")
    return Source(name, folder, paths)


def split_of(number: int, count: int) -> str:
    """All but the last four are to train on, as the training loader is what is measured."""
    return "train" if number < count - 4 else "val"


def _write_npz(path: Path, images: list[np.ndarray], count: int) -> Source:
    path.parent.mkdir(parents=True)
    small = [cv2.resize(x, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for x in images]
    stacks = {"train": count - 4, "val": 2, "test": 2}
    arrays = {f"{name}_images": np.stack([small[n % DISTINCT] for n in range(many)]) for name, many in stacks.items()}
    labels = {f"{name}_labels": np.arange(many)[:, None] % 2 for name, many in stacks.items()}
    np.savez(path, **{**arrays, **labels})  # type: ignore[arg-type]
    return Source(".npz", path, ())


def our_loader(source: Source, workers: int, cache: str, augment: bool = True) -> ImageLoader:
    """The training loader as train.py builds it; a cache is filled before this returns."""
    config = Config.from_overrides(
        [
            f"DATA.data_dir={source.location}",
            f"DATA.image_size={SIZE}",
            f"DATA.num_workers={workers}",
            f"DATA.cache={cache}",
            f"DATA.augment={augment}",
            f"TRAIN.batch_size={BATCH}",
            "LOGGING.progress=plain",
        ]
    )
    dataset_index = open_data(config)
    config = config.resolve(dataset_index.class_names, dataset_index.exclusive)
    return build_loaders(config, dataset_index, split_data(config, dataset_index), MEAN, STD).train


def our_epoch(source: Source, workers: int, cache: str, augment: bool = True) -> Epoch:
    """Epochs of the training loader."""
    loader = our_loader(source, workers, cache, augment)
    return lambda number: (batch.inputs.image for _, batch in loader.epoch(number) if batch)


def our_reader(source: Source, cache: str) -> CachedReader:
    """The reader of a cache alone."""
    reader = our_loader(source, 0, cache).dataset.dataset_index.read
    assert isinstance(reader, CachedReader), "there is a cache"
    return reader


class PillowImages(Dataset):
    """What most training scripts do: PIL, then torchvision."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        from torchvision import transforms

        self.files = files
        self.transform = transforms.Compose(
            [
                transforms.Resize((SIZE, SIZE)),
                transforms.RandomAffine(
                    7, (0.05, 0.05), (0.9, 1.1), interpolation=transforms.InterpolationMode.BILINEAR
                ),
                transforms.ColorJitter(0.1, 0.1),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB"))


def with_pillow(source: Source, workers: int) -> Epoch:
    """PIL and torchvision behind torch's DataLoader."""
    return _epochs(PillowImages(source.files[:-4]), workers, DataLoader)


def with_monai(source: Source, workers: int, folder: Path | None) -> Epoch:
    """MONAI's CacheDataset (folder None) or PersistentDataset, filled, behind its own DataLoader.

    What comes before the first random step is kept; metadata are switched off, which makes it faster.
    """
    monai_data, transforms = import_monai()
    low, high = (0, 4095) if source.name == "DICOM" else (0, 255)
    reader = "PydicomReader" if source.name == "DICOM" else "PILReader"
    steps = transforms.Compose(
        [
            transforms.LoadImage(reader=reader, image_only=True, ensure_channel_first=True),
            transforms.Resize((SIZE, SIZE), mode="area"),
            transforms.ScaleIntensityRange(low, high, 0.0, 1.0, clip=True),
            transforms.RandAffine(1.0, 0.122, translate_range=0.05 * SIZE, scale_range=0.1, padding_mode="zeros"),
            transforms.RandScaleIntensity(0.1, 1.0),
            transforms.RandShiftIntensity(0.1, prob=1.0),
            transforms.RepeatChannel(3),
            transforms.NormalizeIntensity(subtrahend=MEAN, divisor=STD, channel_wise=True),
        ]
    )
    files = [str(path) for path in source.files[:-4]]
    if folder is None:
        return _epochs(
            monai_data.CacheDataset(files, steps, num_workers=None, progress=False), workers, monai_data.DataLoader
        )
    dataset = monai_data.PersistentDataset(files, steps, cache_dir=folder)
    for index in range(len(files)):
        dataset[index]
    return _epochs(dataset, workers, monai_data.DataLoader)


def import_monai() -> tuple[ModuleType, ModuleType]:
    """(monai.data, monai.transforms). ConfigError where it is missing."""
    try:
        import monai.data
        import monai.transforms
    except ImportError as error:
        raise ConfigError(
            f"MONAI, which this is compared with, cannot be imported ({error}): "
            "`pip install -r benchmarks/requirements.txt`, or leave it out by --without-monai"
        ) from error
    monai.data.set_track_meta(False)
    return monai.data, monai.transforms


def _epochs(dataset: Dataset, workers: int, loader_type: Callable[..., Iterable[torch.Tensor]]) -> Epoch:
    loader = loader_type(dataset, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return lambda number: iter(loader)
