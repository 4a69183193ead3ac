"""What a run leaves behind: TensorBoard read back by its own reader, checkpoints, metrics, curves."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs.default_config import Config
from utils.checkpoint import load_checkpoint
from utils.listener import EpochEnd
from utils.metrics import classification_metrics
from utils.runs.folder import RunFolder
from utils.runs.recorder import Recorder, _epoch_scalars

DRAWN = True  # see blank_figures in tests/conftest.py

DESCRIPTION = {
    "config": {"MODEL": {"backbone": "resnet18"}},
    "class_names": ["a", "b"],
    "preprocessing": {"size": [8, 8], "channels": 1, "mean": [0.5], "std": [0.25], "resize_mode": "stretch"},
}


def content(value: float = 0.0) -> dict:
    """A checkpoint's content of a network with one weight."""
    return {"model": {"weight": torch.tensor([[value]])}, "progress": {"epoch": 3}}


def ended(record: dict, is_best: bool = False, weight: float = 0.0, average: float | None = None) -> EpochEnd:
    """An epoch's end. average: the weight that was scored, where it is not the network's own."""
    scored = {"weight": torch.tensor([[weight if average is None else average]])}
    return EpochEnd(record, is_best, scored, content(weight))


def predictions(weight: float) -> SimpleNamespace:
    """Of four studies; the weight is told as the loss."""
    scores = np.array([[0.1, 0.9], [0.8, 0.3], [0.6, 0.2], [0.3, 0.4]])
    targets, mask = np.array([[0, 1], [1, 0], [0, 0], [1, 1]]), np.ones((4, 2), bool)
    metrics = classification_metrics(scores, targets, mask, ["a", "b"])
    return SimpleNamespace(scores=scores, targets=targets, mask=mask, loss=weight, metrics=metrics, regions=None)


def record(epoch: int, step: int, auroc: float | None = 0.5, loss: float = 0.7) -> dict:
    return {
        "epoch": epoch,
        "step": step,
        "train_loss": loss,
        "val_loss": 0.6,
        "learning_rate": 1e-3,
        "skipped_steps": epoch,
        "seconds": 1.0,
        "images_per_second": 10.0,
        "data_wait_fraction": 0.25,
        "memory_mib": 100.0,
        "mean_auroc": auroc,
        "mean_average_precision": 0.25,
        "defined_classes": 1,
        "per_class": [
            {"name": "a", "auroc": auroc, "average_precision": 0.25, "positives": 1, "negatives": 3},
            {"name": "b", "auroc": None, "average_precision": None, "positives": 0, "negatives": 4},
        ],
    }


@pytest.fixture
def make(tmp_path):
    """make(run, overrides, checkpoint) → a Recorder in tmp_path."""

    def build(run: RunFolder | None = None, *overrides: str, checkpoint: dict | None = None) -> Recorder:
        run = run or RunFolder.create(str(tmp_path / "runs"), "run")
        return Recorder(
            run, Config.from_overrides([f"LOGGING.log_dir={tmp_path}/logs", *overrides]), DESCRIPTION, checkpoint
        )

    return build


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def close(seen: list[tuple[int, float]], expected: list[tuple[int, float]]) -> bool:
    return [s for s, _ in seen] == [s for s, _ in expected] and [v for _, v in seen] == pytest.approx(
        [v for _, v in expected]
    )


def test_tensorboard_holds_the_scalars(make, tmp_path):
    recorder = make()
    for step in (10, 20):
        recorder.on_step(step, {"train/loss": step / 7, "system/memory_mib": 100.0 + step})
    recorder.on_epoch(ended(record(1, 25), True))
    recorder.on_epoch(ended(record(2, 50, auroc=None)))
    recorder.writer.close()
    seen = scalars(tmp_path / "logs" / "run")
    assert close(seen["train/loss"], [(10, 10 / 7), (20, 20 / 7)])
    assert close(seen["system/memory_mib"], [(10, 110), (20, 120)])
    assert close(seen["epoch/val_loss"], [(25, 0.6), (50, 0.6)])
    assert close(seen["epoch/skipped_steps"], [(25, 1), (50, 2)])
    assert close(seen["epoch/mean_auroc"], [(25, 0.5)]) and close(seen["auroc/a"], [(25, 0.5)])
    assert "auroc/b" not in seen


