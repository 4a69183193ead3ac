"""Interruption and resume, which change no bit."""

import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from configs.errors import CheckpointError
from data.loading.loaders import EpochBatchSampler, ImageDataset, ImageLoader, Labels, UnreadableImages
from data.sources.image_files import FileReader
from data.study import IMAGE, DatasetIndex, Study
from data.transforms.images import LightAugmentation, Preprocess
from tests.training.toys import (
    CLASSES,
    SIDE,
    Notes,
    TensorLoader,
    differences,
    fit,
    full_model,
    make_trainer,
    random_data,
    snapshot,
)
from training.loop import TrainingLoop
from training.precision import Precision
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.runs.control import Interrupted

RESUME_EPOCHS, RESUME_STEPS = 3, 4  # 14 images in batches of 2, windows of 2, the last one short


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for index in range(20):
        pixels = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        assert cv2.imwrite(str(root / f"{index:02d}.png"), pixels)
    return root


def make_loaders(root: Path) -> tuple[ImageLoader, ImageLoader]:
    """14 augmented training images, and 6 to validate on."""
    names = tuple(f"{index:02d}.png" for index in range(20))
    rng = np.random.default_rng(1)
    target, mask = (rng.random((20, CLASSES)) < 0.5).astype(np.float32), rng.random((20, CLASSES)) < 0.9
    target[14:], mask[14:] = np.arange(6)[:, None] % 2, True
    studies = tuple(Study(name, {IMAGE: name}, row) for name, row in zip(names, target))
    dataset_index = DatasetIndex(("a", "b", "c"), studies, FileReader(root, names))

    def loader(indices, augmentation) -> ImageLoader:
        preprocess = Preprocess((SIDE, SIDE), 1, [0.5], [0.3], augmentation=augmentation)
        batches = EpochBatchSampler(indices, 2, augmentation is not None, 11)
        return ImageLoader(
            ImageDataset(dataset_index, preprocess, 11), Labels(target, mask), batches, UnreadableImages(0)
        )

    return loader(np.arange(14), LightAugmentation()), loader(np.arange(14, 20), None)


def resumable(seed: int, schedule: str = "cosine", epochs: int = RESUME_EPOCHS, **options) -> TrainingLoop:
    return make_trainer(
        full_model(seed),
        schedule=schedule,
        steps=RESUME_EPOCHS * RESUME_STEPS,
        warmup=3,
        ema=0.9,
        epochs=epochs,
        accumulation_steps=2,
        **options,
    )


def untimed(records: list[dict]) -> list[dict]:
    return [
        {k: v for k, v in r.items() if k not in ("seconds", "images_per_second", "data_wait_fraction", "memory_mib")}
        for r in records
    ]


@pytest.fixture(scope="module", params=["cosine", "plateau"])
def undisturbed(request, images):
    """(schedule, records, final state, states after each step) of a run that nobody stops."""
    after_step = {}

    def note(step: int, figures: dict) -> None:
        after_step[step] = copy.deepcopy(trainer.model.state_dict())

    trainer = resumable(0, request.param, listeners=[Notes(on_step=note)])
    torch.manual_seed(99)
    records = fit(trainer, *make_loaders(images))
    assert trainer.state.global_step == RESUME_EPOCHS * RESUME_STEPS
    return (
        request.param,
        untimed(records),
        {**snapshot(trainer), "random": trainer.learner.state_dict()["random"]},
        after_step,
    )


def stopped_run(images, schedule: str, path: Path, should_stop) -> tuple[list[dict], Interrupted]:
    """Run until should_stop(trainer), which also sees when a validation image is read."""
    notes = Notes(save=lambda content: save_checkpoint(content, path))
    trainer = resumable(0, schedule, listeners=[notes], should_stop=lambda: should_stop(trainer))
    torch.manual_seed(99)
    with pytest.raises(Interrupted) as stop:
        trainer.fit(*make_loaders(images))
    return notes.records, stop.value


def go_on(images, schedule: str, path: Path) -> tuple[list[dict], TrainingLoop]:
    trainer = resumable(5, schedule)
    torch.manual_seed(123)
    trainer.learner.load_state_dict(load_checkpoint(path))
    return fit(trainer, *make_loaders(images)), trainer


@pytest.mark.parametrize("step", range(1, RESUME_EPOCHS * RESUME_STEPS + 1))
def test_a_stopped_and_resumed_run_changes_no_bit(images, undisturbed, step, tmp_path):
    schedule, expected_records, expected, after_step = undisturbed
    path = tmp_path / "last.pth"
    request, code = ("pause", 143) if step % 2 else ("stop", 130)
    before, stop = stopped_run(images, schedule, path, lambda t: request if t.state.global_step >= step else None)
    assert stop.exit_code == code and len(before) == (step - 1) // RESUME_STEPS
    saved = load_checkpoint(path)
    assert saved["progress"]["global_step"] == step and differences(saved["model"], after_step[step]) == []
    after, trainer = go_on(images, schedule, path)
    assert untimed(before + after) == expected_records
    assert differences(expected, {**snapshot(trainer), "random": trainer.learner.state_dict()["random"]}) == []


