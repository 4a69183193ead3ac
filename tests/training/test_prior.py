"""Probabilities of a network that learnt from drawn studies are those of the training split's prevalence."""

import numpy as np
import pytest
import torch

from data.loading.sampling import study_weights
from training.losses import GroupSpec, TrainingLoss, binary_cross_entropy, cross_entropy
from training.prior import prior_shift
from utils.batch import Logits, Targets


def exclusive_data() -> np.ndarray:
    """x in 0, 1, 2 beside the class: p(x | class) differs, so that a table of logits is all there is to be learnt."""
    counts = {(0, 0): 50, (0, 1): 20, (0, 2): 10, (1, 0): 2, (1, 1): 6, (1, 2): 2, (2, 0): 1, (2, 1): 1, (2, 2): 8}
    return np.array([(k, x) for (k, x), n in counts.items() for _ in range(n)])


def learnt(loss: TrainingLoss, classes, x, weights, columns: int) -> torch.Tensor:
    """The logits of each x that minimise the weighted loss, by Newton's method in float64."""
    table = torch.zeros(3, columns, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([table], max_iter=300, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        shifted = table if loss.shift is None else table + loss.shift.double()
        value = (loss.elementwise(shifted[x], classes) * weights[:, None]).sum() / weights.sum()
        value = value + 1e-12 * table.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    return table.detach()


@pytest.mark.parametrize("rule", ["balanced", {"c2": 7.0, "c0": 0.5}])
def test_exclusive_classes_end_with_the_frequencies_of_the_training_split(rule):
    rows = exclusive_data()
    target = np.eye(3, dtype=np.float32)[rows[:, 0]]
    mask = np.ones_like(target, bool)
    weights = study_weights(rule, target, mask, ("c0", "c1", "c2"), True)
    shift = torch.from_numpy(prior_shift(target, mask, weights, True))
    inputs = torch.from_numpy(target).double(), torch.from_numpy(rows[:, 1]), torch.from_numpy(weights)
    frequencies = np.stack([target[rows[:, 1] == x].mean(0) for x in range(3)])
    corrected = learnt(TrainingLoss(cross_entropy, exclusive=True, shift=shift), *inputs, 3).softmax(1)
    assert corrected.numpy() == pytest.approx(frequencies, abs=1e-4)
    drawn = learnt(TrainingLoss(cross_entropy, exclusive=True), *inputs, 3).softmax(1)
    assert np.abs(drawn.numpy() - frequencies).max() > 0.1


def test_one_finding_ends_with_the_frequencies_of_the_training_split():
    rows = exclusive_data()
    target = (rows[:, :1] > 0).astype(np.float32)
    mask = np.ones_like(target, bool)
    weights = study_weights("balanced", target, mask, ("a",), False)
    shift = torch.from_numpy(prior_shift(target, mask, weights, False))
    inputs = torch.from_numpy(target).double(), torch.from_numpy(rows[:, 1]), torch.from_numpy(weights)
    found = learnt(TrainingLoss(binary_cross_entropy, shift=shift), *inputs, 1).sigmoid().numpy()[:, 0]
    assert found == pytest.approx([target[rows[:, 1] == x].mean() for x in range(3)], abs=1e-4)


def test_per_label_and_where_nothing_is_known():
    rng = np.random.default_rng(0)
    target = (rng.random((300, 3)) < [0.5, 0.1, 0.0]).astype(np.float32)
    mask = rng.random((300, 3)) < 0.7
    weights = rng.uniform(0.5, 2, 300)
    shift = prior_shift(target, mask, weights, False)
    for k in range(2):
        known = mask[:, k]
        before = target[known, k].mean()
        after = (weights[known] * target[known, k]).sum() / weights[known].sum()
        assert shift[k] == pytest.approx(np.log(after / (1 - after)) - np.log(before / (1 - before)))
    assert shift[2] == 0  # never positive: there is no prevalence to be corrected
    assert prior_shift(target, mask, np.ones(300), False) == pytest.approx(np.zeros(3))


def test_the_loss_shifts_fine_and_coarse_logits_and_the_evaluation_does_not():
    loss = TrainingLoss(
        binary_cross_entropy,
        {"fine": 1.0, "coarse": 1.0, "consistency": 1.0},
        groups=[GroupSpec([0, 1])],
        shift=torch.tensor([1.0, -2.0]),
        coarse_shift=torch.tensor([0.5]),
    )
    ones = torch.ones(4, 2, dtype=torch.bool)
    targets = Targets(torch.rand(4, 2).round(), ones, torch.ones(4, 1), ones[:, :1])
    logits = Logits(torch.randn(4, 1), torch.randn(4, 2))
    moved = Logits(logits.coarse + 0.5, logits.fine + torch.tensor([1.0, -2.0]))
    found, plain = loss.sums(logits, targets), loss.unshifted()
    assert torch.equal(found["fine"], plain.sums(moved, targets)["fine"])
    assert torch.equal(found["coarse"], plain.sums(moved, targets)["coarse"])
    assert torch.equal(found["consistency"], plain.sums(logits, targets)["consistency"])
    assert plain.shift is None and plain.coarse_shift is None
