"""What machines refuse, in whole processes: one line or silence, the exit code as promised, results kept."""

import csv
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import predict
from configs.default_config import Config
from data.builder import open_data
from data.phantom.radiographs import write_phantom
from tests.test_predict import write_model
from tests.training_runs import process_state
from utils.claim import claimed

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and mounts of Linux")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> tuple[Path, Path]:
    """(a checkpoint, a folder of eight images)."""
    folder = tmp_path_factory.mktemp("accidents")
    write_phantom(folder / "phantom", 8, 64)
    return write_model(folder / "one.pth", folder / "phantom"), folder / "phantom" / "images"


def command(model: tuple[Path, Path], output: Path, *more: object) -> list[str]:
    checkpoint, images = model
    arguments = [images, "--checkpoint", checkpoint, "--output", output, "--device", "cpu", "--batch-size", 2, *more]
    return [sys.executable, str(ROOT / "predict.py"), *map(str, arguments)]


def run(arguments: list[str], **given) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, **given)


def one_line(result: subprocess.CompletedProcess) -> str:
    """The error, which is alone on its line; other lines are of the log."""
    assert result.returncode == 2, result.stderr
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.stderr
    return error


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "predictions.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_files_may_not_grow(model, tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))

    error = one_line(run(command(model, tmp_path / "out", "--num-workers", 0), preexec_fn=limit))
    assert "File too large" in error and "--output" in error
    assert list((tmp_path / "out").iterdir()) == []


def test_too_few_files_may_be_open(model, tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (18, 18))

    error = one_line(run(command(model, tmp_path / "out", "--num-workers", 4), preexec_fn=limit))
    assert "too many" in error.lower() and "workers" in error


@pytest.mark.slow
def test_small_shared_memory(model, tmp_path):
    """In a mount namespace of its own: at 64 kB batches go through a pipe, at 4 kB not even that begins."""
    isolated = ["unshare", "-m", "sh", "-c"]
    if shutil.which("unshare") is None or run([*isolated, "mount -t tmpfs -o size=64k none /dev/shm"]).returncode:
        pytest.skip("no mounts may be made here")

    def limited(size: str, output: Path) -> subprocess.CompletedProcess:
        mount = f'mount -t tmpfs -o size={size} none /dev/shm && exec "$@"'
        return run([*isolated, mount, "sh", *command(model, output, "--num-workers", 2)])

    whole = run(command(model, tmp_path / "whole", "--num-workers", 2))
    small = limited("64k", tmp_path / "small")
    assert (whole.returncode, small.returncode) == (0, 0), small.stderr
    assert rows(tmp_path / "small") == rows(tmp_path / "whole") and len(rows(tmp_path / "small")) == 8
    assert "/dev/shm" in one_line(limited("4k", tmp_path / "none"))


def test_two_predictions_into_one_folder(model, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    with claimed(output):
        error = one_line(run(command(model, output, "--num-workers", 0)))
    assert "another process is writing into" in error and "--output" in error and list(output.iterdir()) == []


def test_a_name_that_is_no_utf8(model, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    for name in (b"gr\xfc\xdfe.png", "grüße.png".encode()):
        Image.fromarray(pixels).save(folder / os.fsdecode(name))
    with process_state():
        arguments = command((model[0], folder), tmp_path / "out", "--num-workers", 0, "--format", "csv", "json")
        assert predict.main(arguments[2:]) == 3  # the one name can be shown, its file not
    assert {row["image"] for row in rows(tmp_path / "out")} == {"gr\\udcfc\\udcdfe.png", "grüße.png"}


@pytest.mark.slow
def test_two_first_runs_draw_the_sample_once(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    code = (
        "from configs.default_config import Config; from data.builder import open_data; "
        "open_data(Config.from_overrides(['DATA.sample_count=30', 'DATA.sample_size=64']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment) for _ in range(2)]
    assert [one.wait(300) for one in both] == [0, 0]
    assert [one.name for one in (tmp_path / "data").iterdir()] == ["sample_chest_xray"]
    assert len(open_data(Config.from_overrides([])).studies) == 30
