"""train.py from the command line to the run's folder, on data that are drawn here."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs.default_config import Config
from data.phantom.radiographs import write_phantom
from data.splits.assignment import read_split
from data.transforms.images import Preprocess
from models import HybridMedNet
from tests.kill_harness import identical
from tests.training_runs import (
    EPOCHS,
    HARD,
    ROOT,
    SIZE,
    arguments,
    metrics_of,
    run_main,
    same_outcome,
    write_class_folders,
    write_npz,
)
from tests.waiting import LIMIT_S
from training import probe
from training.loop import TrainingLoop
from utils.checkpoint import load_checkpoint

AUTO = ("channels_last", "mixed_precision")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "phantom"
    write_phantom(folder, 60, 64)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(phantom, runs, drawing) -> Path:
    """The folder of one undisturbed run."""
    before = torch.get_rng_state()
    with drawing():
        assert run_main(arguments(phantom, runs, "undisturbed", **HARD)) == 0
    assert torch.equal(before, torch.get_rng_state())
    return runs / "undisturbed"


# ---- what a run leaves behind


def test_the_run_folder_is_complete(run):
    wanted = {"config.yaml", "split.csv", "last.pth", "best_model.pth", "metrics.jsonl", "training_curves.png"}
    wanted |= {"labels.json", "doctor.json"}
    wanted |= {"roc_curves.png", "environment.json", "train.log", "previous.pth", ".lock", "status.json", "steps.jsonl"}
    assert {path.name for path in run.iterdir()} == wanted
    for name in ("training_curves.png", "roc_curves.png"):
        with Image.open(run / name) as image:
            assert image.width > 300 and len(image.convert("L").getcolors(256)) > 3
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] and environment["device"] == "cpu" and environment["precision"] == "fp32"
    rows = metrics_of(run)
    assert [row.get("epoch") for row in rows] == [1, 2, None] and rows[2]["split"] == "test"
    assert len(rows[0]["per_class"]) == 14
    log = (run / "train.log").read_text()
    assert f"results are in {run}" in log and "epoch 2: loss" in log


def test_the_config_is_written_out(run, phantom, runs):
    config = Config.from_yaml(run / "config.yaml")
    assert config.MODEL.num_classes == 14 and config.MODEL.task == "multi_label"
    assert config.MODEL.input_size == config.DATA.image_size == (SIZE, SIZE)
    given = Config.from_overrides(arguments(phantom, runs, "undisturbed", **HARD)[1:])
    assert Config.from_overrides(arguments(phantom, runs, "x")[1:]).TRAIN.ema_decay != given.TRAIN.ema_decay
    resolved = given.resolve(tuple(config.DATA.class_names))
    assert (resolved.CHECKPOINT.best_by, config.CHECKPOINT.best_by) == (None, "mean_auroc")
    resolved.CHECKPOINT.best_by = "mean_auroc"  # which the labels of the splits decide
    assert config.model_dump() == resolved.model_dump()


def test_the_split_is_by_patient(run, phantom):
    with (run / "split.csv").open() as file:
        rows = [row for row in csv.DictReader(line for line in file if not line.startswith("#"))]
    assert len(rows) == 60 and {row["split"] for row in rows} == {"train", "val", "test"}
    assert all(len({r["split"] for r in rows if r["patient_id"] == row["patient_id"]}) == 1 for row in rows)


@pytest.mark.parametrize("name", ["last.pth", "best_model.pth"])
def test_checkpoints_need_nothing_else(run, name):
    content = torch.load(run / name, weights_only=True)
    config = Config.from_yaml(run / "config.yaml")
    assert content["class_names"] == config.DATA.class_names
    assert content["config"] == config.model_dump(mode="json")
    preprocess = Preprocess.from_dict(content["preprocessing"])
    assert preprocess.size == (SIZE, SIZE) and preprocess.channels == 3
    assert content["split_sha256"] in (run / "split.csv").read_text()
    model = HybridMedNet(Config(**content["config"]))
    model.load_state_dict(content["model"])
    image = np.full((SIZE, SIZE), 128, np.uint8)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(preprocess(image))[None])
    assert logits.shape == (1, 14) and logits.isfinite().all()


def test_the_test_score_is_that_of_the_best_model(run, phantom):
    """Scores worked out again from best_model.pth and split.csv alone, as predict will."""
    from sklearn.metrics import roc_auc_score

    from data.sources.formats import open_source

    content = load_checkpoint(run / "best_model.pth")
    dataset_index = open_source(phantom)
    rows = np.flatnonzero(read_split(run / "split.csv", dataset_index) == "test")
    model, preprocess = HybridMedNet(Config(**content["config"])).eval(), Preprocess.from_dict(content["preprocessing"])
    model.load_state_dict(content["model"])
    with torch.no_grad():
        images = torch.stack([torch.from_numpy(preprocess(dataset_index.read(i))) for i in rows])
        scores = model(images).double().sigmoid().numpy()
    targets = dataset_index.label_matrix()[rows]
    result = metrics_of(run)[-1]
    expected = [roc_auc_score(t, s) for t, s in zip(targets.T, scores.T) if 0 < t.sum() < len(t)]
    assert result["defined_classes"] == len(expected) > 0
    assert result["mean_auroc"] == pytest.approx(np.mean(expected), abs=0.02)  # near ties may fall the other way


def test_the_best_epoch_is_kept(run):
    scores = [row["mean_auroc"] for row in metrics_of(run)[:EPOCHS]]
    best = load_checkpoint(run / "best_model.pth")
    assert best["metrics"]["epoch"] == 1 + int(np.argmax(scores)) and best["metrics"]["mean_auroc"] == max(scores)


def test_a_stop_as_the_last_epoch_ends_leaves_the_last_checkpoint(phantom, tmp_path, monkeypatch):
    """The signal is noted while there is something to save, and seen in the report, which has the best weights."""
    fit, left = TrainingLoop.fit, {}

    def fit_and_be_stopped(trainer: TrainingLoop, *loaders) -> None:
        fit(trainer, *loaders)
        left.update({path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pth")})
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainingLoop, "fit", fit_and_be_stopped)
    assert run_main(arguments(phantom, tmp_path, "run", **HARD)) == 143
    assert {"last.pth", "previous.pth", "best_model.pth"} <= left.keys()
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pth")} == left
    content = load_checkpoint(tmp_path / "run" / "last.pth")
    pairs = ((weight, content["ema"]["shadow"][name]) for name, weight in content["model"].items())
    assert not all(torch.equal(weight, averaged) for weight, averaged in pairs), "these are the averaged weights"


def test_tensorboard_files_are_where_the_user_looks(run, runs):
    assert list((runs / "logs" / "undisturbed").glob("events.out.tfevents.*"))


# ---- what auto stands for


def test_auto_is_probed_once_and_written_out(phantom, tmp_path, monkeypatch):
    """The probe's outcome is in config.yaml and in the checkpoint, and a resumed run does not ask again."""
    auto = {"TRAIN__channels_last": "auto", "TRAIN__mixed_precision": "auto", "TRAIN__epochs": 1}
    assert run_main(arguments(phantom, tmp_path, "auto", **auto)) == 0
    written = Config.from_yaml(tmp_path / "auto" / "config.yaml").TRAIN
    assert isinstance(written.channels_last, bool) and written.mixed_precision in (False, "bf16")
    saved = load_checkpoint(tmp_path / "auto" / "last.pth")["config"]["TRAIN"]
    assert (saved["channels_last"], saved["mixed_precision"]) == (written.channels_last, written.mixed_precision)
    explicit = {f"TRAIN__{key}": saved[key] for key in AUTO}
    assert run_main(arguments(phantom, tmp_path, "explicit", **{**auto, **explicit})) == 0
    weights = [load_checkpoint(tmp_path / name / "last.pth")["model"] for name in ("auto", "explicit")]
    assert weights[0].keys() == weights[1].keys()
    assert all(identical(weights[0][key], weights[1][key]) for key in weights[0]), "the probe left a trace"
    monkeypatch.setattr(probe, "measure", None)  # a probe would fail
    assert run_main(["--resume", tmp_path / "auto", "--set", "TRAIN.epochs=2", *map("TRAIN.{}=auto".format, AUTO)]) == 0
    again = load_checkpoint(tmp_path / "auto" / "last.pth")["config"]["TRAIN"]
    assert {key: again[key] for key in AUTO} == {key: saved[key] for key in AUTO} and again["epochs"] == 2
    with pytest.raises(TypeError):
        run_main(arguments(phantom, tmp_path, "new", **auto))


