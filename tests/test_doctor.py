"""doctor.py against train.py: they agree on what fails; and what each finding says, on data that are made here."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import doctor
from configs.default_config import Config
from data.sources.formats import open_source
from data.splits.assignment import write_split
from hybridmednet import Trainer
from tests.doctor_cases import CASES, NAMES, call, with_splits, write_table
from tests.training_runs import process_state, run_main

QUICK = (
    *("an_npz", "broken_yaml", "data_that_are_not_there", "an_unreadable_image"),
    "published_weights_without_a_network",
)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def examine(capsys):
    """examine(arguments) → (exit code, the report as JSON)."""

    def look(*arguments: object) -> tuple[int, dict]:
        capsys.readouterr()
        with process_state():
            code = doctor.main([*map(str, arguments), "--json"])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, json.loads(printed.out)

    return look


def messages(report: dict, severity: str, subject: str = "") -> str:
    found = [one for one in report["findings"] if one["severity"] == severity and subject in ("", one["subject"])]
    return "\n".join(one["message"] for one in found)


@pytest.mark.parametrize("name", [name for name in CASES if name in QUICK])
def test_the_exit_code_says_whether_a_run_would_fail(name, tmp_path, examine):
    make, code = CASES[name]
    found, report = examine(*make(tmp_path))
    assert found == code and report["would_fail"] == (code == 2)
    assert bool(messages(report, "error")) == (code == 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_doctor_and_train_agree(name, tmp_path, examine):
    make, code = CASES[name]
    arguments = make(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    found, report = examine(*arguments)
    assert "unforeseen" not in messages(report, "error")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, "doctor.py has written something"
    assert (found, run_main(arguments)) == (code, code)


def test_a_tracker_that_is_not_installed_is_told(tmp_path, examine, monkeypatch):
    monkeypatch.setattr("utils.runs.trackers.find_spec", lambda name: None)
    code, report = examine("--set", "LOGGING.trackers=[wandb]")
    assert code == 2 and "LOGGING.trackers: wandb needs wandb" in messages(report, "error", "config")


def test_all_problems_of_data_are_told_at_once(tmp_path, examine):
    root = with_splits(tmp_path / "data", shared=True)
    (root / NAMES[0]).unlink()
    (root / NAMES[1]).write_bytes(b"")
    (root / NAMES[2]).write_bytes((root / NAMES[2]).read_bytes()[:300])
    code, report = examine(*call(tmp_path, root))
    errors = messages(report, "error")
    assert code == 2 and f"missing: {NAMES[0]}" in errors and "p8" in errors and "more than one split" in errors
    assert "2 of 23 images cannot be read" in errors and NAMES[1] in errors and NAMES[2] in errors
    assert len(errors.splitlines()) == 5, "each is told once"
    order = [("error", "warning", "note").index(one["severity"]) for one in report["findings"]]
    assert order == sorted(order) and report["scans"] == ["the first bytes of 23 images", "decoded: all of them"]


@pytest.mark.slow
def test_a_sample_is_decoded_and_all_first_bytes_are_read(tmp_path, examine):
    root = write_table(tmp_path / "data")
    for name in NAMES:
        (root / name).write_bytes((root / name).read_bytes()[:300])
    (root / NAMES[7]).write_bytes(b"")
    arguments = call(tmp_path, root)
    _, report = examine(*arguments, "--sample", 5)
    count = int(messages(report, "error", "images").split(" of ")[0])
    assert 5 <= count <= 6 and any(text.startswith("decoded: 5 of them, drawn with seed 0") for text in report["scans"])
    assert examine(*arguments, "--sample", 5)[1]["findings"] == report["findings"]
    assert "24 of 24 images cannot be read" in messages(examine(*arguments, "--sample", "all")[1], "error", "images")


def test_copies_and_blank_images_are_told_with_what_to_do(tmp_path, examine):
    root = write_table(tmp_path / "data")
    shutil.copy(root / NAMES[0], root / NAMES[23])
    blank = cv2.imencode(".png", np.full((40, 40), 7, np.uint8))[1]
    (root / NAMES[4]).write_bytes(blank.tobytes())
    code, report = examine(*call(tmp_path, root))
    told = {one["message"]: one["advice"] for one in report["findings"] if one["severity"] == "warning"}
    assert code == 0 and all(told.values())
    assert any("different labels" in one for one in told) and any("one value everywhere" in one for one in told)


def test_the_text_ends_with_the_verdict(tmp_path, capsys):
    with process_state():
        assert doctor.main(call(tmp_path, tmp_path / "nowhere")) == 2
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("a run would fail: 1 error") and "not examined: labels" in printed


def test_wrong_use_is_refused(capsys):
    with process_state(), pytest.raises(SystemExit) as left:
        doctor.main(["--sample", "-3"])
    assert left.value.code == 2 and "neither a number of images nor 'all'" in capsys.readouterr().err


# ---- a run's folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """(data, a finished run of two epochs)."""
    tmp = tmp_path_factory.mktemp("doctor")
    assert run_main(call(tmp, write_table(tmp / "data"), TRAIN__epochs=2)) == 0
    return tmp / "data", tmp / "runs" / "run"


@pytest.fixture
def run(trained, tmp_path) -> tuple[Path, Path]:
    """(data, run): copies, to be broken."""
    data, folder = (Path(shutil.copytree(path, tmp_path / path.name)) for path in trained)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(str(trained[0]), str(data)))
    return data, folder


@pytest.mark.slow
def test_a_run_by_a_split_file_is_not_compared_with_the_tables_split(tmp_path, examine):
    root = with_splits(tmp_path / "data", shared=False)
    dataset_index = open_source(root)
    turned = np.array(["val" if study.split == "train" else "train" for study in dataset_index.studies])
    write_split(tmp_path / "turned.csv", dataset_index, turned)
    assert run_main(call(tmp_path, root, DATA__split_file=tmp_path / "turned.csv")) == 0
    code, report = examine(tmp_path / "runs" / "run")
    assert (code, messages(report, "error")) == (0, "")


@pytest.mark.slow
def test_training_writes_what_it_knows(trained):
    record = json.loads((trained[1] / "doctor.json").read_text())
    assert record["written_by"] == "train.py" and not record["would_fail"]
    assert record["scans"][0] == "the ends of 24 of 24 files; none was decoded" and len(record["files"]["sample"]) == 24
    assert "fewer than 10 positives" in messages(record, "note", "labels")


@pytest.mark.slow
def test_a_sound_run(run, examine):
    before = {path: path.stat().st_mtime_ns for path in run[1].iterdir()}
    code, report = examine(run[1])
    assert code == 0 and not messages(report, "warning")
    assert "finished, epoch 2 of 2, optimizer step 8" in report["facts"]["run"]
    assert {path: path.stat().st_mtime_ns for path in run[1].iterdir()} == before


@pytest.mark.slow
def test_data_that_have_changed_since(run, examine):
    data, folder = run
    (data / NAMES[3]).write_bytes((data / NAMES[4]).read_bytes())
    table = data / "labels.csv"
    table.write_text(table.read_text().replace(f"{NAMES[5]},肺炎", f"{NAMES[5]},正常"))
    code, report = examine(folder)
    warnings = messages(report, "warning")
    assert code == 0 and f"1 have other content: {NAMES[3]}" in warnings and "labels have changed" in warnings


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken, code, severity, words",
    [
        (("last.pth",), 0, "warning", "an earlier checkpoint, optimizer step 4"),
        (("best_model.pth",), 2, "error", "best_model.pth' is damaged"),
        (("last.pth", "previous.pth"), 2, "error", "no checkpoint in"),
        (("split.csv",), 2, "error", "split.csv' is damaged"),
        (("config.yaml",), 2, "error", "config"),
    ],
)
def test_damaged_files_of_a_run(run, examine, broken, code, severity, words):
    for name in broken:
        (run[1] / name).write_bytes((run[1] / name).read_bytes()[:-200] + b"[")
    found, report = examine(run[1])
    assert found == code and words in messages(report, severity)
    assert all((run[1] / name).is_file() for name in broken), "nothing is renamed"


@pytest.mark.slow
def test_a_run_that_would_not_be_resumed(run, examine):
    assert examine(run[1], "--set", "MODEL.fusion_channels=8")[0] == 2
    assert "there is no run" in messages(examine(run[0])[1], "error")


@pytest.mark.slow
def test_a_run_of_a_network_and_loaders_of_ones_own(tmp_path, examine):
    images = DataLoader(TensorDataset(torch.randn(16, 1, 8, 8), torch.arange(16) % 2), 4)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    sgd = torch.optim.SGD(network.parameters(), 0.1)
    settings = Config.from_overrides([f"CHECKPOINT.save_dir={tmp_path}", f"LOGGING.log_dir={tmp_path / 'logs'}"])
    trained = Trainer(model=network, train_loader=images, val_loader=images, optimizer=sgd, config=settings)
    code, report = examine(trained.train(epochs=1).folder)
    assert code == 0 and report["skipped"]["network"] == "the run trains a network of its user's own"
