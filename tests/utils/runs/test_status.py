"""status.json and the view of a run, as another process reads them at any moment."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from configs.default_config import Config
from configs.errors import CheckpointError, ConfigError
from utils.listener import EpochEnd
from utils.runs.control import Interrupted
from utils.runs.folder import RunFolder
from utils.runs.lock import FolderLock
from utils.runs.status import StatusWriter, read_status

ROOT = Path(__file__).resolve().parents[3]

WRITER = """
import itertools, sys
from pathlib import Path
from utils.runs.folder import RunFolder
from utils.runs.status import StatusWriter

with RunFolder.create(sys.argv[1], "run") as run, StatusWriter(run.path, 10**6, 10**5, seconds_between=0) as status:
    print("writing", flush=True)
    for step in itertools.count(1):
        status.on_phase("training")
        status.on_step(step, {"train/loss": 1 / step, "心": float(step)})
        run.add_record({"epoch": step, "name": "心脏" * 50})
        status.on_phase("validating")
        if step == 40:  # what a resumed run does to its files
            run.close()
            run = RunFolder.open(run.path, 40)
            status.steps.go_on_after(40)
            print("resumed", flush=True)
"""


def writer(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("utils.runs.status.time.monotonic", lambda: now[0])
    return now


# ---- what is written


def test_the_phases_of_a_run(tmp_path, clock):
    with RunFolder.create(str(tmp_path), "run") as run:
        with StatusWriter(run.path, total_steps=12, epochs=3) as status:
            first = read_status(run.path)
            assert (first.phase, first.step, first.total_steps, first.epoch, first.epochs) == ("starting", 0, 12, 0, 3)
            assert first.pid == os.getpid() and first.eta_seconds is None
            for phase in ("training", "validating", "reporting"):
                status.on_phase(phase)
                assert read_status(run.path).phase == phase and read_status(run.path).is_running
            status.on_phase("finished")
        assert read_status(run.path).phase == "finished"
    assert not read_status(run.path).is_running


def test_it_is_written_once_a_second_within_a_phase(tmp_path, clock):
    seen = []
    with RunFolder.create(str(tmp_path), "run") as run, StatusWriter(run.path, 1000, 1) as status:
        status.on_phase("training")
        for step in range(1, 101):
            clock[0] += 0.125
            status.on_step(step, {"train/loss": 1.0})
            seen.append(read_status(run.path).step)
    assert sorted(set(seen)) == list(range(0, 97, 8)), "of 100 steps of 0.125 s every eighth"


def test_time_left_is_the_mean_pace_of_this_process_with_its_validation(tmp_path, clock):
    folder = RunFolder.create(str(tmp_path), "run")
    with folder as run, StatusWriter(run.path, 100, 10, step=40, epoch=4) as status:
        clock[0] += 500  # caches, compilation
        status.on_phase("training")
        assert read_status(run.path).eta_seconds is None
        for step in range(41, 51):
            clock[0] += 2
            status.on_step(step, {})
        assert read_status(run.path).eta_seconds == pytest.approx(2 * 50)
        status.on_phase("validating")
        clock[0] += 10
        status.on_epoch(EpochEnd({"epoch": 5, "step": 50}, False, {}, {}))
        assert read_status(run.path).eta_seconds == pytest.approx(3 * 50) and read_status(run.path).epoch == 5


@pytest.mark.parametrize(
    ("error", "phase", "words"),
    [
        (CheckpointError("the disk is full"), "failed", "the disk is full"),
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
        (Interrupted("pause", saved=False), "paused", None),
        (Interrupted("stop", saved=False), "stopped", None),
        (KeyboardInterrupt(), "stopped", None),
    ],
)
def test_how_a_run_is_left_is_the_last_word(tmp_path, error, phase, words):
    run = RunFolder.create(str(tmp_path), "run")
    with pytest.raises(type(error)), run, StatusWriter(run.path, 10, 1) as status:
        status.on_phase("training")
        raise error
    status = read_status(run.path)
    assert (status.phase, status.error, status.eta_seconds) == (phase, words, None)


@pytest.mark.parametrize("continues", [True, False])
def test_a_status_that_cannot_be_written(tmp_path, monkeypatch, caplog, continues):
    """As other files of the run: it stops, or says so and goes on; the last word never hides why the run failed."""
    run = RunFolder.create(str(tmp_path), "run")
    full = OSError(28, "No space left on device")

    def refuse(*_) -> None:
        raise full

    error = ZeroDivisionError if continues else CheckpointError
    with pytest.raises(error), run, StatusWriter(run.path, 10, 1, continues=continues) as status:
        monkeypatch.setattr("utils.runs.status.write_atomically", refuse)
        status.on_phase("training")
        raise ZeroDivisionError
    assert "No space left" in caplog.text and ("training continues" in caplog.text) == continues


# ---- what is read


def test_reading_while_another_process_writes_is_always_whole(tmp_path):
    process, folder = writer(tmp_path), tmp_path / "run"
    looks, last, phases, lost = 0, (0, 0, 0), set(), set()
    try:
        while last[2] < 120 or looks < 300:  # past the place where it rewrites its files
            view = RunFolder.read(folder)
            (lost if view.status.phase == "lost" else phases).add((view.status.phase, view.status.step))
            steps, history = view.steps, view.history
            assert [row.step for row in steps] == list(range(1, len(steps) + 1))
            assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))
            now = (view.status.step, len(steps), len(history))
            assert all(before <= after for before, after in zip(last, now)), (last, now)
            looks, last = looks + 1, now
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert {phase for phase, _ in phases} <= {"starting", "training", "validating"}
    assert {step for _, step in lost} <= {40}, "but there, where the writer lets go of its lock and takes it again"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert RunFolder.read(folder).status.phase == "lost"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "a reader writes nothing"
    print(f"{looks} looks at {last[0]} steps: all whole")


def test_a_process_that_stands_still_is_not_lost(tmp_path):
    process = writer(tmp_path)
    try:
        os.kill(process.pid, signal.SIGSTOP)
        assert RunFolder.read(tmp_path / "run").status.is_running
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_without_locks_the_process_itself_is_looked_for(tmp_path, monkeypatch):
    run = RunFolder.create(str(tmp_path), "run")
    with StatusWriter(run.path, 10, 1) as status:
        run.close()
        monkeypatch.setattr("utils.runs.status.lock_state", lambda folder: "unknown")
        assert read_status(run.path).phase == "starting"
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        status._write(replace(status.status, pid=gone.pid), durable=False)
        assert read_status(run.path).phase == "lost"
        status._write(replace(status.status, host="another"), durable=False)
        assert read_status(run.path).phase == "starting", "nobody can know from here"


def test_a_run_that_ends_between_two_looks_is_not_lost(tmp_path, monkeypatch):
    run = RunFolder.create(str(tmp_path), "run")
    with StatusWriter(run.path, 10, 1) as status:
        status.on_phase("training")

        def end_meanwhile(folder: Path) -> str:
            status.on_phase("finished")
            run.close()
            return "free"

        monkeypatch.setattr("utils.runs.status.lock_state", end_meanwhile)
        assert read_status(run.path).phase == "finished"


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 300, b"{", b"[]", b"null", b'{"phase": "training"}', b"[" * 100_000, "WRONG PHASE", "WRONG KIND"],
)
def test_a_damaged_status_is_told(tmp_path, content):
    with RunFolder.create(str(tmp_path), "run") as run, StatusWriter(run.path, 10, 1):
        run.add_record({"epoch": 1})
    whole = (run.path / "status.json").read_text()
    if content == "WRONG PHASE":
        content = whole.replace('"starting"', '"sleeping"').encode()
    elif content == "WRONG KIND":
        content = whole.replace('"step": 0', '"step": "0"').encode()
    (run.path / "status.json").write_bytes(content)
    view = RunFolder.read(run.path)
    with pytest.raises(CheckpointError, match=r"status\.json' is damaged"):
        _ = view.status
    assert view.history == [{"epoch": 1}], "the other files are read all the same"


def test_a_status_of_a_later_version_is_read(tmp_path):
    with RunFolder.create(str(tmp_path), "run") as run, StatusWriter(run.path, 10, 1):
        content = json.loads((run.path / "status.json").read_text())
        (run.path / "status.json").write_text(json.dumps(content | {"temperature": 70}))
        assert read_status(run.path).phase == "starting"


def test_what_is_not_there_is_none(tmp_path):
    view = RunFolder.read(tmp_path)
    assert (view.status, view.config, view.history, view.steps) == (None, None, [], [])
    with pytest.raises(CheckpointError, match="there is no run's folder"):
        RunFolder.read(tmp_path / "nowhere")
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot read .*metrics\.jsonl"):
        _ = RunFolder.read(tmp_path).history


def test_settings_are_checked_as_those_of_a_file(tmp_path):
    (tmp_path / "config.yaml").write_text(Config.from_overrides(["TRAIN.epochs=7"]).to_yaml())
    assert RunFolder.read(tmp_path).config.TRAIN.epochs == 7
    (tmp_path / "config.yaml").write_text("TRAIN: {epochs: many}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        _ = RunFolder.read(tmp_path).config


def test_a_reader_needs_no_torch(tmp_path):
    code = "import sys; from pathlib import Path; from utils.runs.folder import RunFolder\n"
    code += "view = RunFolder.read(Path(sys.argv[1])); print(view.status, view.config, view.history, view.steps)\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "None None [] []\nFalse\n", done.stderr


def test_a_look_does_not_take_the_folder(tmp_path):
    with RunFolder.create(str(tmp_path), "run") as run, StatusWriter(run.path, 10, 1):
        for _ in range(3):
            assert RunFolder.read(run.path).status.phase == "starting"
        with pytest.raises(CheckpointError):
            FolderLock(run.path)
