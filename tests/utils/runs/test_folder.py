"""A run's folder: never written over, found again, its metrics plain JSON lines."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import CheckpointError
from utils.runs.folder import LAST, PREVIOUS, RunFolder, find_run, folder_of

ROOT = Path(__file__).resolve().parents[3]


def strict_rows(path: Path) -> list[dict]:
    """Rows of a metrics.jsonl as any JSON reader takes them: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def write_run(folder: Path, epochs: int = 5) -> RunFolder:
    run = RunFolder.create(str(folder), "run")
    for epoch in range(1, epochs + 1):
        run.add_record({"epoch": epoch, "train_loss": 1 / epoch, "per_class": [{"name": "Mass", "auroc": 0.5}]})
    return run


# ---- records


def test_records_are_json_lines_and_nan_is_null(tmp_path):
    run = write_run(tmp_path, 1)
    run.add_record(
        {"epoch": 2, "train_loss": math.nan, "per_class": ({"name": "心脏", "auroc": -math.inf},), "step": 7}
    )
    run.add_record({"split": "test", "mean_auroc": math.inf})
    expected = [
        {"epoch": 1, "train_loss": 1.0, "per_class": [{"name": "Mass", "auroc": 0.5}]},
        {"epoch": 2, "train_loss": None, "per_class": [{"name": "心脏", "auroc": None}], "step": 7},
        {"split": "test", "mean_auroc": None},
    ]
    assert strict_rows(run.metrics) == expected
    assert run.history == expected[:2]
    assert "心脏" in run.metrics.read_text(encoding="utf-8")


@pytest.mark.parametrize("last_epoch", [0, 2, 5, 9])
def test_opening_a_run_forgets_what_came_later(tmp_path, last_epoch):
    run = write_run(tmp_path)
    run.add_record({"split": "test", "mean_auroc": 0.8})
    rows = strict_rows(run.metrics)
    run.close()
    again = RunFolder.open(run.path, last_epoch)
    assert again.history == strict_rows(again.metrics) == rows[: min(last_epoch, 5)]
    again.add_record({"epoch": last_epoch + 1})
    assert strict_rows(run.metrics)[-1] == {"epoch": last_epoch + 1} == again.history[-1]
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", "metrics.jsonl"]


def test_a_half_written_last_line_is_dropped(tmp_path):
    run = write_run(tmp_path, 3)
    whole = strict_rows(run.metrics)
    run.close()
    with run.metrics.open("a", encoding="utf-8") as file:
        file.write('{"epoch": 4, "train_lo')
    assert RunFolder.open(run.path, 9).history == whole == strict_rows(run.metrics)


def test_a_run_without_metrics_opens(tmp_path):
    assert RunFolder.open(tmp_path, 3).history == []


def test_json_and_text_files_are_replaced_whole(tmp_path):
    run = RunFolder.create(str(tmp_path), "run")
    run.write_json("environment.json", {"cores": 2, "nan": math.nan, "list": (1, {"x": math.inf})})
    assert json.loads((run.path / "environment.json").read_text()) == {
        "cores": 2,
        "nan": None,
        "list": [1, {"x": None}],
    }
    run.write_text("config.yaml", "MODEL: é\n")
    run.write_text("config.yaml", "other\n")
    assert run.config.read_text(encoding="utf-8") == "other\n"
    assert {path.name for path in run.path.iterdir()} == {".lock", "environment.json", "config.yaml"}
    gone = RunFolder(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="cannot write"):
        gone.write_text("config.yaml", "x")
    with pytest.raises(CheckpointError, match="cannot write"):
        gone.add_record({"epoch": 1})


# ---- folders


def test_a_run_is_never_written_over(tmp_path):
    run = write_run(tmp_path)
    content = run.metrics.read_bytes()
    with pytest.raises(CheckpointError, match=r"exists already.*--resume") as error:
        RunFolder.create(str(tmp_path), "run")
    assert str(run.path) in str(error.value) and run.metrics.read_bytes() == content


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot make the run's folder"):
        RunFolder.create(str(tmp_path / "file"), "run")
    assert RunFolder.create(str(tmp_path / "a" / "b"), "run").path == tmp_path / "a" / "b" / "run"


@pytest.fixture
def runs(tmp_path) -> Path:
    """Runs of different age: one with a checkpoint, one killed before its first, one that has the previous one only."""
    for age, (name, file) in enumerate((("newest", LAST), ("a-middle", "config.yaml"), ("z-oldest", PREVIOUS))):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes(b"x")
        os.utime(tmp_path / name / file, (1_700_000_000 - age, 1_700_000_000 - age))
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").write_text("x")
    return tmp_path


