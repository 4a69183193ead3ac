"""Interruption and resume, which change no bit."""

import copy
import signal
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.loaders import BadPictures, EpochBatches, Labels, PictureDataset, PictureLoader
from data.picture_files import FileReader
from data.sample import Catalogue, Sample
from data.transforms import LightAugmentation, Preprocess
from tests.training.toys import (
    CLASSES,
    SIDE,
    differences,
    fit,
    full_model,
    make_trainer,
    snapshot,
)
from training.trainer import Trainer
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.interrupt import Interrupted

RESUME_EPOCHS, RESUME_STEPS = 3, 4  # 14 pictures in batches of 2, windows of 2, the last one short


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("films")
    for index in range(20):
        pixels = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        assert cv2.imwrite(str(root / f"{index:02d}.png"), pixels)
    return root


def make_loaders(root: Path) -> tuple[PictureLoader, PictureLoader]:
    """14 augmented training pictures, and 6 to validate on."""
    names = tuple(f"{index:02d}.png" for index in range(20))
    rng = np.random.default_rng(1)
    target, mask = (rng.random((20, CLASSES)) < 0.5).astype(np.float32), rng.random((20, CLASSES)) < 0.9
    target[14:], mask[14:] = np.arange(6)[:, None] % 2, True
    samples = tuple(Sample(name, row) for name, row in zip(names, target))
    catalogue = Catalogue(("a", "b", "c"), samples, FileReader(root, names))

    def loader(indices, augmentation) -> PictureLoader:
        preprocess = Preprocess((SIDE, SIDE), 1, [0.5], [0.3], augmentation=augmentation)
        batches = EpochBatches(indices, 2, augmentation is not None, 11)
        return PictureLoader(PictureDataset(catalogue, preprocess, 11), Labels(target, mask), batches, BadPictures(0))

    return loader(np.arange(14), LightAugmentation()), loader(np.arange(14, 20), None)


def resumable(seed: int, schedule: str = "cosine", epochs: int = RESUME_EPOCHS) -> Trainer:
    return make_trainer(
        full_model(seed),
        schedule=schedule,
        steps=RESUME_EPOCHS * RESUME_STEPS,
        warmup=3,
        ema=0.9,
        epochs=epochs,
        accumulation_steps=2,
    )


def untimed(records: list[dict]) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in ("seconds", "pictures_per_second", "memory_mib")} for r in records]


@pytest.fixture(scope="module", params=["cosine", "plateau"])
def undisturbed(request, pictures):
    """(schedule, records, final state, states after each step) of a run that nobody stops."""
    trainer, after_step = resumable(0, request.param), {}
    trainer.on_step = lambda step, figures: after_step.setdefault(step, copy.deepcopy(trainer.model.state_dict()))
    torch.manual_seed(99)
    records = fit(trainer, *make_loaders(pictures))
    assert trainer.state.global_step == RESUME_EPOCHS * RESUME_STEPS
    return request.param, untimed(records), {**snapshot(trainer), "random": trainer.state_dict()["random"]}, after_step


def stopped_run(pictures, schedule: str, path: Path, should_stop) -> tuple[list[dict], Interrupted]:
    """Run until should_stop(trainer), which also sees when a validation picture is read."""
    trainer, records = resumable(0, schedule), []
    trainer.should_stop = partial(should_stop, trainer)
    trainer.save = lambda t: save_checkpoint(t.state_dict(), path)
    trainer.on_epoch = lambda _, record, is_best: records.append({**record, "is_best": is_best})
    torch.manual_seed(99)
    with pytest.raises(Interrupted) as stop:
        trainer.fit(*make_loaders(pictures))
    return records, stop.value


def go_on(pictures, schedule: str, path: Path) -> tuple[list[dict], Trainer]:
    trainer = resumable(5, schedule)
    torch.manual_seed(123)
    trainer.load_state_dict(load_checkpoint(path))
    return fit(trainer, *make_loaders(pictures)), trainer


@pytest.mark.parametrize("step", range(1, RESUME_EPOCHS * RESUME_STEPS + 1))
def test_a_stopped_and_resumed_run_changes_no_bit(pictures, undisturbed, step, tmp_path):
    schedule, expected_records, expected, after_step = undisturbed
    path = tmp_path / "last.pth"
    number = signal.SIGTERM if step % 2 else signal.SIGINT
    before, stop = stopped_run(pictures, schedule, path, lambda t: number * (t.state.global_step >= step))
    assert stop.exit_code == 128 + number and len(before) == (step - 1) // RESUME_STEPS
    saved = load_checkpoint(path)
    assert saved["progress"]["global_step"] == step and differences(saved["model"], after_step[step]) == []
    after, trainer = go_on(pictures, schedule, path)
    assert untimed(before + after) == expected_records
    assert differences(expected, {**snapshot(trainer), "random": trainer.state_dict()["random"]}) == []


@pytest.mark.parametrize("epoch", range(1, RESUME_EPOCHS + 1))
@pytest.mark.parametrize("when", ["evaluating", "epoch_end"])
def test_a_stop_outside_of_training_steps(pictures, undisturbed, epoch, when, tmp_path):
    """What is saved are the model's own weights, never the averaged ones that it is evaluated with."""
    schedule, expected_records, expected, after_step = undisturbed
    path = tmp_path / "last.pth"

    def should_stop(trainer: Trainer) -> int:
        evaluating = not trainer.model.training and trainer.state.global_step == epoch * RESUME_STEPS
        done = trainer.state.epoch == epoch
        return signal.SIGINT * (evaluating if when == "evaluating" else done)

    before, stop = stopped_run(pictures, schedule, path, should_stop)
    assert stop.exit_code == 130 and len(before) == epoch - (when == "evaluating")
    saved = load_checkpoint(path)
    assert differences(saved["model"], after_step[saved["progress"]["global_step"]]) == []
    assert differences(saved["model"], saved["ema"]["shadow"]) != []
    after, trainer = go_on(pictures, schedule, path)
    assert untimed(before + after) == expected_records
    assert differences(expected, {**snapshot(trainer), "random": trainer.state_dict()["random"]}) == []


def test_resume_at_the_end_trains_no_more(pictures, tmp_path):
    trainer = resumable(0)
    fit(trainer, *make_loaders(pictures))
    save_checkpoint(trainer.state_dict(), tmp_path / "last.pth")
    records, resumed = go_on(pictures, "cosine", tmp_path / "last.pth")
    assert records == [] and differences(snapshot(trainer), snapshot(resumed)) == []
