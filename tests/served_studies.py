"""What tests of predict.py and export.py share: small studies of two classes, and runs of networks that have learnt
nothing but are not zero.
"""

import csv
from pathlib import Path

import cv2
import numpy as np
from torch import nn

from configs.default_config import Config
from models import HybridMedNet
from tests.study_runs import write_run

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
    """A run's folder as train.py leaves it; every weight of the head is drawn, so that views and table count."""

    def disturb(model: HybridMedNet) -> None:
        for parameter in model.classifier.parameters():
            nn.init.normal_(parameter, std=0.5)

    given = Config.from_overrides([*NETWORK, f"DATA.data_dir={data}", *OF_STUDIES, *overrides])
    return write_run(folder, given, disturb, seed)
