"""Going on with other settings: said, checked, and in the right place of the epoch."""

from types import SimpleNamespace

import pytest
import torch

from configs.default_config import Config
from configs.errors import CheckpointError
from training.resume import resume


def trainer(batches: int = 6) -> SimpleNamespace:
    state = SimpleNamespace(sums=SimpleNamespace(batches=batches))
    loaded: list = []
    return SimpleNamespace(state=state, loaded=loaded, load_state_dict=loaded.append)


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
