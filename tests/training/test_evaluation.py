"""Evaluation: honest metrics, with the right weights."""

import copy
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import nn

from configs.errors import TrainingError
from tests.training.toys import (
    CLASSES,
    CoarseAndFine,
    Notes,
    TensorLoader,
    by_cuda,
    differences,
    full_model,
    loader_with_scores,
    make_trainer,
    plain_model,
    random_data,
    snapshot,
    tanh_model,
    warnings,
    with_coarse,
)
from training import evaluation
from training.evaluation import Evaluator
from training.losses import GroupSpec, TrainingLoss, binary_cross_entropy, cross_entropy
from training.precision import Precision
from utils.batch import Logits
from utils.runs.control import Interrupted


def test_metrics_and_loss_of_an_evaluation():
    model, loader = full_model(), loader_with_scores()
    images, target, mask, _ = loader.tensors
    predictions = make_trainer(model).evaluate(loader, "validation")
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(images).double()
    np.testing.assert_allclose(predictions.scores, 1 / (1 + np.exp(-logits.numpy())), rtol=1e-6)
    assert predictions.scores.dtype == np.float64 and (predictions.index == np.arange(40)).all()
    expected = [roc_auc_score(target[mask[:, k], k], predictions.scores[mask[:, k], k]) for k in (0, 1)]
    assert predictions.metrics.mean_auroc == pytest.approx(sum(expected) / 2, abs=1e-12)
    assert predictions.metrics.defined_classes == 2
    by_torch = F.binary_cross_entropy_with_logits(logits[mask], target.double()[mask])
    assert predictions.loss == pytest.approx(float(by_torch), rel=1e-6)


def test_evaluation_of_exclusive_classes_is_a_softmax():
    images, target, _ = random_data(12)
    target = torch.eye(CLASSES)[target.sum(1).long() % CLASSES]
    model = plain_model()
    trainer = make_trainer(model, loss=TrainingLoss(binary_cross_entropy, exclusive=True))
    scores = trainer.evaluate(TensorLoader(images, target, torch.ones_like(target).bool(), 5), "val").scores
    with torch.no_grad():
        np.testing.assert_allclose(scores, model(images).double().softmax(1).numpy(), rtol=1e-6)


def test_evaluation_uses_the_averaged_weights_and_leaves_the_models_own():
    images, target, mask = random_data(16)
    trainer = make_trainer(full_model(), ema=0.99, rate=0.1)
    trainer.train_epoch(TensorLoader(images, target, mask, 4))
    before, loader = copy.deepcopy(trainer.model.state_dict()), loader_with_scores()
    averaged = copy.deepcopy(trainer.model)
    averaged.load_state_dict(trainer.learner.ema.shadow)
    scores = {}
    for name, model in (("averaged", averaged), ("own", trainer.model)):
        with torch.no_grad():
            scores[name] = copy.deepcopy(model).eval()(loader.tensors[0]).double().sigmoid().numpy()
    result = trainer.evaluate(loader, "val").scores
    np.testing.assert_allclose(result, scores["averaged"], rtol=1e-6)
    assert np.abs(result - scores["own"]).max() > 1e-3
    assert differences(before, trainer.model.state_dict()) == []