# ---- other tasks


@pytest.mark.parametrize(
    ("write", "task", "loss", "classes"),
    [
        (write_class_folders, "multi_class", "cross_entropy", ["bright", "dark", "striped"]),
        (write_npz, "binary", "bce", ["positive"]),
    ],
)
def test_other_tasks_are_recognised_and_learned(tmp_path, write, task, loss, classes):
    data = write(tmp_path / "data")
    options = {"TRAIN__epochs": 6, "TRAIN__batch_size": 7, "TRAIN__learning_rate": 3e-3}
    assert run_main(arguments(data, tmp_path, "run", **options, MODEL__dropout=0, LOGGING__tensorboard="false")) == 0
    config = Config.from_yaml(tmp_path / "run" / "config.yaml")
    assert (config.MODEL.task, config.LOSS.type, config.DATA.class_names) == (task, loss, classes)
    result = metrics_of(tmp_path / "run")[-1]
    assert result["split"] == "test" and result["mean_auroc"] > 0.9


def test_a_hierarchical_model_trains(phantom, tmp_path):
    groups = "{lung: [Mass, Nodule, Pneumonia], heart: [Cardiomegaly], pleura: [Effusion, Pneumothorax]}"
    args = arguments(phantom, tmp_path, "run", MODEL__hierarchical="true", MODEL__coarse_groups=groups, TRAIN__epochs=1)
    assert run_main([*args, "LOGGING.tensorboard=false", "MODEL.attention=cross_scale"]) == 0
    config = Config.from_yaml(tmp_path / "run" / "config.yaml")
    assert config.MODEL.num_coarse_classes == 3
    model = HybridMedNet(config)
    model.load_state_dict(load_checkpoint(tmp_path / "run" / "last.pth")["model"])
    coarse, fine = model.eval()(torch.zeros(2, 3, SIZE, SIZE))
    assert coarse.shape == (2, 3) and fine.shape == (2, 14)


