"""Windows with NaN or Inf, or with nothing in them: they change nothing, and are counted."""

import copy
import math

import pytest
import torch

from configs.errors import TrainingError
from data.loaders import Batch
from tests.training.toys import (
    TensorLoader,
    differences,
    full_model,
    make_trainer,
    max_difference,
    plain_model,
    random_data,
    snapshot,
)
from training.precision import Precision


@pytest.mark.parametrize("position", [0, 1, 3])
@pytest.mark.parametrize("filler", [math.nan, math.inf])
def test_a_nan_picture_skips_the_whole_window_and_changes_nothing(position, filler, caplog):
    images, target, mask = random_data(16, known=1.0)
    trainer = make_trainer(full_model(), schedule="cosine", ema=0.9, accumulation_steps=4)
    trainer.train_epoch(TensorLoader(images[:8], target[:8], mask[:8], 2))
    trainer.model.train()
    before, buffers = snapshot(trainer), copy.deepcopy(dict(trainer.model.named_buffers()))
    window = [batch for _, batch in TensorLoader(images, target, mask, 2).epoch(0)][4:]
    window[position].image = window[position].image.clone()
    window[position].image[1, 0, 3, 3] = filler
    names = TensorLoader(images, target, mask, 2).names
    assert trainer.train_step(window, names) is False
    after = snapshot(trainer)
    assert after["progress"]["sums"].pop("skipped") == 1 and after["progress"].pop("nonfinite_in_a_row") == 1
    before["progress"]["sums"].pop("skipped"), before["progress"].pop("nonfinite_in_a_row")
    assert differences(before, after) == []
    assert {name for name in buffers if "running" in name or "batches" in name}
    assert differences(buffers, dict(trainer.model.named_buffers())) == []
    assert "skipped a step" in caplog.text
    window[position].image = torch.zeros_like(window[position].image)
    assert trainer.train_step(window, names) is True
    assert trainer.state.nonfinite_in_a_row == 0 and trainer.state.sums.skipped == 1
    assert trainer.state.global_step == 2 and trainer.schedule.step_number == 2 and trainer.ema.updates == 2


def test_a_skip_leaves_no_gradient_behind():
    images, target, mask = random_data(8, known=1.0)
    bad = images.clone()
    bad[5] = math.nan
    with_skip, without = make_trainer(plain_model(), "sgd"), make_trainer(plain_model(), "sgd")
    with_skip.train_epoch(TensorLoader(bad, target, mask, 4))
    without.train_epoch(TensorLoader(images[:4], target[:4], mask[:4], 4))
    assert max_difference(with_skip.model, without.model) == 0.0


def test_repeated_nonfinite_steps_stop_the_run():
    images, target, mask = random_data(20, known=1.0)
    images[8:] = math.nan
    trainer = make_trainer(full_model(), max_nonfinite_steps=3)
    with pytest.raises(TrainingError) as error:
        trainer.train_epoch(TensorLoader(images, target, mask, 2))
    message = str(error.value)
    assert "3 steps in a row" in message and "epoch 1, step 4" in message
    assert "film_12.png, film_13.png" in message and "film_11.png" not in message
    assert trainer.state.sums.skipped == 3 and all(p.isfinite().all() for p in trainer.model.parameters())


def test_nonfinite_steps_that_are_not_in_a_row_do_not_stop_it():
    images, target, mask = random_data(20, known=1.0)
    images[[2, 6, 8, 14, 16]] = math.nan
    trainer = make_trainer(plain_model(), max_nonfinite_steps=3)
    trainer.train_epoch(TensorLoader(images, target, mask, 2))
    assert trainer.state.sums.skipped == 5 and trainer.state.global_step == 5


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
    while not trainer.train_step(window):
        skipped += 1
        assert differences(before, trainer.model.state_dict()) == [] and trainer.scaler.get_scale() == 2.0 ** (
            16 - skipped
        )
    assert 0 < skipped == trainer.state.sums.skipped < 10
    assert trainer.state.nonfinite_in_a_row == 0 and trainer.state.global_step == 1
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
    assert trainer.state.global_step == 2 and trainer.state.sums.batches == 6 and trainer.state.sums.pictures == 6
    other = make_trainer(plain_model())
    for rows in (slice(0, 2), slice(8, 12)):
        other.model.train()
        other.train_step([Batch(images[rows], target[rows], mask[rows], torch.arange(len(images[rows])))])
    assert max_difference(trainer.model, other.model) < 1e-6
