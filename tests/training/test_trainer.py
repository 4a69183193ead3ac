"""The training loop: exact windows, and epochs that are recorded and judged as they were."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import nn

from configs.errors import ConfigError
from tests.training.toys import (
    CLASSES,
    Notes,
    TensorLoader,
    fit,
    full_model,
    loader_with_scores,
    make_trainer,
    max_difference,
    plain_model,
    random_data,
    with_coarse,
)
from training.losses import GroupSpec, TrainingLoss, binary_cross_entropy
from training.precision import Precision, choose_precision
from utils.listener import EpochEnd

# ---- one optimizer step


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize(("count", "pieces", "window"), [(8, 2, 4), (10, 2, 4), (24, 2, 4), (26, 1, 8), (16, 3, 3)])
def test_accumulation_equals_one_large_batch(kind, count, pieces, window):
    images, target, mask = random_data(count)
    mask[: 2 * pieces] = torch.eye(CLASSES, dtype=torch.bool)[torch.arange(2 * pieces) % CLASSES]
    mask[pieces : 2 * pieces] = False  # a micro-batch of which nothing is known
    small = make_trainer(plain_model(), kind, accumulation_steps=window)
    large = make_trainer(plain_model(), kind)
    for _ in range(3):
        small.train_epoch(TensorLoader(images, target, mask, pieces))
        large.train_epoch(TensorLoader(images, target, mask, pieces * window))
        small.state.sums.batches = large.state.sums.batches = 0
    assert small.state.global_step == large.state.global_step == 3 * math.ceil(count / (pieces * window))
    assert max_difference(small.model, plain_model()) > 1e-3
    assert max_difference(small.model, large.model) < 1e-6
    assert small.state.sums.loss == pytest.approx(large.state.sums.loss, rel=1e-6)


def test_accumulation_of_a_hierarchical_loss():
    class Hierarchical(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine = plain_model()
            self.coarse = nn.Linear(CLASSES, 2)

        def forward(self, x):
            fine = self.fine(x)
            return self.coarse(fine), fine

    class CoarseLoader(TensorLoader):
        def epoch(self, epoch, start=0):
            for number, batch in super().epoch(epoch, start):
                yield number, with_coarse(batch)

    groups = [GroupSpec([0, 1]), GroupSpec([0, 1, 2], negated=True)]
    weights = {"fine": 0.6, "coarse": 0.4, "consistency": 0.2}
    loss = TrainingLoss(binary_cross_entropy, weights, groups=groups)
    trainers = []
    for pieces, window in ((2, 4), (8, 1)):
        trainer = make_trainer(Hierarchical(), loss=loss, accumulation_steps=window)
        torch.manual_seed(0)
        nn.init.normal_(trainer.model.coarse.weight)
        nn.init.zeros_(trainer.model.coarse.bias)
        trainer.train_epoch(CoarseLoader(*random_data(10), pieces))
        trainers.append(trainer)
    assert max_difference(trainers[0].model, trainers[1].model) < 1e-6


@pytest.mark.parametrize("clip", [0.05, None, 100.0])
def test_one_step_by_hand_in_float64(clip):
    images, target, mask = random_data(6)
    model, rate, decay = plain_model(), 0.02, 0.1
    slow = copy.deepcopy(model).double()
    loss = F.binary_cross_entropy_with_logits(slow(images.double()), target.double(), reduction="none")[mask].mean()
    loss.backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in slow.parameters()))
    assert 0.05 < norm < 100
    factor = min(1.0, clip / norm) if clip else 1.0
    trainer = make_trainer(model, rate=rate, weight_decay=decay, clip_norm=clip, accumulation_steps=3)
    trainer.train_epoch(TensorLoader(images, target, mask, 2))
    ((_, figures),) = trainer.listeners[0].steps
    with torch.no_grad():
        for p, q in zip(model.parameters(), slow.parameters()):
            g = factor * q.grad  # of the first AdamW step both bias-corrected moments are g and g²
            expected = q * (1 - rate * (decay if q.ndim > 1 else 0)) - rate * g / (g.abs() + 1e-8)
            torch.testing.assert_close(p.double(), expected, rtol=0, atol=1e-6)
    assert figures["train/loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert figures["train/gradient_norm"] == pytest.approx(norm, rel=1e-5)
    assert figures["train/learning_rate"] == rate and trainer.state.sums.images == 6


def test_clipping_scales_an_sgd_step():
    images, target, mask = random_data(6)
    start, moved = nn.utils.parameters_to_vector(plain_model().parameters()), []
    for clip in (0.05, None):
        model = plain_model()
        make_trainer(model, "sgd", weight_decay=0.0, clip_norm=clip).train_epoch(TensorLoader(images, target, mask, 6))
        moved.append(float((nn.utils.parameters_to_vector(model.parameters()) - start).detach().norm()))
    assert moved[0] == pytest.approx(1e-2 * 1.9 * 0.05, rel=1e-3)  # Nesterov's first step is (1 + momentum) g
    assert moved[1] > 2 * moved[0]


# ---- epochs


def test_best_epoch_is_that_of_the_highest_mean_over_defined_classes():
    train, val = TensorLoader(*random_data(40), 8), loader_with_scores(60)
    scores = []

    def note(end: EpochEnd) -> None:
        record, is_best = end.record, end.is_best
        with torch.no_grad():
            images, target, mask, _ = val.tensors
            p = copy.deepcopy(trainer.model).eval()(images).double()
        mean = sum(roc_auc_score(target[mask[:, k], k], p[mask[:, k], k]) for k in (0, 1)) / 2
        assert record["mean_auroc"] == pytest.approx(mean, abs=1e-9) and record["defined_classes"] == 2
        assert is_best is (not scores or mean > max(scores))
        scores.append(mean)

    trainer = make_trainer(full_model(), rate=0.05, epochs=8, listeners=[Notes(on_epoch=note)])
    trainer.fit(train, val)
    assert len(scores) == 8 and len(set(scores)) > 2
    assert trainer.state.best_epoch == int(np.argmax(scores)) and trainer.state.best_score == max(scores)


def test_without_a_defined_class_the_loss_decides():
    images, target, mask = random_data(16)
    trainer = make_trainer(plain_model(), epochs=3)
    records = fit(trainer, TensorLoader(images, target, mask, 8), TensorLoader(images, 0 * target, mask, 8))
    assert [record["mean_auroc"] for record in records] == [None] * 3
    assert trainer.state.best_score == -min(record["val_loss"] for record in records)


@pytest.mark.parametrize("patience", [1, 3])
def test_early_stopping(patience, caplog):
    caplog.set_level("INFO")
    data = random_data(16)
    trainer = make_trainer(plain_model(), "sgd", rate=0.0, epochs=9, early_stopping_patience=patience)
    records = fit(trainer, TensorLoader(*data, 8), TensorLoader(*data, 8))
    assert [record["is_best"] for record in records] == [True] + [False] * patience
    assert "stopped early" in caplog.text
    assert fit(trainer, TensorLoader(*data, 8), TensorLoader(*data, 8)) == [], "a resumed run must not go on either"
    patient = make_trainer(plain_model(), "sgd", rate=0.0, epochs=5)
    assert len(fit(patient, TensorLoader(*data, 8), TensorLoader(*data, 8))) == 5


def test_an_epochs_record():
    images, target, mask = random_data(16, known=1.0)
    images[9] = math.nan
    trainer = make_trainer(plain_model(), epochs=2, schedule="cosine", steps=8)
    records = fit(trainer, TensorLoader(images, target, mask, 4), TensorLoader(*random_data(16), 8))
    assert [(r["epoch"], r["step"], r["skipped_steps"]) for r in records] == [(1, 4, 1), (2, 8, 1)]
    losses = [figures["train/loss"] for _, figures in trainer.listeners[0].steps]
    assert [r["train_loss"] for r in records] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])
    rates = [1e-2 * (1 + math.cos(math.pi * step / 8)) / 2 for step in (4, 8)]
    assert [r["learning_rate"] for r in records] == pytest.approx(rates)


def test_bfloat16_trains_like_float32():
    try:
        precision = choose_precision("bf16", torch.device("cpu"))
    except ConfigError as error:
        pytest.skip(str(error))
    data, results = random_data(32), []
    for chosen in (Precision("cpu", None), precision):
        trainer = make_trainer(plain_model(), "sgd", rate=0.5, precision=chosen, epochs=3, accumulation_steps=2)
        results.append(fit(trainer, TensorLoader(*data, 8), TensorLoader(*data, 8))[-1]["val_loss"])
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert results[0] != results[1] and results[1] == pytest.approx(results[0], rel=0.02)
    assert results[0] < 0.9 * make_trainer(plain_model()).evaluate(TensorLoader(*data, 8), "val").loss


# ---- the best epoch by another figure, see utils/best_metric.py


def judged(monkeypatch, figures, **options):
    """A trainer whose epochs get these (mean AUROC, loss); the schedule cuts after one that is not better."""
    trainer = make_trainer(plain_model(), schedule="plateau", epochs=len(figures), **options)
    trainer.schedule.patience = 1
    rows = iter(figures)

    def record(validation, started):
        auroc, loss = next(rows)
        row = {"epoch": trainer.state.epoch + 1, "step": 0, "mean_auroc": auroc, "val_loss": loss, "per_class": []}
        return {"mean_average_precision": None, "train_loss": 0.0, **row}

    monkeypatch.setattr(trainer, "_epoch_record", record)
    loader = loader_with_scores(8)
    ends = []
    monkeypatch.setattr(trainer.listeners[0], "on_epoch", ends.append)
    trainer.fit(loader, loader)
    return trainer, [end.is_best for end in ends]


def test_best_epoch_patience_and_plateau_go_by_the_loss(monkeypatch):
    figures = [(0.5, 0.9), (0.4, 0.8), (0.9, 0.85), (0.95, 0.84), (0.99, 0.83)]
    trainer, best = judged(monkeypatch, figures, best_by="val_loss", early_stopping_patience=2)
    assert best == [True, True, False, False]
    assert trainer.state.best_epoch == 1 and trainer.state.best_score == -0.8
    assert trainer.schedule.cut == pytest.approx(0.3**2)


def test_an_epoch_without_the_figure_is_not_compared_by_its_loss(monkeypatch, caplog):
    """A loss of −3, as −(−3) > every AUROC: the two scales were once mixed."""
    trainer, best = judged(monkeypatch, [(0.5, 0.9), (None, -3.0), (0.6, 0.9)])
    assert best == [True, False, True] and trainer.state.best_score == 0.6
    assert "epoch 2 cannot be the best one: its mean AUROC is undefined" in caplog.text


def test_where_the_first_epoch_has_no_auroc_the_loss_decides_to_the_end(monkeypatch):
    trainer, best = judged(monkeypatch, [(None, 0.9), (0.99, 0.95), (None, 0.8)])
    assert best == [True, False, True] and trainer.state.best_score == -0.8


def test_plateau_goes_on_in_another_figure():
    schedule = make_trainer(plain_model(), schedule="plateau").schedule
    schedule.patience, schedule.cut = 2, 0.3
    schedule.judge_again([0.5, 0.7, 0.6])
    assert (schedule.best, schedule.waited, schedule.cut) == (0.7, 1, 0.3)
    schedule.epoch_end(0.65)
    assert schedule.cut == pytest.approx(0.09)