def test_a_resumed_run_replaces_later_scalars_and_keeps_earlier_ones(make, tmp_path):
    """Saved at step 20, the first run went on to step 30 before it was killed."""
    first = make()
    for step in (10, 20, 30):
        first.on_step(step, {"train/loss": float(step)})
        if step == 20:
            first.on_epoch(ended(record(1, 20), True))
    first.writer.close()
    first.run.close()
    second = make(RunFolder.open(first.run.path, 1), checkpoint={"progress": {"global_step": 20}})  # as they once were
    second.on_step(30, {"train/loss": -30.0})
    second.on_step(40, {"train/loss": -40.0})
    second.writer.close()
    seen = scalars(tmp_path / "logs" / "run")
    assert close(seen["train/loss"], [(10, 10), (20, 20), (30, -30), (40, -40)])
    assert close(seen["epoch/val_loss"], [(20, 0.6)])


class Training:
    """Epochs of three steps, each step saved, of which any number is made before the process is killed."""

    def __init__(self, recorder: Recorder, step: int = 0, epoch: int = 0) -> None:
        self.recorder, self.step, self.epoch = recorder, step, epoch

    def content(self) -> dict:
        return {"model": {}, "progress": {"global_step": self.step, "epoch": self.epoch}}

    def end_epoch(self) -> None:
        self.epoch += 1
        self.recorder.on_epoch(EpochEnd(record(self.epoch, self.step, loss=self.step / 9), False, {}, self.content()))

    def go_on(self, steps: int, print_freq: int = 1, killed_in_last_save: bool = False) -> None:
        for number in range(1, steps + 1):
            self.step += 1
            if self.step % print_freq == 0:
                self.recorder.on_step(self.step, {"train/loss": self.step / 7})
            self.recorder.save(self.content())
            if self.step % 3 == 0:
                if killed_in_last_save and number == steps:
                    self.recorder.save = lambda content: None
                self.end_epoch()


EXPECTED = {
    "train/loss": [(step, step / 7) for step in range(1, 10)],
    "epoch/train_loss": [(step, step / 9) for step in (3, 6, 9)],
    "epoch/val_loss": [(step, 0.6) for step in (3, 6, 9)],
    "auroc/a": [(step, 0.5) for step in (3, 6, 9)],
}


@pytest.mark.parametrize(
    ("first", "print_freq", "in_save"),
    [(1, 1, False), (3, 1, False), (3, 1, True), (3, 5, True), (4, 2, False), (6, 2, True), (6, 2, False)],
)
def test_no_figure_is_there_twice_after_a_kill(make, tmp_path, first, in_save, print_freq, monkeypatch):
    """Within an epoch, after it, and after its figures were written and before its checkpoint was (in_save)."""
    monkeypatch.setattr("utils.runs.recorder.plot_training_curves", lambda *_: None)
    training = Training(make())
    training.go_on(first, print_freq, killed_in_last_save=in_save)
    for steps in (1, 9):  # killed a second time after one more step
        saved = load_checkpoint(training.recorder.run.path / "last.pth")
        training.recorder.writer.close()
        training.recorder.run.close()
        step, epoch = saved["progress"]["global_step"], saved["progress"]["epoch"]
        recorder = make(RunFolder.open(training.recorder.run.path, epoch), checkpoint=saved)
        training = Training(recorder, step, epoch)
        if step and step == 3 * epoch + 3:  # what is left of this epoch is its end
            training.end_epoch()
        training.go_on(min(steps, 9 - training.step), print_freq)
    recorder.writer.close()
    seen, steps = scalars(tmp_path / "logs" / "run"), range(print_freq, 10, print_freq)
    expected = EXPECTED | {"train/loss": [(step, step / 7) for step in steps]}
    assert all(close(seen[tag], expected[tag]) for tag in expected), {tag: seen[tag] for tag in expected}


def test_a_run_that_begins_again_forgets_what_was_written_before(make, tmp_path):
    first = make()
    for step in range(1, 6):
        first.on_step(step, {"train/loss": -1.0})
    first.writer.close()
    first.run.close()
    again = make(RunFolder.open(first.run.path, 0))
    for step in range(1, 4):
        again.on_step(step, {"train/loss": 1.0})
    again.writer.close()
    assert scalars(tmp_path / "logs" / "run")["train/loss"] == [(1, 1.0), (2, 1.0), (3, 1.0)]


def test_a_new_file_after_a_full_disk_forgets_nothing(make, tmp_path, monkeypatch):
    recorder = make(None, "CHECKPOINT.on_save_error=continue", checkpoint={"progress": {"global_step": 1}})
    recorder.on_step(2, {"train/loss": 2.0})
    monkeypatch.setattr(
        "tensorboard.summary.writer.record_writer.RecordWriter.write",
        lambda *_: (_ for _ in ()).throw(OSError(28, "full")),
    )
    recorder.on_step(3, {"train/loss": 3.0})
    monkeypatch.undo()
    recorder.on_step(4, {"train/loss": 4.0})
    recorder.writer.close()
    assert scalars(tmp_path / "logs" / "run")["train/loss"] == [(2, 2.0), (4, 4.0)]