# ---- what changes no number


def test_gradient_checkpointing_changes_no_number(phantom, runs, run):
    """The whole run again, from YAML's nested key to the test score; the log says what was chosen."""
    settings = HARD | {"MODEL__gradient_checkpointing": "{enabled: true, segments: 4, fraction: 0.9}"}
    assert run_main(arguments(phantom, runs, "checkpointed", **settings)) == 0
    same_outcome(runs / "checkpointed", run)
    log = (runs / "checkpointed" / "train.log").read_text(encoding="utf-8")
    assert "blocks in 4 segments" in log and "of the forward pass again" in log
    assert "no gradient checkpointing" in (run / "train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", [pytest.param("ram", marks=pytest.mark.slow), "disk"])
def test_a_cache_changes_no_number(phantom, runs, run, tmp_path, kind):
    locations = {"DATA__cache_dir": tmp_path} if kind == "disk" else {}
    assert run_main(arguments(phantom, runs, f"cached_{kind}", **HARD, DATA__cache=kind, **locations)) == 0
    same_outcome(runs / f"cached_{kind}", run)
    assert (run / "split.csv").read_bytes() == (runs / f"cached_{kind}" / "split.csv").read_bytes()
    assert len(list(tmp_path.glob("*.cache"))) == (kind == "disk")


# ---- out of memory


@pytest.fixture
def scarce(monkeypatch) -> list[int]:
    """Memory for two images in training; the sizes of all batches that were tried."""
    whole, sizes = HybridMedNet.forward, []

    def forward(self, x):
        if self.training:
            sizes.append(x.studies)
            if x.studies > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(self, x)

    monkeypatch.setattr(HybridMedNet, "forward", forward)
    return sizes


def test_a_run_that_is_out_of_memory_goes_on_in_less(phantom, tmp_path, scarce):
    assert run_main(arguments(phantom, tmp_path, "less", TRAIN__epochs=1, CHECKPOINT__save_every_steps=4)) == 0
    assert scarce[0] == 4 and max(scarce[1:]) == 2
    assert load_checkpoint(tmp_path / "less" / "last.pth")["progress"]["micro_batch_splits"] == 2
    assert "micro-batch 4 -> 2, accumulation 1 -> 2" in (tmp_path / "less" / "train.log").read_text()
    scarce.clear()
    assert run_main(["--resume", tmp_path / "less", "--set", "TRAIN.epochs=2"]) == 0
    assert scarce and max(scarce) == 2


