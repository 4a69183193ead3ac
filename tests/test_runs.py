"""train() called from Python: several times, from a thread, asked to leave by a file, back from an earlier epoch."""

import threading
from pathlib import Path

import pytest
import torch

import train
from configs.default_config import Config
from configs.errors import CheckpointError, HybridMedNetError
from data.phantom.radiographs import write_phantom
from tests.kill_harness import SETTINGS, differing
from tests.waiting import LIMIT_S
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.runs.control import Control
from utils.runs.folder import RunFolder
from utils.runs.result import RunResult

EPOCHS, STEPS_PER_EPOCH = 3, 6  # of 42 training images in batches of 4, two to a step


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """settings(name, overrides) → a Config of a run of this name; all in one folder."""
    position = tmp_path_factory.mktemp("runs")
    write_phantom(position / "data", 60, 64)

    def build(name: str | None, **overrides) -> Config:
        values = SETTINGS | {"CHECKPOINT.save_every_steps": 0, "TRAIN.epochs": EPOCHS, "CHECKPOINT.save_freq": 1}
        values |= {
            "DATA.data_dir": position / "data",
            "CHECKPOINT.save_dir": position,
            "LOGGING.log_dir": position / "logs",
        }
        values |= {"LOGGING.run_name": name} if name else {}
        values |= {key.replace("__", "."): value for key, value in overrides.items()}
        return Config.from_overrides([f"{key}={value}" for key, value in values.items()])

    return build


@pytest.fixture(scope="module")
def whole(settings) -> RunResult:
    """An undisturbed run."""
    return train.train(settings("whole"))


def without_clock(rows: list[dict]) -> list[dict]:
    clock = ("seconds", "images_per_second", "data_wait_fraction", "memory_mib")
    return [{key: value for key, value in row.items() if key not in clock} for row in rows]


def copy_run(run: RunResult, name: str, leave_out: tuple[str, ...] = ()) -> Path:
    copied = run.folder.parent / name
    copied.mkdir()
    for path in run.folder.iterdir():
        if path.name not in leave_out:
            (copied / path.name).write_bytes(path.read_bytes())
    return copied


class AskedAtStep(Control):
    """Writes a word into the run's file before it is asked for the nth time, then waits for nothing."""

    def __init__(self, asked_for: int, word: str) -> None:
        super().__init__(seconds_between_looks=0)
        self.left, self.word = asked_for, word

    def request(self):
        self.left -= 1
        if self.left == 0:
            self._files[-1].write_text(self.word)
        return super().request()


# ---- what it returns and leaves behind


def test_a_run_says_where_it_is_and_what_was_best(whole):
    rows = RunFolder.read(whole.folder).history
    assert whole.finished and whole.best in rows and whole.report == rows[-1] and "split" in whole.report
    assert whole.best["epoch"] == whole.best_epoch
    assert whole.best_epoch == load_checkpoint(whole.folder / "best_model.pth")["metrics"]["epoch"]
    view = RunFolder.read(whole.folder)
    status = view.status
    assert (status.phase, status.epoch, status.epochs, status.error) == ("finished", EPOCHS, EPOCHS, None)
    assert status.step == status.total_steps == EPOCHS * STEPS_PER_EPOCH and status.eta_seconds is None
    assert [row.step for row in view.steps] == list(range(1, status.step + 1))
    assert set(view.steps[0].figures) >= {"train/loss", "train/learning_rate"}
    assert view.config.TRAIN.epochs == EPOCHS


def test_the_same_settings_again_in_one_process_give_the_same_weights(settings, whole):
    again = train.train(settings("again"))
    assert differing(whole.folder, again.folder) == []
    assert without_clock([again.best]) == without_clock([whole.best])
    assert "whole" not in (again.folder / "train.log").read_text(), "each run's log is its own"


def test_an_existing_name_is_refused_and_a_chosen_one_is_numbered(settings, whole, monkeypatch):
    with pytest.raises(CheckpointError, match="exists already"):
        train.train(settings("whole"))
    monkeypatch.setattr("training.run.time.strftime", lambda *_: "20260101-000000")
    folders = [train.train(settings(None, TRAIN__epochs=1)).folder.name for _ in range(2)]
    assert folders[0].endswith("-20260101-000000") and folders[1] == f"{folders[0]}-2"


# ---- pause and stop


@pytest.mark.parametrize(("word", "left_as", "code"), [("pause", "paused", 143), ("stop", "stopped", 130)])
def test_a_run_that_leaves_on_a_word_in_its_file_goes_on_bit_for_bit(settings, whole, word, left_as, code):
    result = train.train(settings(word), control=AskedAtStep(STEPS_PER_EPOCH + 2, word))
    assert not result.finished and result.report is None and result.interrupted.exit_code == code
    status = RunFolder.read(result.folder).status
    assert status.phase == left_as and 0 < status.step < EPOCHS * STEPS_PER_EPOCH and status.eta_seconds is None
    assert not (result.folder / "control").exists()
    (result.folder / "control").write_text("stop")  # of whoever did not see that it had left
    resumed = train.train(Config.from_yaml(result.folder / "config.yaml"), result.folder)
    assert resumed.finished and differing(whole.folder, resumed.folder) == []
    views = [RunFolder.read(run.folder) for run in (whole, resumed)]
    steps = [[(row.step, row.figures["train/loss"]) for row in view.steps] for view in views]
    assert steps[0] == steps[1], "each step's figures once"
    assert without_clock(views[0].history) == without_clock(views[1].history)