@pytest.mark.parametrize("outcome", ["scored", "stopped", "nan", "another model"])
@pytest.mark.parametrize("ema", [0.0, 0.99])
def test_given_weights_are_scored_and_the_trainer_is_as_before(outcome, ema):
    """Weights, average, moments, schedule, counts and random state; nothing is saved, however it ends."""
    saved = []
    asked: dict = {"request": None}
    trainer = make_trainer(
        full_model(),
        ema=ema,
        rate=0.1,
        listeners=[Notes(save=saved.append)],
        should_stop=lambda: asked["request"],
    )
    trainer.train_epoch(TensorLoader(*random_data(16), 4))
    loader, other = loader_with_scores(), full_model(3)
    weights = other.state_dict()
    before, average, random = snapshot(trainer), trainer.learner.ema, torch.get_rng_state()
    if outcome == "scored":
        scores = trainer.evaluate(loader, "test", weights).scores
        with torch.no_grad():
            expected = other.eval()(loader.tensors[0]).double().sigmoid().numpy()
        np.testing.assert_allclose(scores, expected, rtol=1e-6)
    elif outcome == "stopped":
        asked["request"] = "pause"
        with pytest.raises(Interrupted):
            trainer.evaluate(loader, "test", weights)
    elif outcome == "nan":
        with pytest.raises(TrainingError, match="NaN"):
            trainer.evaluate(loader, "test", {**weights, "5.bias": torch.full((CLASSES,), math.nan)})
    else:
        with pytest.raises(RuntimeError, match=r"5\.bias"):
            trainer.evaluate(loader, "test", {**weights, "5.bias": torch.zeros(7)})
    assert differences(before, snapshot(trainer)) == [] and trainer.learner.ema is average and saved == []
    assert random.equal(torch.get_rng_state())
    asked["request"] = None
    uninterrupted = make_trainer(full_model(), ema=ema, rate=0.1)
    uninterrupted.learner.load_state_dict({**before, "random": trainer.learner.state_dict()["random"]})
    for one in (trainer, uninterrupted):
        torch.manual_seed(1)
        one.model.train()
        one.train_step([next(TensorLoader(*random_data(4), 4).epoch(0))[1]])
    assert differences(snapshot(uninterrupted), snapshot(trainer)) == [], "training goes on with other weights"


def test_evaluation_without_images_or_with_nan_scores_says_so():
    images, target, mask = random_data(8)
    trainer = make_trainer(plain_model())
    with pytest.raises(TrainingError, match="val: not one image"):
        trainer.evaluate(TensorLoader(images, target, mask, 8, bad=(0,)), "val")
    images[[2, 5]] = math.nan
    with pytest.raises(TrainingError, match="NaN for 2 images"):
        trainer.evaluate(TensorLoader(images, target, mask, 3), "val")


def test_an_evaluator_needs_no_trainer():
    model, loader = full_model(), loader_with_scores()
    alone = Evaluator(model, TrainingLoss(binary_cross_entropy), Precision("cpu", None), tuple("abc"))(loader, "test")
    within = make_trainer(model).evaluate(loader, "test")
    assert differences(alone.metrics.as_dict(), within.metrics.as_dict()) == []
    assert alone.loss == within.loss and (alone.scores == within.scores).all()


# ---- results one batch late


def read_at_once(model, loss: TrainingLoss, loader) -> tuple[np.ndarray, float]:
    """Scores and loss as by a loop that waits for every batch."""
    scores, terms, counts = [], {}, {}
    for _, batch in loader.epoch(0):
        if batch is None:
            continue
        with torch.no_grad():
            outputs = model(batch.inputs.image)
        logits = Logits(*outputs) if isinstance(outputs, tuple) else Logits(None, outputs)
        fine = logits.fine.double()
        scores.append((fine.softmax(1) if loss.exclusive else fine.sigmoid()).numpy())
        for name, value in loss.sums(logits, batch.targets).items():
            terms[name] = terms.get(name, 0.0) + float(value)
            counts[name] = counts.get(name, 0) + loss.counts(batch.targets)[name]
    sums = {name: torch.tensor(value) for name, value in terms.items()}
    return np.concatenate(scores), float(loss.total(sums, counts))