def test_the_newest_run_is_found(runs):
    assert find_run("", str(runs)) == runs / "newest"
    for name, file in (("z-oldest", PREVIOUS), ("a-middle", "config.yaml")):
        os.utime(runs / name / file)
        assert find_run("", str(runs)) == runs / name


def test_a_run_is_found_by_folder_and_by_file(runs):
    assert find_run(str(runs / "a-middle"), "elsewhere") == folder_of(runs / "a-middle") == runs / "a-middle"
    other = runs / "a-middle" / "epoch_0005.pth"
    other.write_bytes(b"y")
    assert find_run(str(other), "elsewhere") == other and folder_of(other) == runs / "a-middle"


@pytest.mark.parametrize("resume", ["empty", "nowhere", "newest/epoch_0001.pth"])
def test_a_run_that_is_not_there(runs, resume):
    with pytest.raises(CheckpointError, match="there is no run and no checkpoint") as error:
        find_run(str(runs / resume), str(runs))
    assert resume in str(error.value)


@pytest.mark.parametrize("folder", ["empty", "nowhere"])
def test_no_run_at_all(runs, folder):
    with pytest.raises(CheckpointError, match=f"there is no run in '.*{folder}'"):
        find_run("", str(runs / folder))


def test_a_folder_that_was_killed_before_its_config_is_taken_over(tmp_path):
    (tmp_path / "run").mkdir()
    for name in (".lock", ".config.yaml.77.tmp"):
        (tmp_path / "run" / name).write_text("")
    assert RunFolder.create(str(tmp_path), "run").path == tmp_path / "run"


def test_what_killed_processes_left_is_cleared_away(tmp_path):
    run = write_run(tmp_path)
    for name in (".last.pth.123.tmp", ".config.yaml.77.tmp"):
        (run.path / name).write_text("half")
    run.close()
    RunFolder.open(run.path, 5)
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", "metrics.jsonl"]


@pytest.mark.parametrize("cut", ["心".encode()[:2], '{"epoch": 4, "name": "心脏"}'.encode()[:-1]])
def test_a_line_cut_within_a_letter_is_dropped(tmp_path, cut):
    run = write_run(tmp_path, 3)
    run.close()
    with run.metrics.open("ab") as file:
        file.write(cut)
    assert [row["epoch"] for row in RunFolder.open(run.path, 9).history] == [1, 2, 3]


def test_a_damaged_line_costs_no_other(tmp_path, caplog):
    run = write_run(tmp_path, 3)
    run.close()
    lines = run.metrics.read_bytes().split(b"\n")
    run.metrics.write_bytes(b"\n".join([lines[0], b"\x00" * 40, lines[2], b'"' + b"[" * 5000, b""]))
    assert [row["epoch"] for row in RunFolder.open(run.path, 9).history] == [1, 3]
    assert "line 2, 4" in caplog.text


def test_a_class_name_with_a_line_separator_is_one_row(tmp_path):
    with RunFolder.create(str(tmp_path), "run") as run:
        run.add_record({"epoch": 1, "per_class": [{"name": "a\u2028b"}]})
    assert RunFolder.open(run.path, 1).history == run.history


# ---- names


def test_runs_of_the_same_second_get_names_of_their_own(tmp_path):
    names = [RunFolder.create_numbered(str(tmp_path), "a-1").path.name for _ in range(3)]
    assert names == ["a-1", "a-1-2", "a-1-3"]


def test_processes_that_begin_at_once_get_names_of_their_own(tmp_path):
    code = "import sys; from utils.runs.folder import RunFolder\n"
    code += "print('here', flush=True); sys.stdin.readline()\n"
    code += "run = RunFolder.create_numbered(sys.argv[1], 'run'); print(run.path.name, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(6)]
    assert {process.stdout.readline() for process in processes} == {"here\n"}
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    names = sorted(process.stdout.readline().strip() for process in processes)
    for process in processes:
        process.communicate()
    assert names == ["run", "run-2", "run-3", "run-4", "run-5", "run-6"]


def test_a_file_of_the_runs_name(tmp_path):
    (tmp_path / "run").write_text("x")
    for create in (RunFolder.create, RunFolder.create_numbered):
        with pytest.raises(CheckpointError, match="there is a file of this name"):
            create(str(tmp_path), "run")