@pytest.mark.parametrize("forged", [None, 3, [], {}, {"step": "x"}, {"step": 2, "figures": {3: "x", "t": 10**400}}])
def test_figures_that_are_none(make, tmp_path, forged):
    recorder = make(checkpoint={"progress": {"global_step": 2}, "scalars": forged})
    recorder.on_step(3, {"train/loss": 3.0})
    recorder.writer.close()
    assert scalars(tmp_path / "logs" / "run") == {"train/loss": [(3, 3.0)]}


def test_tensorboard_can_be_left_out(make, tmp_path):
    recorder = make(None, "LOGGING.tensorboard=false")
    recorder.on_step(1, {"train/loss": 1.0})
    recorder.on_epoch(ended(record(1, 1), True))
    assert not (tmp_path / "logs").exists() and (recorder.run.path / "last.pth").is_file()


def test_checkpoints_of_an_epoch(make):
    recorder = make(None, "CHECKPOINT.save_freq=2", "LOGGING.tensorboard=false")
    for epoch, best in ((1, True), (2, True), (3, False), (4, False)):
        recorder.on_epoch(ended(record(epoch, epoch), best, epoch))
    folder = recorder.run.path
    weights = {path.name: float(load_checkpoint(path)["model"]["weight"]) for path in folder.glob("*.pth")}
    assert weights == {"last.pth": 4, "previous.pth": 3, "best_model.pth": 2, "epoch_0002.pth": 2, "epoch_0004.pth": 4}
    for name in weights:
        content = load_checkpoint(folder / name)
        assert {key: content[key] for key in DESCRIPTION} == DESCRIPTION
    assert load_checkpoint(folder / "best_model.pth")["metrics"]["epoch"] == 2
    assert load_checkpoint(folder / "last.pth")["progress"] == {"epoch": 3}
    assert [row["epoch"] for row in recorder.run.history] == [1, 2, 3, 4]
    with Image.open(folder / "training_curves.png") as image:
        assert image.width > 300 and len(image.convert("L").getcolors(256)) > 3


def test_what_is_not_asked_for_is_not_kept(make):
    recorder = make(None, "CHECKPOINT.save_freq=0", "CHECKPOINT.save_best=false", "LOGGING.tensorboard=false")
    recorder.on_epoch(ended(record(1, 1), True))
    assert [path.name for path in recorder.run.path.glob("*.pth")] == ["last.pth"]


def test_the_best_model_is_the_averaged_one(make):
    recorder = make(None, "LOGGING.tensorboard=false")
    recorder.on_epoch(ended(record(1, 1), True, 3, average=-7))
    assert float(load_checkpoint(recorder.run.path / "best_model.pth")["model"]["weight"]) == -7
    assert float(load_checkpoint(recorder.run.path / "last.pth")["model"]["weight"]) == 3


def test_the_report_is_about_the_best_weights(make, caplog):
    caplog.set_level("INFO")
    recorder = make(None, "LOGGING.tensorboard=false")
    for epoch, best in ((1, False), (2, True), (3, False)):
        recorder.on_epoch(ended(record(epoch, epoch), best, epoch))
    best = recorder.best(last_epoch=3)
    assert best.epoch == 2
    recorder.report("test", best.epoch, predictions(float(best.weights["weight"])))
    rows = (recorder.run.path / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 4 and '"split": "test"' in rows[-1] and '"loss": 2.0' in rows[-1]
    assert "test, weights of epoch 2:" in caplog.text and "results are in" in caplog.text
    assert len(recorder.run.history) == 3
    with Image.open(recorder.run.path / "roc_curves.png") as image:
        assert image.width > 300


def test_an_epoch_without_defined_figures_is_summed_up(make, caplog):
    caplog.set_level("INFO")
    recorder = make(None, "LOGGING.tensorboard=false")
    recorder.on_epoch(ended({**record(1, 0, None, math.nan), "mean_average_precision": None}))
    assert "epoch 1: loss –, validation 0.6000, AUROC – over 1 of 2 classes, AP –" in caplog.text
    assert "1 steps skipped" in caplog.text


def test_figures_of_annotated_regions_are_scalars():
    """nan is null in metrics.jsonl, and no scalar."""
    row = {"val_loss": 0.5, "attention": {"regions": 2, "energy_inside": 0.25, "pointing_game": None, "area": 0.1}}
    assert _epoch_scalars(row) == {"epoch/val_loss": 0.5, "attention/energy_inside": 0.25}
