"""Going on with other settings: said, checked, and in the right place of the epoch and of the schedule."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from configs.default_config import Config
from configs.errors import CheckpointError
from training import resume as module
from training.optim import SCHEDULES, LearningRateSchedule

IMAGES = 96


def resume(one: SimpleNamespace, content: dict, now: Config, images: int = IMAGES) -> None:
    module.resume(one, content, now, images)


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)


def trainer(batches: int = 6, epoch: int = 0, updates: int = 0, schedule=None) -> SimpleNamespace:
    """A learner that notes what it would load; its state is what the checkpoint would bring."""
    state = SimpleNamespace(epoch=epoch, sums=SimpleNamespace(batches=batches))
    loaded: list = []
    schedule = schedule or LearningRateSchedule(sgd(), "cosine", 1.0, 600)
    ema = SimpleNamespace(updates=updates)
    return SimpleNamespace(state=state, loaded=loaded, load_state_dict=loaded.append, schedule=schedule, ema=ema)


def config(*overrides: str) -> Config:
    return Config.from_overrides(["TRAIN.batch_size=8", "DATA.class_names=[a, b]", *overrides])


def checkpoint(of: Config) -> dict:
    return {"config": of.model_dump(mode="json"), "class_names": of.DATA.class_names, "model": {}}


def test_nothing_is_said_where_nothing_differs(caplog):
    caplog.set_level("INFO")
    resume(trainer(), checkpoint(config()), config())
    assert not caplog.records


def test_what_differs_is_said_by_whether_it_matters(caplog):
    caplog.set_level("INFO")
    one = trainer()
    resume(one, checkpoint(config()), config("TRAIN.learning_rate=0.5", "LOGGING.print_freq=3", "TRAIN.seed=4"))
    mattering, other = caplog.records
    assert mattering.levelname == "WARNING" and "will differ" in mattering.message
    assert "TRAIN.learning_rate 0.0001 → 0.5; TRAIN.seed 0 → 4" in mattering.message
    assert other.levelname == "INFO" and "without effect" in other.message and "print_freq 10 → 3" in other.message
    assert len(one.loaded) == 1 and one.state.sums.batches == 6


@pytest.mark.parametrize("names", [["b", "a"], ["a"], ["a", "b", "c"]])
def test_other_classes_are_refused_before_anything_is_loaded(names):
    one, now = trainer(), config()
    now.DATA.class_names = names
    with pytest.raises(CheckpointError, match=r"classes a, b.*MODEL\.init_from"):
        resume(one, checkpoint(config()), now)
    assert one.loaded == []


HIERARCHICAL, GROUPS = "MODEL.hierarchical=true", "MODEL.coarse_groups={one: [a], both: [a, b]}"


@pytest.mark.parametrize(
    "groups",
    [
        "MODEL.coarse_groups={both: [a, b], one: [a]}",
        "MODEL.coarse_groups={one: [b], both: [a, b]}",
        "MODEL.coarse_groups={once: [a], both: [a, b]}",
        "MODEL.coarse_groups=null",
    ],
)
def test_other_coarse_classes_are_refused_before_anything_is_loaded(groups):
    one = trainer()
    with pytest.raises(
        CheckpointError, match=r"coarse classes one \(a\), both \(a, b\), MODEL\.coarse_groups now says"
    ):
        resume(one, checkpoint(config(HIERARCHICAL, GROUPS)), config(HIERARCHICAL, groups))
    assert one.loaded == []


def test_coarse_classes_that_are_the_same_go_on():
    same = "MODEL.coarse_groups={one: [a], both: [b, a]}"  # the findings of a group have no order
    for before, now in ((GROUPS, same), ("MODEL.coarse_groups=null", "MODEL.coarse_groups=null")):
        one = trainer()
        resume(one, checkpoint(config(HIERARCHICAL, before)), config(HIERARCHICAL, now))
        assert len(one.loaded) == 1
    one = trainer()  # where no output is coarse they mean nothing
    resume(one, checkpoint(config(GROUPS)), config("MODEL.coarse_groups=null"))
    assert len(one.loaded) == 1


@pytest.mark.parametrize("forged", [{"one": 3}, [["a"]], 7, {"one": [["a"]]}, {"one": torch.zeros(2)}], ids=str)
def test_forged_coarse_classes_are_refused(forged):
    content = checkpoint(config(HIERARCHICAL, GROUPS))
    content["config"]["MODEL"]["coarse_groups"] = forged
    one = trainer()
    with pytest.raises(CheckpointError, match=r"damaged|has the coarse classes"):
        resume(one, content, config(HIERARCHICAL, GROUPS))
    assert one.loaded == []


@pytest.mark.parametrize(("size", "batches", "again"), [(16, 3, 0), (12, 4, 0), (10, 4, 8), (32, 1, 16), (64, 0, 48)])
def test_another_batch_size_goes_on_at_the_same_image(size, batches, again, caplog):
    one = trainer(6)  # 48 images
    resume(one, checkpoint(config()), config(f"TRAIN.batch_size={size}"))
    assert one.state.sums.batches == batches
    assert f"image {48 - again}; {again} images are seen twice" in caplog.text


def test_at_the_beginning_of_an_epoch_there_is_no_place_to_move(caplog):
    one = trainer(0)
    resume(one, checkpoint(config()), config("TRAIN.batch_size=3"))
    assert one.state.sums.batches == 0 and "seen twice" not in caplog.text


def endless() -> dict:
    nested: dict = {}
    nested["MODEL"] = nested
    return nested


@pytest.mark.parametrize(
    ("entry", "forged"),
    [
        ("config", None),
        ("config", [1]),
        ("config", endless()),
        ("config", {"TRAIN": {"batch_size": torch.zeros(3)}}),
        ("config", {"TRAIN": {"batch_size": "8"}}),
        ("config", {"TRAIN": {"batch_size": 0}}),
        ("config", {"TRAIN": 3}),
        ("class_names", 7),
        ("class_names", [1, 2]),
        ("class_names", torch.zeros(2)),
        ("class_names", None),
    ],
)
def test_forged_descriptions_are_refused_before_anything_is_loaded(entry, forged):
    one = trainer()
    with pytest.raises(CheckpointError, match=r"settings in this checkpoint are damaged|has the classes (1, 2|\?)"):
        resume(one, checkpoint(config()) | {entry: forged}, config())
    assert one.loaded == []


# ---- steps of another size, or more of them: the schedule goes on at the share that is done

BEFORE = {"TRAIN.epochs": 10, "TRAIN.batch_size": 8, "TRAIN.gradient_accumulation_steps": 2}  # 12 batches, 6 steps
CHANGES = {
    "nothing": ({}, IMAGES),
    "half the batch": ({"TRAIN.batch_size": 4}, IMAGES),
    "twice the batch": ({"TRAIN.batch_size": 16}, IMAGES),
    "an odd batch": ({"TRAIN.batch_size": 7}, IMAGES),
    "no accumulation": ({"TRAIN.gradient_accumulation_steps": 1}, IMAGES),
    "more accumulation": ({"TRAIN.gradient_accumulation_steps": 5}, IMAGES),
    "batch and accumulation": ({"TRAIN.batch_size": 32, "TRAIN.gradient_accumulation_steps": 1}, IMAGES),
    "twice the epochs": ({"TRAIN.epochs": 20}, IMAGES),
    "fewer epochs": ({"TRAIN.epochs": 9}, IMAGES),
    "all of these": ({"TRAIN.epochs": 15, "TRAIN.batch_size": 4, "TRAIN.gradient_accumulation_steps": 3}, IMAGES),
    "fewer images": ({}, 64),
    "more images": ({"TRAIN.batch_size": 16}, 160),
}
# (epochs that are done, batches of the next one) of 12 batches; the warm-up takes two epochs
POINTS = {"warm-up": (0, 8), "its end": (2, 0), "its last step": (1, 10), "middle": (4, 6), "last epoch": (8, 2)}
WARMUP, PEAK, LOWEST = 2, 1.0, 0.05


def made(kind: str, values: dict, images: int) -> tuple[LearningRateSchedule, int, int]:
    """(the schedule of such a run, steps of its epochs, batches of its epochs), as training/builder.py makes them."""
    batches = math.ceil(images / values["TRAIN.batch_size"])
    steps = math.ceil(batches / values["TRAIN.gradient_accumulation_steps"])
    schedule = LearningRateSchedule(sgd(), kind, PEAK, steps * values["TRAIN.epochs"], WARMUP * steps, LOWEST)
    return schedule, steps, batches


def analytic(kind: str, epochs_done: float, epochs: int, cut: float, steps: int) -> float:
    """The learning rate where so many epochs are done, by the formulas of the papers; steps: in an epoch."""
    if kind == "onecycle":
        rise = math.floor(0.3 * epochs * steps) / steps
        if epochs_done < rise:
            return PEAK / 25 + (PEAK - PEAK / 25) * (1 - math.cos(math.pi * epochs_done / rise)) / 2
        fall = (epochs_done - rise) / (epochs - rise)
        return PEAK / 1e4 + (PEAK - PEAK / 1e4) * (1 + math.cos(math.pi * fall)) / 2
    if epochs_done < WARMUP:
        return PEAK * (epochs_done + 1 / steps) / WARMUP
    if kind == "cosine":
        share = (epochs_done - WARMUP) / (epochs - WARMUP)
        return LOWEST + (PEAK - LOWEST) * (1 + math.cos(math.pi * share)) / 2
    return PEAK * cut


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_schedule_goes_on_at_the_share_that_is_done(kind, change, point):
    (epoch, batch), (values, images) = POINTS[point], CHANGES[change]
    old, old_steps, old_batches = made(kind, BEFORE, IMAGES)
    done = epoch * old_steps + batch // BEFORE["TRAIN.gradient_accumulation_steps"]
    old.load_state_dict({"step_number": done, "cut": 0.09 if kind == "plateau" else 1.0, "best": 0.5, "waited": 1})
    now = BEFORE | values
    new, steps, batches = made(kind, now, images)
    new.load_state_dict(old.state_dict())
    one = trainer(batch, epoch, done, new)
    content = checkpoint(config(*(f"{key}={value}" for key, value in BEFORE.items())))
    content["training_data"] = {"of": IMAGES}
    resume(one, content, config(*(f"{key}={value}" for key, value in now.items())), images)

    assert new.cut == old.cut and new.best == 0.5 and new.waited == 1
    remaining = math.ceil((batches - one.state.sums.batches) / now["TRAIN.gradient_accumulation_steps"])
    assert new.step_number == (epoch + 1) * steps - remaining, "each epoch ends where it ends in a run of now"
    # At the same share, but for the images that are seen again (less than a batch) and the rest of a step.
    share = epoch + batch / old_batches
    late = share - new.step_number / steps
    assert -1 / steps < late < 1 / steps + 1 / batches
    assert one.ema.updates == new.step_number
    for step in range(new.step_number, now["TRAIN.epochs"] * steps):
        expected = analytic(kind, step / steps, now["TRAIN.epochs"], old.cut, steps)
        assert new.learning_rate == pytest.approx(expected, rel=1e-12)
        assert {group["lr"] for group in new.optimizer.param_groups} == {new.learning_rate}
        new.step()


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_run_whose_steps_stay_as_they_are_is_not_moved(kind):
    """Windows without labels are no steps: such a run is a little behind, and stays so."""
    schedule, *_ = made(kind, BEFORE, IMAGES)
    schedule.load_state_dict({"step_number": 21, "cut": 1.0, "best": 0.5, "waited": 1})
    one = trainer(6, 4, 20, schedule)
    now = config(*(f"{key}={value}" for key, value in BEFORE.items()), "TRAIN.learning_rate=0.5")
    resume(one, checkpoint(config(*(f"{key}={value}" for key, value in BEFORE.items()))), now)
    assert (schedule.step_number, one.state.sums.batches, one.ema.updates) == (21, 6, 20)


def test_the_averages_warm_up_goes_on_at_the_same_share(caplog):
    """An average that began later than the run keeps its own share."""
    schedule, *_ = made("cosine", BEFORE | {"TRAIN.batch_size": 4}, IMAGES)
    schedule.load_state_dict({"step_number": 24, "cut": 1.0, "best": 0.5, "waited": 1})
    one = trainer(0, 4, 10, schedule)
    old = [f"{key}={value}" for key, value in BEFORE.items()]
    resume(one, checkpoint(config(*old)), config(*old, "TRAIN.batch_size=4"))
    assert schedule.step_number == 48 and one.ema.updates == 20
    assert "the learning rate goes on at 40.0 % of the training, step 48 of 120" in caplog.text


def test_fewer_epochs_than_are_done_is_told(caplog):
    resume(trainer(0, 5), checkpoint(config()), config("TRAIN.epochs=3", "TRAIN.warmup_epochs=1"))
    assert "5 epochs are done, and TRAIN.epochs is 3: nothing is trained" in caplog.text


def test_a_validation_that_was_interrupted_is_not_trained_again():
    """All 12 batches are done, the last one of them short."""
    one = trainer(12, 0)
    resume(one, checkpoint(config()), config("TRAIN.batch_size=7"), 90)
    assert one.state.sums.batches == 13
