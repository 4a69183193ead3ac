"""steps.jsonl: plain lines, cut back by a resumed run, whole after a disk that was full."""

import json
import math
import os

import pytest

from utils.runs.steps import StepLog, read_steps


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def test_a_step_is_one_line_and_nan_is_null(tmp_path):
    log = StepLog(tmp_path)
    log.add(10, {"train/loss": 0.5, "system/images_per_second": math.nan})
    log.add(20, {"train/loss": 0.25})
    assert rows(tmp_path) == [
        {"step": 10, "train/loss": 0.5, "system/images_per_second": None},
        {"step": 20, "train/loss": 0.25},
    ]
    assert read_steps(tmp_path) == [(10, {"train/loss": 0.5}), (20, {"train/loss": 0.25})]


@pytest.mark.parametrize(("last", "kept"), [(0, []), (2, [1, 2]), (3, [1, 2, 3]), (9, [1, 2, 3, 4, 5])])
def test_a_resumed_run_forgets_the_steps_after_its_checkpoint(tmp_path, last, kept):
    log = StepLog(tmp_path)
    for step in range(1, 6):
        log.add(step, {"train/loss": float(step)})
    with log.path.open("a") as file:
        file.write('{"step": 6, "train/lo')  # by a process that was killed
    again = StepLog(tmp_path)
    again.go_on_after(last)
    again.add(last + 1, {"train/loss": -1.0})
    assert [row["step"] for row in rows(tmp_path)] == [*kept, last + 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["steps.jsonl"]


def test_a_run_without_steps_has_none(tmp_path):
    StepLog(tmp_path).go_on_after(3)
    assert read_steps(tmp_path) == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("can_truncate", [True, False])
def test_what_a_full_disk_refused_is_written_later_and_no_line_is_cut(tmp_path, monkeypatch, can_truncate):
    log, write = StepLog(tmp_path), os.write
    log.add(1, {"train/loss": 1.0})

    def half(descriptor: int, content: bytes) -> int:
        write(descriptor, content[:7])
        raise OSError(28, "No space left on device")

    def refuse(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.runs.steps.os.write", half)
    if not can_truncate:
        monkeypatch.setattr("utils.runs.steps._cut", refuse)
    for step in (2, 3):
        with pytest.raises(OSError, match="No space"):
            log.add(step, {"train/loss": float(step)})
        assert [row.step for row in read_steps(tmp_path)] == [1]
    monkeypatch.undo()
    log.add(4, {"train/loss": 4.0})
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]


def test_what_is_no_row_is_left_out(tmp_path, caplog):
    (tmp_path / "steps.jsonl").write_bytes(
        b'{"step": 1, "a": 2}\n[3]\n\x00\x00\n{"step": "x"}\n{"step": 2, "a": "b"}\n{"st'
    )
    assert read_steps(tmp_path) == [(1, {"a": 2.0}), (2, {})] and "line 2, 3" in caplog.text
