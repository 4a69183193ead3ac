"""One optimizer step against a slow loop in float64 that knows nothing of terms, micro-batches or masks as tensors."""

import math

import pytest
import torch
from torch import nn

from tests.training.toys import (
    CLASSES,
    SIDE,
    CoarseAndFine,
    Notes,
    batch_of,
    differences,
    full_model,
    make_trainer,
    random_data,
    snapshot,
)
from training.distillation import DistillationLoss, Teacher
from training.losses import GroupSpec, TrainingLoss, binary_cross_entropy, cross_entropy
from training.precision import Precision
from utils.batch import Batch

RATE = 0.5
FEATURES = SIDE * SIDE


def linear_model() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, CLASSES)).double()


def cut_into(sizes, images, target, mask) -> list[Batch]:
    parts = zip(*(tensor.split(list(sizes)) for tensor in (images, target, mask, torch.arange(len(images)))))
    return [batch_of(*part) for part in parts]


def trainer_of(model: nn.Module, **options):
    trainer = make_trainer(model, "sgd", RATE, weight_decay=0.0, clip_norm=None, **options)
    for group in trainer.learner.optimizer.param_groups:
        group["momentum"], group["nesterov"] = 0.0, False
    return trainer


def slow_step(images, target, mask, exclusive: bool) -> tuple[list[list[float]], list[float], float]:
    """(weights, biases, loss) after one step of gradient descent on the mean loss over known labels, number by number.

    The gradient of both losses by a logit is (probability − target) / number of known labels, or known rows.
    """
    layer = linear_model()[1]
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    rows = images.double().flatten(1).tolist()
    known = [(i, k) for i in range(len(rows)) for k in range(CLASSES) if mask[i, k]]
    if exclusive:
        whole = [i for i in range(len(rows)) if all(bool(mask[i, k]) for k in range(CLASSES))]
        known = [(i, k) for i in whole for k in range(CLASSES)]
    count = len(known) // (CLASSES if exclusive else 1)
    loss, new_weight, new_bias = 0.0, [list(row) for row in weight], list(bias)
    for i, k in known:
        logits = [sum(w * x for w, x in zip(weight[c], rows[i])) + bias[c] for c in range(CLASSES)]
        t = float(target[i, k])
        if exclusive:
            p = math.exp(logits[k]) / sum(map(math.exp, logits))
            loss -= t * math.log(p) / count
        else:
            p = 1 / (1 + math.exp(-logits[k]))
            loss -= (t * math.log(p) + (1 - t) * math.log(1 - p)) / count
        for f in range(FEATURES):
            new_weight[k][f] -= RATE * (p - t) / count * rows[i][f]
        new_bias[k] -= RATE * (p - t) / count
    return new_weight, new_bias, loss


PLACES = torch.arange(6 * CLASSES).view(6, CLASSES)
MASKS = {
    "uneven": lambda mask: mask,
    "all known": torch.ones_like,
    "one label": lambda mask: PLACES == 4 * CLASSES + 1,
    "two labels": lambda mask: PLACES % 11 == 4,
    "one micro-batch without": lambda mask: mask & (PLACES >= 3 * CLASSES),
}
ROW_MASKS = {
    "one row": lambda mask: PLACES >= 5 * CLASSES,
    "two rows, and parts of others": lambda mask: mask | (PLACES < 2 * CLASSES),
    "all rows": torch.ones_like,
}


