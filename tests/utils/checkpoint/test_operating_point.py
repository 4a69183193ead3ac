"""Putting calibration and thresholds into a checkpoint, and finding the file that a run's folder means."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configs.errors import CheckpointError
from utils.checkpoint import (
    keep_operating_point,
    load_checkpoint,
    read_safetensors,
    save_checkpoint,
    store_operating_point,
    write_safetensors,
)
from utils.runs.folder import RunFolder, model_file
from utils.runs.lock import in_use

ROOT = Path(__file__).resolve().parents[3]
POINT = {"calibration": None, "thresholds": [0.25, None], "rule": "youden", "split": "val", "images": 9}
WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3).half()}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    save_checkpoint({"model": WEIGHTS, "config": {"MODEL": {}}, "progress": {"epoch": 2}}, tmp_path / "last.pth")
    return tmp_path / "last.pth"


def test_all_else_stays_as_it_was(checkpoint):
    before = load_checkpoint(checkpoint)
    store_operating_point(checkpoint, POINT)
    store_operating_point(checkpoint, {**POINT, "rule": "f1"})
    after = load_checkpoint(checkpoint)
    assert after.pop("operating_point") == {**POINT, "rule": "f1"}
    assert torch.equal(after.pop("model")["weight"], before.pop("model")["weight"]) and after == before
    assert [path.name for path in checkpoint.parent.iterdir()] == ["last.pth"]


def test_safetensors_of_ours_and_of_others(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, WEIGHTS, {"config": {"MODEL": {}}, "class_names": ["a", "b"]})
    store_operating_point(path, POINT)
    weights, description = read_safetensors(path)
    assert description == {"config": {"MODEL": {}}, "class_names": ["a", "b"], "operating_point": POINT}
    assert weights["weight"].dtype == torch.float16 and torch.equal(weights["weight"], WEIGHTS["weight"])
    write_safetensors(path, WEIGHTS, {})
    with pytest.raises(CheckpointError, match="was not made by this program"):
        store_operating_point(path, POINT)


def test_why_it_is_not_kept_is_said(checkpoint, caplog):
    before = checkpoint.read_bytes()
    keep_operating_point(checkpoint, POINT, own_split=False)
    assert checkpoint.read_bytes() == before and "other images" in caplog.text
    torch_file = checkpoint.with_name("previous_release.pth")
    torch_file.write_bytes(before[:-9])
    keep_operating_point(torch_file, POINT, own_split=True)
    assert torch_file.read_bytes() == before[:-9] and f"not saved in '{torch_file}'" in caplog.text


def test_a_run_that_trains_is_left_alone(tmp_path):
    """In another process, as locks of one's own do not stop oneself."""
    pytest.importorskip("fcntl")
    code = (
        "import sys\nfrom utils.runs.folder import RunFolder\n"
        f"run = RunFolder.create({str(tmp_path)!r}, 'run')\nprint('locked', flush=True)\nsys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == "locked\n"
        save_checkpoint({"model": WEIGHTS}, tmp_path / "run" / "last.pth")
        before = (tmp_path / "run" / "last.pth").read_bytes()
        with pytest.raises(CheckpointError, match="another process is training"):
            store_operating_point(tmp_path / "run" / "last.pth", POINT)
        assert (tmp_path / "run" / "last.pth").read_bytes() == before
        process.stdin.close()
    assert not in_use(tmp_path / "run") and not in_use(tmp_path)


def test_the_model_of_a_folder_is_its_best(tmp_path):
    with pytest.raises(CheckpointError, match=r"no best_model\.pth and no last\.pth"):
        model_file(tmp_path)
    for name in ("last.pth", "best_model.pth"):
        (tmp_path / name).write_bytes(b"")
        assert model_file(tmp_path) == tmp_path / name
    assert model_file(tmp_path / "last.pth") == tmp_path / "last.pth"
    assert RunFolder(tmp_path).split == tmp_path / "split.csv"
