"""Files of abandoned epochs are set aside; the best of the epochs that go on is kept, or found again."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.runs.trajectory import Trajectory

SCORES = (0.5, 0.9, 0.7, 0.8)  # by epoch


@dataclass
class Standing:
    epoch: int
    global_step: int
    best_epoch: int
    best_score: float


def standing(epoch: int, steps: int | None = None) -> Standing:
    """After so many epochs of ten steps, or at a step within the next one."""
    best = max(range(epoch), key=lambda index: SCORES[index], default=-1)
    return Standing(epoch, 10 * epoch if steps is None else steps, best, SCORES[best] if epoch else -torch.inf)


def row(epoch: int) -> dict:
    return {"epoch": epoch, "mean_auroc": SCORES[epoch - 1], "val_loss": 0.3}


def save(path: Path, epoch: int, batches: int = 0, average: bool = False) -> None:
    weights = {"weight": torch.tensor([float(epoch)])}
    progress = {"epoch": epoch, "global_step": 10 * epoch + batches, "sums": {"batches": batches}}
    shadow = {"updates": 3, "shadow": {"weight": torch.tensor([-float(epoch)])}} if average else None
    save_checkpoint({"model": weights, "ema": shadow, "progress": progress}, path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run of four epochs, each kept, the second the best."""
    for epoch in range(1, 5):
        save(tmp_path / f"epoch_{epoch:04d}.pth", epoch, average=epoch == 2)
    save(tmp_path / "previous.pth", 3)
    save(tmp_path / "last.pth", 4)
    save_checkpoint({"model": {"weight": torch.tensor([-2.0])}, "metrics": row(2)}, tmp_path / "best_model.pth")
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_newest_checkpoint_abandons_nothing(folder):
    before = names(folder)
    assert Trajectory(folder, standing(4), is_newest=True).set_aside_others() == [] and names(folder) == before
    assert Trajectory(folder, standing(4), is_newest=False).set_aside_others() == [] and names(folder) == before


def test_what_came_later_is_set_aside_and_last_goes_last(folder, caplog):
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    found = Trajectory(folder, standing(1), is_newest=False).set_aside_others()
    gone = ["epoch_0002.pth", "epoch_0003.pth", "epoch_0004.pth", "best_model.pth", "previous.pth", "last.pth"]
    assert found == gone and names(folder) == {"epoch_0001.pth", *(f"{name}.abandoned" for name in gone)}
    assert all((folder / f"{name}.abandoned").read_bytes() == content[name] for name in gone)
    assert all(f"{name}' does not belong to the run resumed from step 10" in caplog.text for name in gone)


def test_nothing_that_was_set_aside_is_written_over(folder):
    for _ in range(2):
        assert Trajectory(folder, standing(3), is_newest=False).set_aside_others() == ["epoch_0004.pth", "last.pth"]
        save(folder / "epoch_0004.pth", 4)
        save(folder / "last.pth", 4)
    assert names(folder) >= {"last.pth.abandoned", "last.pth.2.abandoned"}


def test_a_best_of_before_stays(folder):
    assert "best_model.pth" not in Trajectory(folder, standing(2), is_newest=False).set_aside_others()


def test_a_best_of_the_same_epoch_of_another_run_does_not(folder):
    """By its score: from an abandoned checkpoint on again, over what was trained since."""
    other = standing(3)
    other.best_score = 0.91
    assert "best_model.pth" in Trajectory(folder, other, is_newest=False).set_aside_others()


def test_a_run_killed_between_best_and_last(folder):
    """best_model.pth is of the epoch that is trained again."""
    (folder / "last.pth").unlink()
    save(folder / "last.pth", 1, batches=4)
    found = Trajectory(folder, standing(1, steps=14), is_newest=True).set_aside_others()
    assert "best_model.pth" in found and "last.pth" not in found


def test_a_damaged_file_stays_for_those_who_say_so(folder, caplog):
    for name in ("best_model.pth", "last.pth"):
        (folder / name).write_bytes((folder / name).read_bytes()[:200])
    found = Trajectory(folder, standing(1), is_newest=False).set_aside_others()
    assert "best_model.pth" not in found and "last.pth" not in found and "previous.pth" in found
    assert "best_model.pth" in caplog.text


@pytest.mark.parametrize(
    ("at", "best", "weight"),
    [(1, 1, 1.0), (2, 2, -2.0), (3, 2, -2.0)],  # of epoch 2 the average
)
def test_the_best_is_written_again_from_the_end_of_its_epoch(folder, at, best, weight):
    (folder / "best_model.pth").unlink()
    history = [row(epoch) for epoch in range(1, at + 1)]
    assert Trajectory(folder, standing(at), is_newest=False).restore_best({"class_names": ["a"]}, history)
    content = load_checkpoint(folder / "best_model.pth")
    assert content["model"]["weight"].tolist() == [weight] and content["class_names"] == ["a"]
    assert content["metrics"] == row(best)


@pytest.mark.parametrize("damage", ["not kept", "within the next epoch", "no row"])
def test_a_best_that_nothing_holds_is_not_made_up(folder, damage):
    (folder / "best_model.pth").unlink()
    (folder / "epoch_0002.pth").unlink()
    if damage == "within the next epoch":
        save(folder / "epoch_0002.pth", 2, batches=3)
    if damage == "no row":
        save(folder / "epoch_0002.pth", 2)
    history = [row(1), row(3)] if damage == "no row" else [row(1), row(2), row(3)]
    assert not Trajectory(folder, standing(3), is_newest=False).restore_best({}, history)
    assert not (folder / "best_model.pth").exists()


def test_the_best_by_another_figure_is_known_by_its_score(folder):
    """best_model.pth is of epoch 2, whose loss is the standing's score: it is this run's."""
    by_loss = Standing(4, 40, 1, -0.3)
    assert Trajectory(folder, by_loss, is_newest=False, best_by="val_loss").set_aside_others() == []
    other = Trajectory(folder, Standing(4, 40, 1, -0.2), is_newest=False, best_by="val_loss")
    assert other.set_aside_others() == ["best_model.pth"]
