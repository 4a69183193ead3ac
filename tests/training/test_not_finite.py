"""Windows with NaN or Inf, or with nothing in them: they change nothing, and are counted."""

import itertools
import math

import pytest
import torch
from torch import nn

from configs.errors import TrainingError
from tests.training.toys import (
    CLASSES,
    TensorLoader,
    batch_of,
    differences,
    full_model,
    make_trainer,
    max_difference,
    plain_model,
    random_data,
    snapshot,
)
from training.loop import TrainingLoop
from training.precision import Precision
from utils.batch import Batch

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
WINDOW, POISONED = 3, 1  # micro-batches in a window, and which of the windows gets NaN or Inf


def poisonable(precision: str) -> TrainingLoop:
    """With all that a window can spoil, and no dropout; fp16 with a scale that these gradients do not exceed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES))
    options = {"schedule": "cosine", "ema": 0.9, "accumulation_steps": WINDOW}
    kind = "sgd" if precision == "fp16" else "adamw"  # whose first steps make much of a rounding
    trainer = make_trainer(model, kind, precision=Precision("cpu", PRECISIONS[precision]), **options)
    if precision == "fp16":
        trainer.learner.scaler.load_state_dict({**trainer.learner.scaler.state_dict(), "scale": 256.0})
    trainer.model.train()
    return trainer


def windows_of(count: int) -> list[list[Batch]]:
    batches = [batch for _, batch in TensorLoader(*random_data(2 * WINDOW * count, known=1.0), 2).epoch(0)]
    return [batches[first : first + WINDOW] for first in range(0, len(batches), WINDOW)]


def poison(trainer: TrainingLoop, window: list[Batch], site: str, value: float, position: int) -> list:
    """Put the value into an image of micro-batch `position`, or into a gradient that it makes; gives the hooks."""
    if site == "image":
        window[position].inputs.image[1, 0, 3, 3] = value
        return []
    passes = itertools.count()

    def spoil(gradient):
        gradient = gradient.clone()
        gradient[0, 0, 1, 1] += value if next(passes) == position else 0.0
        return gradient

    return [trainer.model[0].weight.register_hook(spoil)]


def standing(trainer: TrainingLoop) -> dict:
    """All that must not change; apart from it are what counts steps, and the scale, which is there to shrink."""
    state = snapshot(trainer)
    state["progress"]["sums"].pop("skipped"), state["progress"].pop("nonfinite_in_a_row"), state.pop("scaler")
    for group in state["optimizer"]["param_groups"]:
        group.pop("lr")
    state["progress"].pop("global_step"), state["schedule"].pop("step_number"), state["ema"].pop("updates")
    return state


def count_a_step(trainer: TrainingLoop) -> None:
    """As a step that moves nothing."""
    trainer.state.global_step += 1
    trainer.schedule.step()
    trainer.learner.ema.updates += 1


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("site", ["image", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_window_that_is_not_finite_is_as_if_it_had_not_been(precision, site, value, caplog):
    skipped = 0
    for position in range(WINDOW):
        trainer, calm = poisonable(precision), poisonable(precision)
        for number, window in enumerate(windows_of(4)):
            if number != POISONED:
                assert trainer.train_step(window) and calm.train_step(window)
                continue
            count_a_step(calm)
            handles = poison(trainer, window, site, value, position)
            before = standing(trainer)
            assert trainer.train_step(window) and trainer.state.sums.skipped == 1
            assert differences(before, standing(trainer)) == [], f"micro-batch {position} left something behind"
            calibrating = precision == "fp16" and site == "gradient"
            assert trainer.state.nonfinite_in_a_row == (not calibrating)
            for handle in handles:
                handle.remove()
        assert (trainer.state.sums.skipped, trainer.state.global_step, trainer.state.nonfinite_in_a_row) == (1, 4, 0)
        skipped += trainer.state.sums.skipped
        left = [*trainer.model.state_dict().values(), *trainer.learner.ema.shadow.values()]
        left += [moment for state in trainer.learner.optimizer.state.values() for moment in state.values()]
        assert len(left) > 16 and all(tensor.isfinite().all() for tensor in left)
        if precision == "fp16":  # the scale may have been halved, which moves what is rounded to zero
            assert max_difference(trainer.model, calm.model) < 1e-4
        else:
            assert differences(standing(trainer), standing(calm)) == []
    assert caplog.text.count("skipped a step") == WINDOW
    print(f"{precision}, {value} in a {site}: windows skipped: {skipped} of {WINDOW}, weights as without them")


def test_repeated_nonfinite_steps_stop_the_run():
    images, target, mask = random_data(20, known=1.0)
    images[8:] = math.nan
    trainer = make_trainer(full_model(), max_nonfinite_steps=3)
    with pytest.raises(TrainingError) as error:
        trainer.train_epoch(TensorLoader(images, target, mask, 2))
    message = str(error.value)
    assert "3 steps in a row" in message and "epoch 1, step 7" in message
    assert "image_12.png, image_13.png" in message and "image_11.png" not in message
    assert trainer.state.sums.skipped == 3 and all(p.isfinite().all() for p in trainer.model.parameters())


def test_nonfinite_steps_that_are_not_in_a_row_do_not_stop_it():
    images, target, mask = random_data(20, known=1.0)
    images[[2, 6, 8, 14, 16]] = math.nan
    trainer = make_trainer(plain_model(), max_nonfinite_steps=3)
    trainer.train_epoch(TensorLoader(images, target, mask, 2))
    assert (trainer.state.sums.skipped, trainer.state.sums.steps, trainer.state.global_step) == (5, 5, 10)


def test_fp16_finds_its_scale_without_counting_against_the_run():
    images, target, mask = random_data(16, known=1.0)
    trainer = make_trainer(plain_model(), precision=Precision("cpu", torch.float16), max_nonfinite_steps=1)
    reference = make_trainer(plain_model())
    with torch.no_grad():
        for model in (trainer.model, reference.model):
            model[3].weight.mul_(30)  # 2^16 times these gradients is beyond fp16
    before = snapshot(trainer)["model"]
    window = [batch for _, batch in TensorLoader(images, target, mask, 16).epoch(0)]
    skipped = 0
    while trainer.train_step(window) and not trainer.state.sums.steps:
        skipped += 1
        assert differences(before, trainer.model.state_dict()) == [] and trainer.learner.scaler.get_scale() == 2.0 ** (
            16 - skipped
        )
    assert 0 < skipped == trainer.state.sums.skipped < 10
    assert trainer.state.nonfinite_in_a_row == 0 and trainer.state.global_step == skipped + 1
    assert reference.train_step(window) and max_difference(trainer.model, reference.model) < 0.021


def test_a_window_without_labels_is_passed_over():
    images, target, mask = random_data(12, known=1.0)
    mask[4:8] = False
    trainer = make_trainer(full_model(), schedule="cosine", ema=0.9, accumulation_steps=2)
    loader = TensorLoader(images, target, mask, 2)
    batches = [batch for _, batch in loader.epoch(0)]
    trainer.model.train()
    trainer.train_step(batches[:2])
    before = snapshot(trainer)
    assert trainer.train_step(batches[2:4]) is False
    assert trainer.train_step([]) is False
    assert differences(before, snapshot(trainer)) == []
    assert trainer.train_step(batches[4:]) is True


def test_unreadable_batches_count_in_the_window_but_train_nothing():
    images, target, mask = random_data(12)
    trainer = make_trainer(plain_model(), accumulation_steps=2)
    trainer.train_epoch(TensorLoader(images, target, mask, 2, bad=(1, 2, 3)))
    assert trainer.state.global_step == 2 and trainer.state.sums.batches == 6 and trainer.state.sums.images == 6
    other = make_trainer(plain_model())
    for rows in (slice(0, 2), slice(8, 12)):
        other.model.train()
        other.train_step([batch_of(images[rows], target[rows], mask[rows])])
    assert max_difference(trainer.model, other.model) < 1e-6
