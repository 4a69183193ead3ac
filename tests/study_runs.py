"""What tests of studies share: data of a frontal image, a lateral one and a table, and runs that were not trained."""

import csv
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from configs.default_config import Config
from data.builder import build_loaders, open_data, resolve, resolve_studies, split_data
from data.splits.assignment import write_split
from models import HybridMedNet
from tests.evaluation_runs import NETWORK
from utils.checkpoint import save_checkpoint

STUDIES = [
    "DATA.study_column=study_id",
    "DATA.class_names=[lesion]",
    "DATA.view_kinds={frontal: [PA, AP], lateral: [LL]}",
    "DATA.table.file=clinical.csv",
    "DATA.table.columns={age: numeric, sex: categorical}",
    "MODEL.views.aggregator=attention",
    "MODEL.table.fusion=gated",
]
COUNT = 40
IMAGE_COLUMNS = ("image", "study_id", "patient_id", "view", "lesion")
TABLE_COLUMNS = ("study_id", "age", "sex")

Row = dict[str, str]


def rows_of_studies() -> tuple[list[Row], list[Row]]:
    """(rows of labels.csv, rows of clinical.csv): 40 studies of 20 patients, a lateral image in every second, a row of
    the table in four of five, an age in most of those.
    """
    rng, images, table = np.random.default_rng(0), [], []
    for number in range(COUNT):
        label = str(int(rng.random() < 0.5))
        for view in ("PA", "LL")[: 1 + number % 2]:
            row = (f"{number:02d}_{view}.png", f"s{number}", f"p{number // 2}", view, label)
            images.append(dict(zip(IMAGE_COLUMNS, row)))
        if number % 5:
            age = "" if number % 7 == 0 else str(40 + number)
            table.append(dict(zip(TABLE_COLUMNS, (f"s{number}", age, "FM"[number % 3 % 2]))))
    return images, table


def write_rows(path: Path, rows: list[Row], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_studies(folder: Path, images: list[Row] | None = None, table: list[Row] | None = None) -> Path:
    """The files of `rows_of_studies`, or of these rows; table []: no clinical.csv. Pixels are a matter of the name."""
    folder.mkdir(parents=True)
    own = rows_of_studies()
    images, table = own[0] if images is None else images, own[1] if table is None else table
    for number, row in enumerate(images):
        rng = np.random.default_rng(number)
        pixels = (rng.integers(0, 80, (32, 32)) + rng.integers(0, 170)).astype(np.uint8)
        assert cv2.imwrite(str(folder / row["image"]), pixels)
    write_rows(folder / "labels.csv", images)
    if table:
        write_rows(folder / "clinical.csv", table)
    return folder


def write_study_run(folder: Path, data: Path, *overrides: str) -> Path:
    """A run's folder as train.py leaves it, its network untrained; its parts for studies do not begin at zero."""

    def disturb(model: HybridMedNet) -> None:
        for name, parameter in model.named_parameters():
            if ".study." in name:
                parameter.add_(torch.randn_like(parameter))

    given = Config.from_overrides([*NETWORK, "DATA.image_size=32", f"DATA.data_dir={data}", *STUDIES, *overrides])
    return write_run(folder, given, disturb)


def write_run(folder: Path, given: Config, disturb: Callable[[HybridMedNet], None], seed: int = 0) -> Path:
    """A run's folder as train.py leaves it, of a network that `disturb` was given before."""
    dataset_index = open_data(given)
    assignment = split_data(given, dataset_index)
    config = resolve_studies(resolve(given, dataset_index), dataset_index, assignment)
    torch.manual_seed(seed)
    model = HybridMedNet(config).eval()
    with torch.no_grad():
        disturb(model)
    loaders = build_loaders(config, dataset_index, assignment, model.backbone.mean, model.backbone.std)
    folder.mkdir(parents=True)
    content = {
        "config": config.model_dump(mode="json"),
        "class_names": list(dataset_index.class_names),
        "split_sha256": write_split(folder / "split.csv", dataset_index, assignment),
        "model": model.state_dict(),
        "metrics": {"epoch": 3},
        **loaders.describe(),
    }
    save_checkpoint(content, folder / "best_model.pth")
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    return folder