@pytest.mark.parametrize("epoch", range(1, RESUME_EPOCHS + 1))
@pytest.mark.parametrize("when", ["evaluating", "epoch_end"])
def test_a_stop_outside_of_training_steps(images, undisturbed, epoch, when, tmp_path):
    """What is saved are the model's own weights, never the averaged ones that it is evaluated with."""
    schedule, expected_records, expected, after_step = undisturbed
    path = tmp_path / "last.pth"

    def should_stop(trainer: TrainingLoop) -> str | None:
        evaluating = not trainer.model.training and trainer.state.global_step == epoch * RESUME_STEPS
        done = trainer.state.epoch == epoch
        return "stop" if (evaluating if when == "evaluating" else done) else None

    before, stop = stopped_run(images, schedule, path, should_stop)
    assert stop.exit_code == 130 and len(before) == epoch - (when == "evaluating")
    saved = load_checkpoint(path)
    assert differences(saved["model"], after_step[saved["progress"]["global_step"]]) == []
    assert differences(saved["model"], saved["ema"]["shadow"]) != []
    after, trainer = go_on(images, schedule, path)
    assert untimed(before + after) == expected_records
    assert differences(expected, {**snapshot(trainer), "random": trainer.learner.state_dict()["random"]}) == []


def test_resume_at_the_end_trains_no_more(images, tmp_path):
    trainer = resumable(0)
    fit(trainer, *make_loaders(images))
    save_checkpoint(trainer.learner.state_dict(), tmp_path / "last.pth")
    records, resumed = go_on(images, "cosine", tmp_path / "last.pth")
    assert records == [] and differences(snapshot(trainer), snapshot(resumed)) == []