def test_a_word_that_comes_while_the_report_is_made_changes_nothing(whole, monkeypatch):
    """The report has the best weights in the model: they must not become the last ones."""
    from utils.runs.recorder import Recorder

    folder, report = copy_run(whole, "late"), Recorder.report

    def asked_late(recorder, *arguments) -> None:
        (folder / "control").write_text("stop")
        report(recorder, *arguments)

    monkeypatch.setattr(Recorder, "report", asked_late)
    control = Control(seconds_between_looks=0)
    result = train.train(Config.from_yaml(folder / "config.yaml"), folder, control)
    assert result.finished and differing(whole.folder, folder) == [] and not (folder / "control").exists()


def test_a_thread_trains_and_is_watched_and_paused_by_files_alone(settings, whole):
    results, folder = [], whole.folder.parent / "thread"
    thread = threading.Thread(
        target=lambda: results.append(train.train(settings("thread"), control=Control(seconds_between_looks=0)))
    )
    random = torch.get_rng_state()
    thread.start()
    seen = set()
    while thread.is_alive() and not (folder / "control").exists():
        status = RunFolder.read(folder).status if folder.is_dir() else None
        seen.add(status and status.phase)
        if status is not None and status.step >= 1:
            (folder / "control").write_text("pause")
    thread.join(5 * LIMIT_S)
    torch.set_rng_state(random)
    assert results[0].interrupted.left_as == RunFolder.read(folder).status.phase == "paused"
    assert seen <= {None, "starting", "training", "validating", "reporting"} and "training" in seen


def test_a_folder_is_trained_in_once(settings, whole):
    """By this process, which POSIX record locks did not keep from it."""
    folder = copy_run(whole, "held")
    with RunFolder.open(folder, EPOCHS), pytest.raises(CheckpointError, match="this process is training in"):
        train.train(Config.from_yaml(folder / "config.yaml"), folder)
    assert RunFolder.read(folder).status.phase == "finished"


def test_a_failure_is_in_the_status(settings, monkeypatch):
    monkeypatch.setattr("training.loop.TrainingLoop.train_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.train(settings("bug"))
    folder = Path(settings("bug").CHECKPOINT.save_dir) / "bug"
    status = RunFolder.read(folder).status
    assert status.phase == "failed" and status.error == "ZeroDivisionError: division by zero"


def test_a_users_error_is_in_the_status_as_it_is_said(settings, monkeypatch):
    monkeypatch.setattr("torch.Tensor.isfinite", lambda tensor: torch.zeros_like(tensor, dtype=torch.bool))
    with pytest.raises(HybridMedNetError) as error:
        train.train(settings("nan", TRAIN__max_nonfinite_steps=2))
    folder = Path(settings("nan").CHECKPOINT.save_dir) / "nan"
    assert RunFolder.read(folder).status.error == str(error.value)


# ---- back from an earlier epoch


def best_of(folder: Path) -> int:
    return load_checkpoint(folder / "best_model.pth")["metrics"]["epoch"]


def test_the_best_of_abandoned_epochs_is_not_reported(settings, whole, caplog):
    """From epoch 1 on at a learning rate of nearly 0: the best, whichever it is, must be of this run."""
    folder = copy_run(whole, "back")
    before = {path.name: path.read_bytes() for path in folder.glob("*.pth")}
    best = load_checkpoint(folder / "best_model.pth")
    best["metrics"]["epoch"] = EPOCHS  # as if the abandoned last epoch had been the best of all
    save_checkpoint(best, folder / "best_model.pth")
    config = Config.from_yaml(folder / "config.yaml", ["TRAIN.learning_rate=1e-12", "TRAIN.epochs=2"])
    result = train.train(config, folder / "epoch_0001.pth")
    aside = {path.name for path in folder.glob("*.abandoned")}
    assert aside >= {f"{name}.abandoned" for name in ("last.pth", "best_model.pth", "epoch_0002.pth", "epoch_0003.pth")}
    assert (folder / "last.pth.abandoned").read_bytes() == before["last.pth"]
    assert "does not belong to the run resumed from step 6" in caplog.text
    assert f"test, weights of epoch {result.best_epoch}:" in caplog.text and "weights of epoch 3" not in caplog.text
    kept = load_checkpoint(folder / "best_model.pth")
    assert kept["metrics"] in RunFolder.read(folder).history and kept["metrics"]["epoch"] == result.best_epoch
    weights = load_checkpoint(folder / f"epoch_{result.best_epoch:04d}.pth")["ema"]["shadow"]
    assert all(torch.equal(kept["model"][name], weights[name]) for name in weights)
    assert [row.step for row in RunFolder.read(folder).steps] == list(range(1, 2 * STEPS_PER_EPOCH + 1))


def test_going_back_and_on_again_is_the_undisturbed_run(whole):
    folder = copy_run(whole, "round")
    result = train.train(Config.from_yaml(folder / "config.yaml"), folder / "epoch_0001.pth")
    assert differing(whole.folder, folder) == []
    assert result.best_epoch == whole.best_epoch and without_clock([result.best]) == without_clock([whole.best])
    assert without_clock([result.report]) == without_clock([whole.report])


def test_a_best_that_was_never_kept_is_looked_for_anew(whole, caplog):
    """Nothing holds the best weights before the checkpoint: the report is about the best that there is."""
    folder = copy_run(whole, "anew", ("best_model.pth", "epoch_0001.pth", "epoch_0003.pth", "last.pth", "previous.pth"))
    (folder / "epoch_0002.pth").rename(folder / "kept.pth")
    content = load_checkpoint(folder / "kept.pth")
    content["progress"]["best_epoch"], content["progress"]["best_score"] = 0, 2.0
    save_checkpoint(content, folder / "kept.pth")
    result = train.train(Config.from_yaml(folder / "config.yaml"), folder / "kept.pth")
    assert result.best_epoch == best_of(folder) == EPOCHS and "are gone: the best is looked for anew" in caplog.text
