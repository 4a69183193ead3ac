"""train.py and the user's errors: one message, exit code 2, and nothing that exists is touched."""

import subprocess
import sys
from pathlib import Path

import pytest

from data.phantom.radiographs import write_phantom
from tests.training_runs import HARD, ROOT, arguments, run_main
from tests.waiting import LIMIT_S

SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "phantom"
    write_phantom(folder, 60, 64)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(phantom, runs) -> Path:
    """The folder of a finished run."""
    assert run_main(arguments(phantom, runs, "finished", **HARD)) == 0
    return runs / "finished"


@pytest.fixture
def complaint(phantom, tmp_path, capsys, monkeypatch):
    """complaint(options…) → the error message of a run that must end with exit code 2 and leave no folder."""

    def call(data: Path = phantom, args: list[str] | None = None, **options) -> str:
        runs = tmp_path / "runs"
        monkeypatch.chdir(tmp_path)
        assert run_main(args if args is not None else arguments(data, runs, "run", **options)) == 2
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and not (runs / "run").exists()
        return captured.err[captured.err.index("error: ") :]

    return call


def test_help_needs_no_torch():
    code = (
        "import sys, train\n"
        "train.parse_arguments([])\n"
        "try:\n    train.parse_arguments(['--help'])\n"
        "except SystemExit as leave:\n    assert leave.code == 0\n"
        "print('heavy:', sorted({'torch', 'timm', 'cv2', 'albumentations', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0 and "--resume" in done.stdout and done.stdout.endswith("heavy: []\n"), done.stderr


def test_unknown_settings_and_bad_values_are_told_together(complaint):
    message = complaint(TRAIN__batchsize=8, MODEL__dropout="high", TRAIN__lr_scheduler="cosin")
    assert "TRAIN.batchsize: did you mean 'batch_size'?" in message
    assert "MODEL.dropout" in message and "did you mean 'cosine'" in message


def test_missing_data(complaint, tmp_path):
    assert str(tmp_path / "nowhere") in complaint(tmp_path / "nowhere")


def test_an_unknown_backbone(complaint):
    assert "resnet18" in complaint(MODEL__backbone="resnet-18")


def test_an_unknown_backbone_is_told_before_any_data_are_opened(complaint, tmp_path):
    message = complaint(args=["--set", "MODEL.backbone=convnxt_tiny"])
    assert "did you mean 'convnext_tiny'?" in message
    assert list(tmp_path.iterdir()) == [], "no sample images were drawn, no run was begun"


def test_a_missing_config_file(complaint):
    assert "nothing.yaml" in complaint(args=["--config", "nothing.yaml"])


def test_weights_that_cannot_be_had(complaint, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    message = complaint(MODEL__pretrained="true")
    assert "Three ways to continue" in message and "MODEL.pretrained=false" in message and "quickstart" in message
    assert "does not exist" in complaint(MODEL__pretrained=tmp_path / "weights.pth")


def test_a_device_and_a_precision_that_are_not_there(complaint):
    assert "cuda:99" in complaint(TRAIN__device="cuda:99")
    assert "fp16" in complaint(TRAIN__mixed_precision="fp16")


@pytest.mark.skipif(not (SHARED / "nih_leaky64").is_dir(), reason="no ../shared/data/nih_leaky64 here")
def test_patients_in_two_splits(complaint):
    message = complaint(SHARED / "nih_leaky64")
    assert "nih00116" in message and "DATA.allow_patient_overlap" in message


def test_an_existing_run_is_not_written_over(phantom, run, runs, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    assert run_main(arguments(phantom, runs, "finished")) == 2
    assert "exists already" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before


def test_nothing_to_resume(complaint, tmp_path, run):
    assert "there is no run in" in complaint(args=["--resume", "--set", f"CHECKPOINT.save_dir={tmp_path}"])
    assert "there is no run and no checkpoint" in complaint(args=["--resume", tmp_path / "gone"])


def test_a_run_without_a_whole_checkpoint_is_not_begun_again(complaint, run, tmp_path):
    """Neither at the first --resume, which sets the damaged files aside, nor at the second, which finds none."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in run.iterdir():
        damaged = path.name in ("last.pth", "previous.pth")
        (folder / path.name).write_bytes(path.read_bytes()[: 5000 if damaged else None])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for number in range(3):
        assert "is not started over" in complaint(args=["--resume", folder]), f"resumed {number + 1} times"
    after = {path.name.removesuffix(".corrupt"): path.read_bytes() for path in folder.iterdir()}
    assert after == before and (folder / "last.pth.corrupt").is_file()


@pytest.mark.parametrize(
    ("file", "setting", "reason"),
    [
        ("best_model.pth", "TRAIN.epochs=9", "lacks ema, optimizer"),
        ("last.pth", "MODEL.fusion_channels=24", "another model"),
        ("last.pth", "MODEL.backbone=resnet34", "another model"),
        ("last.pth", "TRAIN.optimizer=sgd", "uses AdamW, TRAIN.optimizer now says SGD"),
    ],
)
def test_a_checkpoint_that_does_not_fit(complaint, run, file, setting, reason):
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    assert reason in complaint(args=["--resume", run / file, "--set", setting])
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before
