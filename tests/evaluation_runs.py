"""What the tests of evaluate.py share: data with labels by chance, untrained runs, a call of evaluate.main."""

import csv
import json
import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import evaluate
from configs.default_config import Config
from data.builder import open_data, split_data
from data.phantom.radiographs import write_phantom
from data.splits.assignment import write_split
from data.transforms.images import Preprocess
from data.transforms.volumes import VolumePreprocess
from evaluation import evaluation_folder
from models import HybridMedNet
from utils.checkpoint import save_checkpoint

ROOT = Path(evaluate.__file__).resolve().parent
SIZE, COUNT = 32, 60
# Two findings of the phantom, one of them with a name that a browser, a spreadsheet and a formula would obey; one that
# nobody has; one that is often unknown.
HOSTILE = '=1+1"><script src=http://evil.example/x.js></script>$x_{'
NAMES = ["Cardiomegaly", HOSTILE, "Never", "Unsure"]
NETWORK = [
    "MODEL.backbone=timm/test_efficientnet",
    "MODEL.pretrained=false",
    "MODEL.fpn_channels=8",
    "MODEL.fusion_channels=8",
    "MODEL.fusion_stride=32",
    "DATA.num_workers=0",
    "TRAIN.batch_size=16",
    "TRAIN.device=cpu",
    "TRAIN.mixed_precision=false",
    "TRAIN.channels_last=false",
    "DATA.train_split=0.4",
    "DATA.val_split=0.3",
    "DATA.test_split=0.3",
]


def write_images(folder: Path) -> Path:
    """The phantom's images with a column per class."""
    write_phantom(folder, COUNT, 64)
    write_labels(folder / "labels.csv", rows_of(folder / "labels.csv"))
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    """The phantom's rows with labels by chance: an untrained network knows nothing anyway."""
    rows, rng = read_rows(path), np.random.default_rng(0)
    for row in rows:
        codes = [str(code) for code in rng.integers(0, 2, 3)]
        row |= {NAMES[0]: codes[0], NAMES[1]: codes[1], NAMES[2]: "0", NAMES[3]: codes[2]}
        row[NAMES[3]] = "" if rng.random() < 0.3 else codes[2]
    return rows


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_labels(path: Path, rows: list[dict[str, str]], names: list[str] = NAMES, more: tuple[str, ...] = ()) -> None:
    columns = ["image", "patient_id", "view", "age", "sex", *more, *names]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def write_run(folder: Path, data: Path, *overrides: str, seed: int = 0, size: object = SIZE) -> Path:
    """A run's folder as train.py leaves it, its network untrained."""
    given = Config.from_overrides([*NETWORK, f"DATA.image_size={size}", f"DATA.data_dir={data}", *overrides])
    dataset_index = open_data(given)
    config = given.resolve(dataset_index.class_names, dataset_index.exclusive)
    torch.manual_seed(seed)
    model = HybridMedNet(config).eval()
    make = VolumePreprocess if config.has_volumes() else Preprocess
    preprocess = make(config.image_shape(), 3, model.backbone.mean, model.backbone.std)
    folder.mkdir(parents=True)
    content = {
        "config": config.model_dump(mode="json"),
        "class_names": list(dataset_index.class_names),
        "preprocessing": preprocess.as_dict(),
        "split_sha256": write_split(folder / "split.csv", dataset_index, split_data(config, dataset_index)),
        "model": model.state_dict(),
        "metrics": {"epoch": 3},
    }
    save_checkpoint(content, folder / "best_model.pth")
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    return folder


class Blank:
    """In place of a figure: one that is quick to draw."""

    axes = ()

    def findobj(self, _) -> tuple:
        return ()

    def savefig(self, buffer, **_) -> None:
        buffer.write(b"no image")


def call(*arguments: object, figures: bool = False) -> int:
    """evaluate.main with few draws and blank images; logging is put back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    names = evaluation_folder.IMAGES
    with pytest.MonkeyPatch.context() as patch:
        if not figures:
            patch.setattr(evaluation_folder, "draw_figures", lambda *_: dict.fromkeys(names, Blank()))
        try:
            draws = [] if "--draws" in arguments else ["--draws", "20"]
            return evaluate.main([str(argument) for argument in [*arguments, *draws]])
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def table_of(folder: Path, names: list[str] = NAMES) -> tuple[list[dict[str, str]], np.ndarray, np.ndarray]:
    """(rows, probabilities [N, K], labels [N, K] with nan where unknown) of predictions.csv."""
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = np.array([[float(row[f"probability {name}"]) for name in names] for row in rows])
    labels = np.array([[float(row[f"label {name}"] or "nan") for name in names] for row in rows])
    return rows, scores, labels


def write_volumes(root: Path) -> Path:
    """Noise; axes and units are what tests/data look at."""
    root.mkdir()
    rows = ["image,patient_id,split,Spot,Dot"]
    for number in range(12):
        voxels = np.random.default_rng(number).normal(size=(20, 20, 10)).astype(np.float32)
        nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 4.0, 1.0])).to_filename(root / f"{number}.nii.gz")
        rows.append(
            f"{number}.nii.gz,p{number // 2},{('train', 'val', 'test')[number // 4]},{number % 2},{number // 2 % 2}"
        )
    (root / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    return root