@pytest.mark.parametrize("every", [1, 3, 4])
def test_what_is_saved_inside_an_epoch_is_complete(images, undisturbed, every, tmp_path):
    """Every step in which something is saved, the short last window of an epoch among them."""
    schedule, expected_records, expected, _ = undisturbed
    saved = []

    def save(content: dict) -> None:
        saved.append(content["progress"]["global_step"])
        save_checkpoint(content, tmp_path / f"{saved[-1]}.pth")

    saving = resumable(0, schedule, save_every_steps=every, listeners=[Notes(save=save)])
    torch.manual_seed(99)
    assert untimed(fit(saving, *make_loaders(images))) == expected_records
    assert saved == list(range(every, RESUME_EPOCHS * RESUME_STEPS + 1, every))
    for step in saved:
        after, trainer = go_on(images, schedule, tmp_path / f"{step}.pth")
        assert untimed(after) == expected_records[(step - 1) // RESUME_STEPS :]
        assert differences(expected, {**snapshot(trainer), "random": trainer.learner.state_dict()["random"]}) == []


@pytest.mark.parametrize("every", [1, 2])
def test_a_window_without_labels_saves_nothing_again(every):
    """It is no step; one that is skipped is."""
    images, target, mask = random_data(8, known=1.0)
    mask[2:4], images[4:6] = False, torch.nan
    steps = []
    notes = Notes(save=lambda content: steps.append(content["progress"]["global_step"]))
    trainer = make_trainer(full_model(), save_every_steps=every, listeners=[notes])
    trainer.train_epoch(TensorLoader(images, target, mask, 2))
    assert steps == [1, 2, 3][every - 1 :: every] and trainer.state.sums.skipped == 1


def test_a_step_that_is_asked_to_stop_is_saved_once():
    saved = []
    notes = Notes(save=lambda content: saved.append(content["progress"]["global_step"]))

    def should_stop() -> str | None:
        return "pause" if trainer.state.global_step == 4 else None

    trainer = make_trainer(full_model(), save_every_steps=2, listeners=[notes], should_stop=should_stop)
    with pytest.raises(Interrupted):
        trainer.train_epoch(TensorLoader(*random_data(24), 4))
    assert saved == [2, 4]


# ---- the config has the last word


def trained(kind: str = "adamw", **options) -> TrainingLoop:
    trainer = make_trainer(full_model(), kind, ema=0.9, **options)
    trainer.train_epoch(TensorLoader(*random_data(12), 4))
    return trainer


@pytest.mark.parametrize(("kind", "changed"), [("adamw", {"betas": (0.8, 0.99)}), ("sgd", {"momentum": 0.5})])
def test_hyperparameters_are_those_of_this_run(kind, changed):
    first = trained(kind, weight_decay=0.05)
    resumed = make_trainer(full_model(1), kind, rate=3e-3, ema=0.9, weight_decay=0.3)
    for group in resumed.learner.optimizer.param_groups:
        group.update(changed)
    own = [{k: v for k, v in group.items() if k != "params"} for group in resumed.learner.optimizer.param_groups]
    resumed.learner.load_state_dict(copy.deepcopy(first.learner.state_dict()))
    now = [{k: v for k, v in group.items() if k != "params"} for group in resumed.learner.optimizer.param_groups]
    assert now == own and [group["weight_decay"] for group in now] == [0.3, 0.0] and now[0]["lr"] == 3e-3
    states = [trainer.learner.state_dict()["optimizer"]["state"] for trainer in (first, resumed)]
    assert states[0] and differences(*states) == []


FP16 = Precision("cpu", torch.float16)


def test_a_loss_scale_is_taken_on_where_both_runs_have_one(caplog):
    first = trained(precision=FP16)
    first.learner.scaler.update(new_scale=64.0)
    content = copy.deepcopy(first.learner.state_dict())
    for precision, scale in ((FP16, 64.0), (Precision("cpu", None), 1.0)):
        resumed = make_trainer(full_model(1), ema=0.9, precision=precision)
        resumed.learner.load_state_dict(content)
        assert resumed.learner.scaler.get_scale() == scale
        resumed.train_epoch(TensorLoader(*random_data(20), 4))
        assert resumed.state.global_step == 5
    resumed = make_trainer(full_model(1), ema=0.9, precision=FP16)
    resumed.learner.load_state_dict(copy.deepcopy(trained().learner.state_dict()))
    assert resumed.learner.scaler.get_scale() == 2.0**16
    resumed.train_epoch(TensorLoader(*random_data(20), 4))
    assert resumed.state.sums.batches == 5 and resumed.state.global_step > 3


# ---- all or nothing


def without(name):
    return lambda part: part.pop(name)


def replaced(name, value):
    return lambda part: part.update({name: value})


SLICED = torch.zeros(4, 1, 3, 2)
DAMAGES = {
    "a part is lacking": ((), without("random"), "lacks random"),
    "another optimizer": ((), replaced("optimizer_kind", "SGD"), "uses SGD"),
    "no model": ((), replaced("model", None), "another model"),
    "a weight is lacking": (("model",), without("0.bias"), "0.bias is lacking"),
    "a weight too many": (("model",), replaced("9.weight", SLICED), "9.weight is not there now"),
    "a weight of another shape": (("model",), replaced("0.weight", SLICED), r"\(4, 1, 3, 2\).*now \(4, 1, 3, 3\)"),
    "a weight of another type": (("model",), replaced("0.bias", torch.zeros(4, dtype=torch.int64)), "int64"),
    "a weight that is none": (("model",), replaced("0.bias", [0.0] * 4), "list"),
    "another average": (("ema", "shadow"), replaced("0.weight", SLICED), "another moving average"),
    "an average without weights": (("ema",), without("shadow"), "moving average"),
    "an average without updates": (("ema",), without("updates"), "updates"),
    "no optimizer": ((), replaced("optimizer", None), "damaged"),
    "more groups": (("optimizer", "param_groups"), lambda groups: groups.append({"params": [9]}), "other parameters"),
    "fewer parameters": (("optimizer", "param_groups", 0, "params"), lambda numbers: numbers.pop(), "other parameters"),
    "a moment of another shape": (("optimizer", "state", 0), replaced("exp_avg", SLICED), r"exp_avg of parameter 0"),
    "a moment that is one number": (("optimizer", "state", 1), replaced("exp_avg_sq", torch.tensor(1.0)), "exp_avg_sq"),
    "a moment is lacking": (("optimizer", "state", 1), without("exp_avg"), "parameter 1"),
    "a moment of no parameter": (("optimizer", "state"), lambda state: state.update({77: state[0]}), "parameter 77"),
    "another schedule": (("schedule",), without("waited"), "schedule.*waited"),
    "an older version": (("progress",), without("micro_batch_splits"), "progress.*micro_batch_splits"),
    "a number that is none": (("progress",), replaced("epoch", "2"), "progress.*epoch"),
    "no sums": (("progress",), without("sums"), "progress.sums"),
    "sums of another version": (("progress", "sums"), without("images"), "images"),
    "a scaler of another version": ((), replaced("scaler", {"scale": 2.0}), "scaler"),
    "no random state": ((), replaced("random", {"cpu": None}), "random state"),
    "numbers as names of weights": (("model",), replaced(3, SLICED), "3 is not there now"),
    "a weight without numbers": (("model",), replaced("0.bias", torch.zeros(4, device="meta")), "on meta"),
    "a sparse weight": (("model",), replaced("0.bias", torch.zeros(4).to_sparse()), "sparse_coo"),
    "a sparse moment": (("optimizer", "state", 1), replaced("exp_avg", torch.zeros(4).to_sparse()), "exp_avg"),
    "a moment of integers": (("optimizer", "state", 1), replaced("exp_avg", torch.ones(4, dtype=int)), "int64"),
    "moments of no name": (("optimizer", "state", 1), replaced(7, SLICED), "parameter 1 has .*7"),
    "an endless parameter": (("optimizer", "state"), replaced(float("inf"), {}), "optimizer.*damaged"),
    "groups of tensors": (("optimizer", "param_groups", 0), replaced("params", [SLICED]), "optimizer.*damaged"),
    "numbers as names of progress": (("progress",), replaced(7, 1), "progress.*7"),
    "a step that is none": (("progress",), replaced("global_step", True), "global_step"),
    "a step beyond all": (("progress",), replaced("global_step", 1 << 70), "global_step"),
    "no micro-batch": (("progress",), replaced("micro_batch_splits", 0), "micro_batch_splits"),
    "progress as a list": ((), replaced("progress", [1]), "progress"),
    "a schedule as a tensor": ((), replaced("schedule", SLICED), "schedule"),
    "an average as a list": ((), replaced("ema", [1]), "ema"),
    "a scaler as a tensor": ((), replaced("scaler", SLICED), "scaler"),
    "random numbers as a list": ((), replaced("random", [1]), "random state"),
    "another torch's random numbers": (("random",), replaced("cpu", torch.zeros(9, dtype=torch.uint8)), "random state"),
    "torch's random numbers forged": (("random",), replaced("cpu", torch.ones(5056, dtype=torch.uint8)), "random"),
    "Python's random numbers forged": (("random",), replaced("python", (3, (1, 2), None)), "random state"),
    "Python's random numbers lacking": (("random",), without("python"), "random state"),
    "NumPy's random numbers forged": (("random",), replaced("numpy", ["MT19937", [1] * 624, 7, "x", 0.0]), "random"),
    "NumPy's generator replaced": (("random",), replaced("numpy", ["PCG64", [1] * 624, 7, 0, 0.0]), "random state"),
    "NumPy's position beyond its keys": (("random", "numpy"), lambda n: n.__setitem__(2, 10**6), "random state"),
    "CUDA's random numbers forged": (("random",), replaced("cuda", [torch.ones(3)]), "random state"),
    "recomputation by another model": (("progress",), replaced("recomputation", 2), "recomputes"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_cannot_be_resumed_changes_nothing(name):
    path, damage, reason = DAMAGES[name]
    content = copy.deepcopy(trained(precision=FP16).learner.state_dict())
    part = content
    for key in path:
        part = part[key]
    damage(part)
    trainer = make_trainer(full_model(1), ema=0.9, precision=FP16, weight_decay=0.3)
    trainer.train_epoch(TensorLoader(*random_data(16, 1), 4))
    before, average = copy.deepcopy(trainer.learner.state_dict()), trainer.learner.ema
    with pytest.raises(CheckpointError, match=reason):
        trainer.learner.load_state_dict(content)
    assert differences(before, trainer.learner.state_dict()) == [] and trainer.learner.ema is average
    assert [group["weight_decay"] for group in trainer.learner.optimizer.param_groups] == [0.3, 0.0]


def test_a_momentum_of_another_shape_is_refused():
    content = copy.deepcopy(trained("sgd").learner.state_dict())
    content["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="momentum_buffer of parameter 0"):
        make_trainer(full_model(), "sgd", ema=0.9).learner.load_state_dict(content)


def test_the_undamaged_content_is_taken():
    """Else the test before would pass with anything."""
    first = trained(precision=FP16)
    trainer = make_trainer(full_model(1), ema=0.9, precision=FP16)
    trainer.learner.load_state_dict(copy.deepcopy(first.learner.state_dict()))
    assert differences(snapshot(first), snapshot(trainer)) == []


def test_checkpoints_from_before_waiting_was_measured_are_taken():
    content = copy.deepcopy(trained().learner.state_dict())
    del content["progress"]["sums"]["data_wait_seconds"]
    trainer = make_trainer(full_model(1), ema=0.9)
    trainer.learner.load_state_dict(content)
    assert (
        trainer.state.sums.data_wait_seconds == 0.0
        and trainer.state.sums.batches == content["progress"]["sums"]["batches"]
    )
