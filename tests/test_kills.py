"""SIGKILLs at random times: the run ends as the undisturbed one, and no checkpoint is ever unreadable."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.waiting import LIMIT_S, wait_until
from utils.runs.folder import RunFolder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the harness forks and kills process groups")

SHORT = {"TRAIN.epochs": 2}


@pytest.mark.parametrize(
    ("workers", "wanted"), [(2, 3), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((0, 15), (2, 10)))]
)
def test_killed_runs_end_as_the_undisturbed_one(tmp_path, harness, workers, wanted):
    harness.write_phantom(tmp_path / "data", 60, 64)
    settings = SHORT | {"DATA.num_workers": workers}
    rng, kills, steps, runs = random.Random(workers), 0, [], 0
    span = harness.undisturbed(tmp_path / "data", tmp_path / "whole", settings)
    while kills < wanted:
        folder = tmp_path / f"killed{runs}"
        outcome = harness.killed(tmp_path / "data", folder, settings, min(8, wanted - kills), span, rng)
        assert outcome.failures == [] and outcome.unreadable == []
        assert harness.differing(tmp_path / "whole", folder) == []
        assert metrics(folder) == metrics(tmp_path / "whole")
        assert steps_of(folder) == steps_of(tmp_path / "whole")
        assert harness.scalars(tmp_path / "logs" / folder.name) == harness.scalars(tmp_path / "logs" / "whole")
        kills, runs, steps = kills + outcome.kills, runs + 1, steps + outcome.steps_at_kill
    print(
        f"{workers} workers: {kills} kills in {runs} runs, at steps {steps}: all ended alike, 0 unreadable checkpoints"
    )
    assert kills == wanted


def metrics(folder: Path) -> list[str]:
    """The rows without what the clock put in."""
    import json

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds", "images_per_second", "data_wait_fraction", "memory_mib")
    return [json.dumps({key: value for key, value in row.items() if key not in clock}) for row in rows]


def steps_of(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Of steps.jsonl, without what the clock put in."""
    rows = RunFolder.read(folder).steps
    return [(step, {tag: x for tag, x in row.items() if not tag.startswith("system/")}) for step, row in rows]


def test_a_run_whose_workers_outlive_it_goes_on_at_once(tmp_path, harness):
    """The training process alone is killed; its workers stand still, with whatever they have inherited."""
    harness.write_phantom(tmp_path / "data", 60, 64)
    settings, folder = SHORT | {"DATA.num_workers": 2}, tmp_path / "killed"
    harness.undisturbed(tmp_path / "data", tmp_path / "whole", settings)
    process = harness.launch(harness.arguments_of(tmp_path / "data", folder, settings), tmp_path / "log.txt")
    try:
        while not steps_so_far(folder):
            assert harness.wait(process, 0.02) is None, (tmp_path / "log.txt").read_text()
        os.killpg(process, signal.SIGSTOP)
        os.kill(process, signal.SIGKILL)
        assert harness.wait(process) == -signal.SIGKILL
        os.killpg(process, 0)  # an error, if no worker were left
        assert RunFolder.read(folder).status.phase == "lost"
        code = harness.wait(harness.launch(["--resume", str(folder)], tmp_path / "log.txt"))
        os.killpg(process, 0)
        assert code == 0, (tmp_path / "log.txt").read_text()
    finally:
        os.killpg(process, signal.SIGKILL)
    assert RunFolder.read(folder).status.phase == "finished"
    assert harness.differing(tmp_path / "whole", folder) == [] and steps_of(folder) == steps_of(tmp_path / "whole")


def steps_so_far(folder: Path) -> int:
    status = RunFolder.read(folder).status if folder.is_dir() else None
    return status.step if status else 0


def hang_in_a_step(location: Path):
    """What a process does first whose first step ends only by an exception; it says when a signal was noted."""

    def patch() -> None:
        from training.loop import TrainingLoop
        from utils.runs.control import Control

        handle = Control._handle

        def handled(control, number, frame) -> None:
            handle(control, number, frame)
            (location / "the signal is noted").touch()

        def hang(*_) -> None:
            (location / "in the step").touch()
            while True:
                time.sleep(0.02)

        Control._handle, TrainingLoop.train_step = handled, hang

    return patch


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_waits_for_the_step_and_the_second_leaves_at_once(tmp_path, harness, number, code):
    harness.write_phantom(tmp_path / "data", 40, 64)
    arguments = harness.arguments_of(tmp_path / "data", tmp_path / "run", {})
    process, ended = harness.launch(arguments, tmp_path / "log.txt", hang_in_a_step(tmp_path)), None
    try:
        for what in ("in the step", "the signal is noted"):
            wait_until((tmp_path / what).exists, what)
            os.kill(process, number)
        ended = harness.wait(process, LIMIT_S)
        assert ended == code, (tmp_path / "log.txt").read_text()
    finally:
        print((tmp_path / "log.txt").read_text())
        if ended is None:
            harness.kill_group(process)
    log = (tmp_path / "log.txt").read_text()
    assert "Traceback" not in log and "stopped by" in log
    assert not (tmp_path / "run" / "last.pth").exists()
    print(f"signal {number}, twice within a step: exit code {code} at once")


def test_the_comparison_sees_one_bit(tmp_path, harness):
    import torch

    from utils.checkpoint import save_checkpoint

    for name, value in (("one", 1.0), ("same", 1.0), ("other", 1.0 + 2**-23)):
        (tmp_path / name).mkdir()
        content = {"model": {"w": torch.tensor([value])}, "optimizer": {"state": {0: {"step": 3.0}}}}
        save_checkpoint(content, tmp_path / name / "last.pth")
    assert harness.differing(tmp_path / "one", tmp_path / "same") == []
    assert harness.differing(tmp_path / "one", tmp_path / "other") == ["last.pth.model.w"]