def test_out_of_memory_ends_a_run_that_shall_stop(phantom, tmp_path, scarce, capsys):
    assert run_main(arguments(phantom, tmp_path, "stop", TRAIN__on_oom="stop")) == 2
    errors = capsys.readouterr().err
    assert "error: out of memory with a micro-batch of 4" in errors and "Traceback" not in errors and scarce == [4]


# ---- signals and resume


def launch(args: list[str], cwd: Path) -> tuple[subprocess.Popen, threading.Event, list[str]]:
    """A run in a process of its own, and an event for its first optimizer step."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *args]
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    stepped, lines = threading.Event(), []

    def read() -> None:
        for line in process.stderr:
            lines.append(line)
            if f"epoch 1/{EPOCHS}  " in line:
                stepped.set()
        stepped.set()

    threading.Thread(target=read, daemon=True).start()
    return process, stepped, lines


def stopped(args: list[str], cwd: Path, name: str) -> tuple[int, list[str]]:
    """Exit code and lines of a run that is stopped by the signal of this name after the first step.

    The signal goes to the whole process group, data workers included, as a terminal and a batch system send it.
    """
    process, stepped, lines = launch(args, cwd)
    try:
        assert stepped.wait(LIMIT_S), "no first step"
        os.killpg(process.pid, getattr(signal, name))
        return process.wait(LIMIT_S), lines
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
@pytest.mark.parametrize(
    ("name", "code", "workers"), [("SIGTERM", 143, 2), pytest.param("SIGINT", 130, 0, marks=pytest.mark.slow)]
)
def test_a_signal_saves_leaves_and_the_resumed_run_ends_alike(phantom, runs, run, name, code, workers, monkeypatch):
    options, folder = {**HARD, "DATA__num_workers": workers}, runs / name / name
    left, lines = stopped(arguments(phantom, folder.parent, name, **options), runs, name)
    text = "".join(lines)
    assert left == code, text
    assert "Traceback" not in text and f"stopped by {name}: continue by --resume" in lines[-1]
    progress = load_checkpoint(folder / "last.pth")["progress"]
    assert progress["epoch"] < EPOCHS and 0 < progress["global_step"] < 2 * 6, "the signal came too late to test"
    monkeypatch.chdir(folder.parent)
    # without a path: the newest run of the folder; with one: that run
    where = ["--resume", "--set", f"CHECKPOINT.save_dir={folder.parent}"] if name == "SIGTERM" else ["--resume", folder]
    assert run_main(where) == 0
    same_outcome(folder, run)
    print(f"{name}: exit code {left}, saved after step {progress['global_step']}, resumed: equal bit for bit")


def test_a_finished_run_goes_on_with_more_epochs(run, tmp_path):
    copied = tmp_path / "copy"
    copied.mkdir()
    for path in run.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    more = ["--set", f"TRAIN.epochs={EPOCHS + 1}", f"LOGGING.log_dir={tmp_path}/logs"]
    assert run_main(["--resume", copied, *more]) == 0
    rows = metrics_of(copied)
    assert [row.get("epoch") for row in rows] == [1, 2, 3, None]
    assert rows[:EPOCHS] == metrics_of(run)[:EPOCHS]
    last = [load_checkpoint(folder / "last.pth") for folder in (run, copied)]
    assert [content["progress"]["epoch"] for content in last] == [EPOCHS, EPOCHS + 1]
    assert last[1]["progress"]["global_step"] * EPOCHS == last[0]["progress"]["global_step"] * (EPOCHS + 1)
    assert last[1]["config"]["TRAIN"]["epochs"] == EPOCHS + 1


def test_resuming_a_finished_run_changes_nothing(run, tmp_path):
    copied = tmp_path / "copy"
    copied.mkdir()
    for path in run.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    assert run_main(["--resume", copied, "--set", f"LOGGING.log_dir={tmp_path}/logs"]) == 0
    same_outcome(run, copied)
