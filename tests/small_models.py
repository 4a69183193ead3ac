"""What tests of exported files and of the HTTP service share: checkpoints of small networks of images."""

from pathlib import Path

import numpy as np
import torch

from configs.default_config import Config
from data.phantom.radiographs import draw_images
from data.transforms.images import Preprocess
from models import HybridMedNet
from utils.checkpoint import save_checkpoint

NAMES = ["heart", "肺", "bone"]
POINT = {
    "calibration": {
        "method": "platt",
        "exclusive": False,
        "slopes": [5.0, 20.0, 15.0],
        "intercepts": [0.3, -0.2, 0.1],
        "reasons": [""] * 3,
    },
    "thresholds": [0.2, None, 0.4],
    "rule": "youden",
    "split": "val",
    "images": 9,
}


def save_model(path: Path, preprocess: Preprocess, point: dict | None, *overrides: str) -> Path:
    """A checkpoint of a small network in float32 whose answers differ from image to image."""
    size = list(preprocess.size)
    given = ["backbone=timm/test_resnet", "attention=none", "fusion_channels=32", "pretrained=false"]
    given = [*(f"MODEL.{text}" for text in given), f"MODEL.in_channels={preprocess.channels}", *overrides]
    config = Config.from_overrides([f"DATA.image_size={size}", "TRAIN.mixed_precision=false", *given])
    config = config.resolve(tuple(NAMES))
    torch.manual_seed(0)
    model = HybridMedNet(config)
    images = torch.from_numpy(np.stack([preprocess(drawn.image) for drawn in draw_images(8, 64)]))
    with torch.no_grad():
        for _ in range(30):  # running statistics, without which all images look alike to it
            model(images)
    described = {"config": config.model_dump(mode="json"), "class_names": NAMES, "preprocessing": preprocess.as_dict()}
    save_checkpoint(described | {"model": model.state_dict()} | ({"operating_point": point} if point else {}), path)
    return path
