"""What tests of studies share: small data with gaps, and runs of networks that have learnt nothing but are not zero."""

import csv
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from configs.default_config import Config
from data.builder import build_loaders, open_data, resolve, resolve_studies, split_data
from data.splits.assignment import write_split
from models import HybridMedNet
from utils.checkpoint import save_checkpoint

SIZE, STUDIES = 32, 14
NETWORK = [
    "MODEL.backbone=timm/test_resnet",
    "MODEL.pretrained=false",
    "MODEL.attention=none",
    "MODEL.fusion_channels=8",
    "MODEL.views.width=8",
    "MODEL.table.width=8",
    "TRAIN.mixed_precision=false",
    "TRAIN.channels_last=false",
    "TRAIN.device=cpu",
    "DATA.num_workers=0",
    f"DATA.image_size={SIZE}",
]
OF_STUDIES = [
    "DATA.study_column=study_id",
    "DATA.class_names=[lesion, effusion]",
    "DATA.view_kinds={frontal: [PA, AP], lateral: [LL]}",
    "DATA.table={file: clinical.csv, columns: {age: numeric, sex: categorical}}",
    "MODEL.views.aggregator=attention",
    "MODEL.table.fusion=gated",
]


def write_rows(path: Path, *rows: tuple[object, ...]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def write_studies(folder: Path) -> Path:
    """Studies of 7 patients: a frontal image, of the odd ones a lateral one too, of most a row of clinical.csv."""
    folder.mkdir(parents=True)
    images, table, rng = [], [], np.random.default_rng(0)
    for number in range(STUDIES):
        for view in ("PA", "LL")[: 1 + number % 2]:
            name = f"{number:02d}_{view}.png"
            assert cv2.imwrite(str(folder / name), rng.integers(0, 200, (SIZE, SIZE)).astype(np.uint8))
            images.append((name, f"s{number}", f"p{number // 2}", view, number % 2, number % 3 % 2))
        if number % 5:
            table.append((f"s{number}", "" if number % 7 == 0 else 40 + number, "FM"[number // 2 % 2]))
    write_rows(folder / "labels.csv", ("image", "study_id", "patient_id", "view", "lesion", "effusion"), *images)
    write_rows(folder / "clinical.csv", ("study_id", "age", "sex"), *table)
    return folder


def write_study_run(folder: Path, data: Path, *overrides: str, seed: int = 0) -> Path:
    """A run's folder as train.py leaves it; every weight of the network is drawn, so that views and table count."""
    given = Config.from_overrides([*NETWORK, f"DATA.data_dir={data}", *OF_STUDIES, *overrides])
    dataset_index = open_data(given)
    assignment = split_data(given, dataset_index)
    config = resolve_studies(resolve(given, dataset_index), dataset_index, assignment)
    torch.manual_seed(seed)
    model = HybridMedNet(config)
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            nn.init.normal_(parameter, std=0.5)
    model.eval()
    loaders = build_loaders(config, dataset_index, assignment, model.backbone.mean, model.backbone.std)
    folder.mkdir(parents=True)
    content = {
        "config": config.model_dump(mode="json"),
        "class_names": list(dataset_index.class_names),
        "model": model.state_dict(),
        "split_sha256": write_split(folder / "split.csv", dataset_index, assignment),
        "metrics": {"epoch": 3},
    }
    save_checkpoint(content | loaders.describe(), folder / "best_model.pth")
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    return folder