HIERARCHICAL = TrainingLoss(
    binary_cross_entropy,
    {"fine": 0.6, "coarse": 0.4, "consistency": 0.2},
    groups=(GroupSpec([0, 1]), GroupSpec([0, 1, 2], negated=True)),
)


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (full_model, TrainingLoss(binary_cross_entropy)),
        (plain_model, TrainingLoss(cross_entropy, exclusive=True)),
        (lambda: CoarseAndFine(plain_model()), HIERARCHICAL),
    ],
)
@pytest.mark.parametrize("bad", [(), (0,), (1, 2), (3,)])
def test_scores_and_loss_are_those_of_a_loop_that_waits_bit_for_bit(model, loss, bad):
    images, target, mask = random_data(23)
    if loss.exclusive:
        target = torch.eye(CLASSES)[torch.arange(23) % CLASSES]

    class Loader(TensorLoader):
        def epoch(self, epoch: int, start: int = 0):
            for number, batch in super().epoch(epoch, start):
                yield number, None if batch is None else with_coarse(batch)

    loader, network = Loader(images, target, mask, 6, bad), model().eval()
    found = Evaluator(network, loss, Precision("cpu", None), tuple("abc"))(loader, "test")
    scores, value = read_at_once(network, loss, loader)
    assert found.scores.tobytes() == scores.tobytes() and found.loss == value
    rows = [i for i in range(23) if i // 6 not in bad]
    assert found.index.tolist() == rows
    assert (found.targets == target[rows].numpy()).all() and (found.mask == mask[rows].numpy()).all()


def test_a_batch_is_read_when_the_next_has_begun_and_no_later(monkeypatch):
    events: list[str] = []

    class RecordedCopy(evaluation.AsyncHostCopy):
        def __init__(self, tensors) -> None:
            super().__init__(tensors)
            events.append("begun")

        def get(self):
            events.append("read")
            return super().get()

    monkeypatch.setattr(evaluation, "AsyncHostCopy", RecordedCopy)
    make_trainer(plain_model()).evaluate(TensorLoader(*random_data(20), 4), "val")
    assert events == ["begun", *["begun", "read"] * 4, "read"]


def test_a_signal_leaves_an_evaluation():
    evaluator = make_trainer(plain_model()).evaluator
    assert evaluator(TensorLoader(*random_data(20), 4), "val", lambda: 15) is None


# ---- out of memory


class ScarceInEvaluation(nn.Module):
    def __init__(self, inside: nn.Module, room: int) -> None:
        super().__init__()
        self.inside, self.room = inside, room

    def forward(self, x):
        if not self.training and len(x) > self.room:
            by_cuda()
        return self.inside(x)


def test_evaluation_in_smaller_batches_gives_the_same(caplog):
    loader = loader_with_scores()
    scarce, calm = (make_trainer(ScarceInEvaluation(tanh_model(), room)) for room in (3, 1000))
    loader.tensors = (loader.tensors[0].double(), *loader.tensors[1:])
    one, other = (trainer.evaluate(loader, "validation") for trainer in (scarce, calm))
    assert abs(one.scores - other.scores).max() < 1e-12 and (one.index == other.index).all()
    assert one.loss == pytest.approx(other.loss, rel=1e-6) and one.metrics.mean_auroc == other.metrics.mean_auroc
    messages = warnings(caplog)
    assert (
        len(messages) == 2
        and "in validation" in messages[0]
        and "evaluation batch 8 -> 4" in messages[0]
        and "4 -> 2" in messages[1]
    )
    scarce.evaluate(loader, "test")
    assert len(warnings(caplog)) == 2 and scarce.state.micro_batch_splits == 1


@pytest.mark.parametrize(("room", "on_oom", "message"), [(0, "adapt", "with 1 images"), (4, "stop", "on_oom=adapt")])
def test_evaluation_that_does_not_fit(room, on_oom, message):
    trainer = make_trainer(ScarceInEvaluation(full_model(), room), ema=0.9, on_oom=on_oom)
    trainer.train_epoch(TensorLoader(*random_data(16), 8))
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(TrainingError, match=message):
        trainer.evaluate(loader_with_scores(), "validation")
    assert differences(before, trainer.model.state_dict()) == [], "the averaged weights were left in the model"


def test_no_room_for_the_averaged_weights(monkeypatch):
    @contextmanager
    def refused(*_):
        by_cuda()
        yield

    model = full_model()
    trainer = make_trainer(model, ema=0.9)
    monkeypatch.setattr("training.loop.weights_applied", refused)
    with pytest.raises(TrainingError, match=r"out of memory in validation.*ema_decay=0"):
        trainer.evaluate(loader_with_scores(), "validation")


def test_an_evaluation_reads_the_same_epoch_each_time():
    """Whatever epoch the training is at: order and what is drawn for images are functions of the epoch."""
    asked = []

    class Noted(TensorLoader):
        def epoch(self, epoch: int, start: int = 0):
            asked.append((epoch, start))
            return super().epoch(epoch, start)

    trainer = make_trainer(full_model(), epochs=2)
    trainer.fit(TensorLoader(*random_data(16), 4), Noted(*random_data(16), 4))
    assert trainer.state.epoch == 2 and asked == [(0, 0), (0, 0)]
