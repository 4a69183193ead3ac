"""25 SIGKILLs at random times: the run ends as the undisturbed one, and no checkpoint is ever unreadable."""

import random
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the harness forks and kills process groups")

KILLS, SHORT = 25, {"TRAIN.epochs": 2}


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_runs_end_as_the_undisturbed_one(tmp_path, harness, workers):
    harness.write_phantom(tmp_path / "data", 60, 64)
    settings = SHORT | {"DATA.num_workers": workers}
    rng, kills, steps, runs = random.Random(workers), 0, [], 0
    wanted = KILLS * 3 // 5 if workers == 0 else KILLS * 2 // 5
    span = harness.undisturbed(tmp_path / "data", tmp_path / "whole", settings)
    while kills < wanted:
        folder = tmp_path / f"killed{runs}"
        outcome = harness.killed(tmp_path / "data", folder, settings, min(8, wanted - kills), span, rng)
        assert outcome.failures == [] and outcome.unreadable == []
        assert harness.differing(tmp_path / "whole", folder) == []
        assert metrics(folder) == metrics(tmp_path / "whole")
        kills, runs, steps = kills + outcome.kills, runs + 1, steps + outcome.steps_at_kill
    print(
        f"{workers} workers: {kills} kills in {runs} runs, at steps {steps}: all ended alike, 0 unreadable checkpoints"
    )
    assert kills == wanted


def metrics(folder: Path) -> list[str]:
    """The rows without what the clock put in."""
    import json

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds", "pictures_per_second", "memory_mib")
    return [json.dumps({key: value for key, value in row.items() if key not in clock}) for row in rows]


def test_the_comparison_sees_one_bit(tmp_path, harness):
    import torch

    from utils.checkpoint import save_checkpoint

    for name, value in (("one", 1.0), ("same", 1.0), ("other", 1.0 + 2**-23)):
        (tmp_path / name).mkdir()
        content = {"model": {"w": torch.tensor([value])}, "optimizer": {"state": {0: {"step": 3.0}}}}
        save_checkpoint(content, tmp_path / name / "last.pth")
    assert harness.differing(tmp_path / "one", tmp_path / "same") == []
    assert harness.differing(tmp_path / "one", tmp_path / "other") == ["last.pth.model.w"]
