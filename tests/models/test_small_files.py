"""Small files whose settings or tensors ask for a large memory: one line, and nothing is allocated."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from configs.default_config import Config
from configs.errors import HybridMedNetError
from models import HybridMedNet
from models.saved_model import load_model
from tests.faults import in_child
from utils.checkpoint import save_checkpoint, write_safetensors

SMALL = {"backbone": "mobilenetv3_small", "pretrained": False, "fusion_channels": 16, "num_classes": 3}


def content(weights: dict[str, Tensor], size: int = 32, **model) -> dict:
    """A checkpoint whose settings are not looked at before they are read."""
    config = Config.from_overrides([f"MODEL.{key}={value}" for key, value in (SMALL | model).items()])
    dumped = config.model_dump(mode="json")
    dumped["DATA"]["image_size"] = dumped["MODEL"]["input_size"] = [size, size]
    return {"config": dumped, "model": weights}


def few() -> dict[str, Tensor]:
    return {"backbone.conv_stem.weight": torch.zeros(4)}


def whole(size: int = 32, **model) -> dict[str, Tensor]:
    held = content({}, size, **model)["config"]
    held["MODEL"] |= {"pretrained": False}
    return HybridMedNet(Config.model_validate(held)).state_dict()


def outline(**model) -> dict[str, Tensor]:
    """All tensors of a network of any size, each a single zero that is spread by strides of 0."""
    config = Config.model_validate(content({}, **model)["config"])
    with torch.device("meta"):
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in HybridMedNet(config).state_dict().items()}
    return {name: torch.zeros((), dtype=dtype).expand(shape) for name, (shape, dtype) in shapes.items()}


def write_unchecked(held: dict, path: Path, zipped: bool = True) -> None:
    """What save_checkpoint refuses."""
    torch.save(held, path, _use_new_zipfile_serialization=zipped)


def old_head(path: Path) -> None:
    """The previous release's names in torch's older format: 30 GB by a stride of 0."""
    old = {f"feature_extractor.{name}" if not name.startswith("f") else name: t for name, t in few().items()}
    old["classifier.fine_classifier.4.weight"] = torch.zeros(24_000).expand(310_000, 24_000)
    write_unchecked({"model_state_dict": old}, path, zipped=False)


def shared(path: Path) -> None:
    """Many names for one storage, none larger than it."""
    one = torch.zeros(1000, 1000)
    write_unchecked({"state_dict": {f"backbone.{k}": one for k in range(9000)}}, path)


FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "classes.pth": (lambda p: save_checkpoint(content(few(), num_classes=30_000_000), p), "missing"),
    "classes.safetensors": (lambda p: write_safetensors(p, few(), content({}, num_classes=30_000_000)), "missing"),
    "fusion.pth": (lambda p: save_checkpoint(content(few(), fusion_channels=200_000), p), "missing"),
    "whole.pth": (lambda p: save_checkpoint(content(whole(), fusion_channels=200_000), p), "of another shape"),
    "large.pth": (lambda p: save_checkpoint(content(few(), backbone="timm/vit_giant_patch14_224"), p), "missing"),
    "size.pth": (lambda p: save_checkpoint(content(whole(), 10**6), p), r"image_size \(1000000, 1000000\) has"),
    "spread.pth": (
        lambda p: write_unchecked(content(outline(num_classes=10**7), num_classes=10**7), p),
        "fill the mem",
    ),
    "old.pth": (old_head, "fill the memory"),
    "shared.pth": (shared, "fill the memory"),
}


def load_all(paths: list[str]) -> dict[str, str]:
    """In a child: what is said of the files that are refused."""
    warnings.simplefilter("ignore")
    messages = {}
    for path in map(Path, paths):
        try:
            load_model(path)
        except HybridMedNetError as error:
            messages[path.name] = str(error)
    return messages


def test_settings_and_strides_get_no_memory(tmp_path):
    (tmp_path / "files").mkdir()
    for name, (write, _) in FILES.items():
        write(tmp_path / "files" / name)
    save_checkpoint(content(whole()), tmp_path / "sound.pth")
    files = sorted((tmp_path / "files").iterdir())
    largest = max(path.stat().st_size for path in files)
    done = in_child(__name__, "load_all", [str(tmp_path / "sound.pth")], [str(path) for path in files])
    messages, grown = done["result"], done["grown_mb"]
    print(f"{len(FILES)} files of at most {largest / 1e6:.1f} MB: {len(messages)} refused, +{grown:.0f} MiB")
    assert messages.keys() == FILES.keys()
    for name, (_, words) in FILES.items():
        assert re.search(words, messages[name]), (name, messages[name])
    assert grown < 200


def test_what_is_compared_leaves_sound_files_alone(tmp_path):
    save_checkpoint(content(whole()), tmp_path / "sound.pth")
    loaded = load_model(tmp_path / "sound.pth").model
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