@pytest.mark.parametrize("sizes", [(6,), (3, 1, 2), (1, 5), (1, 1, 1, 1, 1, 1)])
@pytest.mark.parametrize(
    ("kind", "exclusive"), [*((kind, False) for kind in MASKS), *((kind, True) for kind in ROW_MASKS)]
)
@pytest.mark.parametrize("splits", [1, 2])
def test_a_step_is_the_slow_loops(sizes, kind, exclusive, splits):
    images, target, mask = random_data(6, seed=3)
    if exclusive:
        target = torch.eye(CLASSES)[torch.arange(6) % CLASSES]
    mask = (ROW_MASKS if exclusive else MASKS)[kind](mask)
    weight, bias, loss = slow_step(images, target, mask, exclusive)
    model, notes = linear_model(), Notes()
    elementwise = cross_entropy if exclusive else binary_cross_entropy
    trainer = trainer_of(model, loss=TrainingLoss(elementwise, exclusive=exclusive), listeners=[notes])
    trainer.state.micro_batch_splits = splits
    assert trainer.train_step(cut_into(sizes, images.double(), target.double(), mask)) is True
    torch.testing.assert_close(model[1].weight, torch.tensor(weight, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(model[1].bias, torch.tensor(bias, dtype=torch.float64), rtol=0, atol=1e-6)
    ((step, figures),) = notes.steps
    assert step == 1 and figures["train/loss"] == pytest.approx(loss, rel=1e-5) and loss > 0.1


def test_a_window_without_a_label_is_no_step():
    images, target, mask = random_data(6)
    trainer = make_trainer(full_model(), ema=0.9, schedule="cosine")
    trainer.model.train()
    trainer.train_step(cut_into((3, 3), images, target, torch.ones_like(mask)))
    before, random = snapshot(trainer), torch.get_rng_state()
    for window in (cut_into((3, 1, 2), images, target, torch.zeros_like(mask)), []):
        assert trainer.train_step(window) is False
    assert differences(before, snapshot(trainer)) == [] and random.equal(torch.get_rng_state())
    assert trainer.pending == []


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_bce(x: float, t: float) -> float:
    return -(t * math.log(sigmoid(x)) + (1 - t) * math.log(1 - sigmoid(x)))


@pytest.mark.parametrize("labels", [0, 1, 2, 9])
@pytest.mark.parametrize("coarse_labels", [0, 1, 2, 6])
def test_the_terms_of_a_hierarchical_loss_have_counts_of_their_own(labels, coarse_labels):
    """The loss of a window of two micro-batches, by loops: each term over its own number of known labels."""
    images, target, _ = random_data(4, seed=5)
    mask = (torch.arange(12) < labels).view(4, 3).flip(0)
    coarse_mask, coarse_target = (torch.arange(8) < coarse_labels).view(4, 2), target[:, 1:]
    groups = [GroupSpec([0, 1]), GroupSpec([0, 2], negated=True)]
    weights = {"fine": 0.7, "coarse": 0.4, "consistency": 0.2}
    notes = Notes()
    loss = TrainingLoss(binary_cross_entropy, weights, groups=groups)
    trainer = trainer_of(CoarseAndFine(linear_model()), loss=loss, listeners=[notes])
    with torch.no_grad():
        coarse, fine = (outputs.tolist() for outputs in trainer.model(images.double()))
    expected = 0.0
    for i in range(4):
        for k in range(3):
            expected += 0.7 * slow_bce(fine[i][k], float(target[i, k])) / labels if mask[i, k] else 0.0
        for g, group in enumerate(groups):
            if coarse_mask[i, g]:
                expected += 0.4 * slow_bce(coarse[i][g], float(coarse_target[i, g])) / coarse_labels
            implied = max(sigmoid(fine[i][k]) for k in group.members)
            implied = 1 - implied if group.negated else implied
            expected += 0.2 * (sigmoid(coarse[i][g]) - implied) ** 2 / 8
    window = [
        batch_of(images[rows].double(), target[rows], mask[rows], rows, coarse_target[rows], coarse_mask[rows])
        for rows in (torch.arange(3), torch.arange(3, 4))
    ]
    assert trainer.train_step(window)
    ((_, figures),) = notes.steps
    assert figures["train/loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("labels", [0, 1, 5])
@pytest.mark.parametrize("count", [1, 3])
def test_a_teachers_term_has_a_count_of_its_own(labels, count):
    """One study of exclusive classes is one value of the teacher's, whose label may be unknown."""
    images, _, _ = random_data(count, seed=6)
    target = torch.eye(CLASSES)[torch.arange(count) % CLASSES]
    mask = torch.zeros(count, CLASSES, dtype=torch.bool)
    mask[:labels] = True
    teacher = Teacher(linear_model().eval(), Precision("cpu", None), range(CLASSES))
    notes, student = Notes(), linear_model()
    with torch.no_grad():
        student[1].weight.mul_(0.5)
    loss = DistillationLoss(TrainingLoss(cross_entropy, exclusive=True), teacher, 0.25, 2.0)
    trainer = trainer_of(student, loss=loss, listeners=[notes])
    with torch.no_grad():
        own, others = student(images.double()).tolist(), teacher.model(images.double()).tolist()
    hard, soft, known = 0.0, 0.0, min(labels, count)
    for i in range(count):
        logs = [x - math.log(sum(map(math.exp, own[i]))) for x in own[i]]
        hard -= sum(t * log for t, log in zip(target[i].tolist(), logs)) / known if i < known else 0.0
        cold = [math.exp(x / 2) / sum(math.exp(y / 2) for y in others[i]) for x in others[i]]
        mine = [math.exp(x / 2) / sum(math.exp(y / 2) for y in own[i]) for x in own[i]]
        soft += sum(p * math.log(p / q) for p, q in zip(cold, mine)) / count
    assert trainer.train_step(cut_into([1] * count, images.double(), target, mask))
    ((_, figures),) = notes.steps
    assert figures["train/loss"] == pytest.approx(0.75 * hard + 0.25 * 4 * soft, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_a_term_is_divided_by_its_count_or_left_out(count):
    loss = TrainingLoss(binary_cross_entropy, {"labels": 0.5})
    total = loss.total({"labels": torch.tensor(6.0 if count else 0.0)}, {"labels": count})
    assert float(total) == pytest.approx(3.0 / count if count else 0.0)
