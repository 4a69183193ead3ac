"""Losses against other libraries and against slow formulas in float64."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torchvision.ops import sigmoid_focal_loss

from training.losses import (
    GroupSpec,
    TrainingLoss,
    asymmetric,
    balanced_class_weight,
    balanced_pos_weight,
    binary_cross_entropy,
    consistency,
    cross_entropy,
    exclusive_focal,
    focal,
    smooth_targets,
)
from utils.batch import Logits, Targets

ROWS, CLASSES = 7, 5


def random_logits(seed: int = 0, columns: int = CLASSES, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(ROWS, columns, dtype=torch.float64, generator=generator)


def random_targets(soft: bool = False) -> torch.Tensor:
    values = torch.rand(ROWS, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return values if soft else (values < 0.4).double()


def random_mask() -> torch.Tensor:
    return torch.rand(ROWS, CLASSES, generator=torch.Generator().manual_seed(2)) < 0.6


def one_hot() -> torch.Tensor:
    return F.one_hot(torch.randint(CLASSES, (ROWS,), generator=torch.Generator().manual_seed(1)), CLASSES).double()


def close(actual, expected, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=tolerance, atol=tolerance)


# ---- each loss


@pytest.mark.parametrize("soft", [False, True])
def test_binary_cross_entropy_is_torchs(soft):
    logits, targets = random_logits(), random_targets(soft)
    weight = torch.tensor([0.5, 1.0, 3.0, 10.0, 0.01], dtype=torch.float64)
    for pos_weight in (None, weight):
        expected = torch.nn.BCEWithLogitsLoss(reduction="none", pos_weight=pos_weight)(logits, targets)
        close(binary_cross_entropy(logits, targets, pos_weight), expected)
    p = 1 / (1 + np.exp(-logits.numpy()))
    t = targets.numpy()
    by_hand = -(weight.numpy() * t * np.log(p) + (1 - t) * np.log(1 - p))
    close(binary_cross_entropy(logits, targets, weight), by_hand, 1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("soft", [False, True])
def test_focal_is_torchvisions_without_alpha(gamma, soft):
    logits, targets = random_logits(), random_targets(soft)
    close(focal(logits, targets, gamma), sigmoid_focal_loss(logits, targets, alpha=-1, gamma=gamma))


def slow_asymmetric(logit: float, target: float, plus: float, minus: float, clip: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    q = max(p - clip, 0.0)
    return -(target * (1 - p) ** plus * math.log(p) + (1 - target) * q**minus * math.log(1 - q))


@pytest.mark.parametrize(("plus", "minus", "clip"), [(0, 4, 0.05), (1, 4, 0.05), (0.5, 0.7, 0.2), (2, 2, 0)])
@pytest.mark.parametrize("soft", [False, True])
def test_asymmetric_is_the_papers_formula(plus, minus, clip, soft):
    logits, targets = random_logits(), random_targets(soft)
    pairs = zip(logits.flatten().tolist(), targets.flatten().tolist())
    expected = torch.tensor([slow_asymmetric(x, t, plus, minus, clip) for x, t in pairs], dtype=torch.float64)
    close(asymmetric(logits, targets, plus, minus, clip).flatten(), expected, 1e-10)


def test_asymmetric_without_its_parameters_is_binary_cross_entropy():
    logits, targets = random_logits(), random_targets(soft=True)
    close(asymmetric(logits, targets, 0, 0, 0), binary_cross_entropy(logits, targets), 1e-9)
    close(asymmetric(logits, random_targets(), 2, 2, 0), focal(logits, random_targets(), 2), 1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_is_torchs_with_label_smoothing(smoothing):
    logits, targets = random_logits(), one_hot()
    expected = F.cross_entropy(logits, targets.argmax(1), label_smoothing=smoothing, reduction="none")
    close(cross_entropy(logits, smooth_targets(targets, smoothing, exclusive=True))[:, 0], expected)


WEIGHT = torch.tensor([0.5, 1.0, 3.0, 9.0, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_are_torchs(smoothing):
    logits, targets = random_logits(), torch.eye(CLASSES, dtype=torch.float64)[[0, 1, 2, 3, 4, 0, 3]]
    expected = F.cross_entropy(logits, targets.argmax(1), WEIGHT, label_smoothing=smoothing, reduction="none")
    smooth = smooth_targets(targets, smoothing, exclusive=True)
    close(cross_entropy(logits, smooth, WEIGHT)[:, 0], expected)
    close(exclusive_focal(logits, smooth, 0.0, WEIGHT)[:, 0], expected, 1e-9)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_focal_of_exclusive_classes_by_hand(gamma):
    """One image and one class at a time, in Python's float64."""
    logits, classes = random_logits(), [0, 1, 2, 3, 4, 0, 3]
    found = exclusive_focal(logits, torch.eye(CLASSES, dtype=torch.float64)[classes], gamma, WEIGHT)[:, 0]
    for row, k in enumerate(classes):
        exponentials = [math.exp(z) for z in logits[row].tolist()]
        p = exponentials[k] / sum(exponentials)
        assert float(found[row]) == pytest.approx(-float(WEIGHT[k]) * (1 - p) ** gamma * math.log(p), rel=1e-9)


def test_balanced_class_weights_are_scikit_learns():
    classes = [0] * 6 + [1] * 3 + [2]
    target, mask = np.eye(4, dtype=np.float32)[[*classes, 2]], np.ones((11, 4), bool)
    mask[-1, 0] = False  # a row that is not wholly known
    expected = compute_class_weight("balanced", classes=np.arange(3), y=classes)
    found = balanced_class_weight(target, mask)
    assert found == pytest.approx([*expected, 1.0]) and np.mean([found[k] for k in classes]) == pytest.approx(1)
    assert balanced_class_weight(np.eye(2, dtype=np.float32)[[0] * 999 + [1]], np.ones((1000, 2), bool))[1] == 100


@pytest.mark.parametrize("elementwise", [cross_entropy, exclusive_focal])
def test_a_weighted_window_does_not_depend_on_how_it_is_cut(elementwise):
    logits, targets = random_logits(), torch.eye(CLASSES, dtype=torch.float64)[[0, 1, 2, 3, 4, 0, 3]]
    mask = torch.ones(ROWS, CLASSES, dtype=torch.bool)
    mask[1, 2] = False
    loss = TrainingLoss(partial(elementwise, weight=WEIGHT), exclusive=True)
    parts = [slice(0, 2), slice(2, 7)]
    sums = [loss.sums(Logits.of(logits[p]), Targets(targets[p], mask[p]))["labels"] for p in parts]
    counts = sum(loss.counts(Targets(targets[p], mask[p]))["labels"] for p in parts)
    assert counts == ROWS - 1
    cut = loss.total({"labels": sums[0] + sums[1]}, {"labels": counts})
    kept = mask.all(1)
    close(cut, elementwise(logits[kept], targets[kept], weight=WEIGHT).mean(), 1e-6)


def test_label_smoothing_of_findings_goes_towards_one_half():
    assert smooth_targets(torch.tensor([[0.0, 1.0, 0.3]]), 0.2, exclusive=False).tolist() == [
        pytest.approx([0.1, 0.9, 0.34])
    ]


def test_consistency_by_hand():
    coarse = torch.tensor([[0.0, 2.0, -1.0]], dtype=torch.float64)
    fine = torch.tensor([[1.0, -2.0, 0.5, -0.5]], dtype=torch.float64)
    groups = [GroupSpec([0, 2]), GroupSpec([1, 3]), GroupSpec([0, 1, 2, 3], negated=True)]

    def p(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    expected = [(0.5 - p(1)) ** 2, (p(2) - p(-0.5)) ** 2, (p(-1) - (1 - p(1))) ** 2]
    close(consistency(coarse, fine, groups), [expected])


ELEMENTWISE = {
    "bce": partial(binary_cross_entropy, pos_weight=torch.tensor([0.5, 1.0, 3.0, 9.0, 0.1], dtype=torch.float64)),
    "focal": focal,
    "focal 0.5": partial(focal, gamma=0.5),
    "asymmetric": asymmetric,
    "asymmetric 0.5": partial(asymmetric, gamma_positive=0.5, gamma_negative=0.5, clip=0.2),
    "cross_entropy": cross_entropy,
    "exclusive focal": partial(exclusive_focal, weight=WEIGHT),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_gradients(name):
    targets = random_targets(soft=True)
    logits = random_logits(scale=1.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ELEMENTWISE[name](x, targets), logits)


def test_gradient_of_consistency():
    groups = [GroupSpec([0, 1, 4]), GroupSpec([2, 3], negated=True)]
    inputs = random_logits(3, 2).requires_grad_(), random_logits(4).requires_grad_()
    assert torch.autograd.gradcheck(lambda coarse, fine: consistency(coarse, fine, groups), inputs)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_extreme_logits_are_finite_in_float32(name):
    values = [0.0, 15.0, 17.5, 30.0, 89.0, 104.0, 1e4, 1e30]
    column = torch.tensor([sign * value for value in values for sign in (1, -1)])
    loss = ELEMENTWISE[name]
    if name == "bce":
        loss = partial(binary_cross_entropy, pos_weight=torch.tensor([0.5, 1.0, 3.0, 9.0, 0.1]))
    for target in (0.0, 0.3, 1.0):
        logits = column[:, None].repeat(1, CLASSES).requires_grad_()
        targets = torch.full(logits.shape, target)
        if name == "exclusive focal":
            loss = partial(exclusive_focal, weight=WEIGHT.float())
        if name in ("cross_entropy", "exclusive focal"):
            logits = torch.stack([column, -column, 0 * column, column / 2, column], 1).detach().requires_grad_()
            targets = torch.full(logits.shape, 0.2)
        result = loss(logits, targets)
        assert result.isfinite().all()
        (gradient,) = torch.autograd.grad(result.sum(), logits)
        assert gradient.isfinite().all()


def test_balanced_pos_weight_counts_known_labels():
    target = np.array([[1, 0, 1, 0], [0, 0, 1, 1], [0, 0, 1, 0], [1, 0, 1, 0]], np.float32)
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]], bool)
    assert balanced_pos_weight(target, mask) == [2.0, 1.0, 1.0, 2.0]
    rare = np.zeros((1000, 2), np.float32)
    rare[0, 0], rare[1:, 1] = 1, 1
    everything = np.ones(rare.shape, bool)
    assert balanced_pos_weight(rare, everything, limit=50) == [50.0, 1 / 50]
    assert balanced_pos_weight(rare, everything, limit=1e4) == pytest.approx([999.0, 1 / 999])


# ---- masks, sums, windows


def mean_loss(loss: TrainingLoss, outputs, targets: Targets) -> torch.Tensor:
    return loss.total(loss.sums(Logits.of(outputs), targets), loss.counts(targets))


@pytest.mark.parametrize("elementwise", [binary_cross_entropy, focal, asymmetric])
def test_mean_over_known_labels_only(elementwise):
    logits, targets, mask = random_logits(), random_targets(), random_mask()
    expected = [float(elementwise(logits, targets)[i, k]) for i in range(ROWS) for k in range(CLASSES) if mask[i, k]]
    loss = TrainingLoss(elementwise)
    known = Targets(targets.float(), mask)
    assert loss.counts(known) == {"labels": len(expected)}
    assert float(mean_loss(loss, logits, known)) == pytest.approx(math.fsum(expected) / len(expected), rel=1e-6)


@pytest.mark.parametrize("elementwise", [binary_cross_entropy, focal, asymmetric])
def test_masked_targets_and_logits_touch_neither_loss_nor_gradient(elementwise):
    mask, results = random_mask(), []
    for filler in (0.0, -1.0, 1.0):
        logits = random_logits().float().requires_grad_()
        targets = torch.where(mask, random_targets().float(), filler)
        value = mean_loss(TrainingLoss(elementwise), logits, Targets(targets, mask))
        (gradient,) = torch.autograd.grad(value, logits)
        assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).any()
        results.append((value, gradient))
    assert all(torch.equal(v, results[0][0]) and torch.equal(g, results[0][1]) for v, g in results)


@pytest.mark.parametrize("known", [1, 2, 3])
def test_the_sum_is_divided_by_the_number_of_known_labels_however_few(known):
    logits, targets = random_logits(), random_targets()
    mask = torch.zeros_like(targets, dtype=torch.bool)
    mask.view(-1)[:known] = True
    value = mean_loss(TrainingLoss(binary_cross_entropy), logits, Targets(targets, mask))
    close(value, F.binary_cross_entropy_with_logits(logits[mask], targets[mask]), 1e-6)


def test_a_term_without_known_labels_adds_nothing():
    loss = TrainingLoss(binary_cross_entropy, {"one": 0.5, "other": 2.0})
    assert float(loss.total({"one": torch.tensor(3.0), "other": torch.tensor(0.0)}, {"one": 1, "other": 0})) == 1.5


def test_exclusive_classes_leave_out_whole_rows():
    logits, targets = random_logits(), one_hot()
    mask = torch.ones(ROWS, CLASSES, dtype=torch.bool)
    mask[2, 1] = mask[5] = False
    kept = [0, 1, 3, 4, 6]
    loss = TrainingLoss(cross_entropy, exclusive=True, label_smoothing=0.1)
    known = Targets(targets.float(), mask)
    expected = F.cross_entropy(logits[kept], targets.argmax(1)[kept], label_smoothing=0.1)
    assert loss.counts(known) == {"labels": 5}
    assert float(mean_loss(loss, logits, known)) == pytest.approx(float(expected), rel=1e-6)


def test_multi_label_smoothing_in_the_loss():
    logits, targets, mask = random_logits(), random_targets(), random_mask()
    expected = F.binary_cross_entropy_with_logits(logits[mask], targets[mask] * 0.8 + 0.1)
    value = mean_loss(TrainingLoss(binary_cross_entropy, label_smoothing=0.2), logits, Targets(targets.float(), mask))
    assert float(value) == pytest.approx(float(expected), rel=1e-6)


def test_hierarchical_loss_is_the_weighted_sum_of_three_means():
    fine, coarse = random_logits(), random_logits(5, 2)
    targets, mask = random_targets(), random_mask()
    coarse_targets = (random_logits(6, 2) > 0).double()
    coarse_mask = random_logits(7, 2) > -1
    groups = [GroupSpec([0, 3]), GroupSpec([1, 2, 4], negated=True)]
    weights = {"fine": 0.6, "coarse": 0.4, "consistency": 0.2}
    loss = TrainingLoss(focal, weights, groups=groups)
    p, q = fine.sigmoid().numpy(), coarse.sigmoid().numpy()
    disagreement = [
        (q[i, g] - (1 - p[i, members].max() if negated else p[i, members].max())) ** 2
        for i in range(ROWS)
        for g, (members, negated) in enumerate([([0, 3], False), ([1, 2, 4], True)])
    ]
    expected = (
        0.6 * float(sigmoid_focal_loss(fine, targets, -1, 2.0)[mask].mean())
        + 0.4 * float(F.binary_cross_entropy_with_logits(coarse[coarse_mask], coarse_targets[coarse_mask]))
        + 0.2 * math.fsum(disagreement) / len(disagreement)
    )
    known = Targets(targets.float(), mask, coarse_targets.float(), coarse_mask)
    assert float(mean_loss(loss, (coarse, fine), known)) == pytest.approx(expected, rel=1e-6)


def test_sums_of_parts_add_up_to_the_whole():
    logits, targets, mask = random_logits(), random_targets(), random_mask()
    mask[4:] = False  # the second part knows nothing
    loss = TrainingLoss(binary_cross_entropy)
    parts = [Targets(targets[rows].float(), mask[rows]) for rows in (slice(0, 4), slice(4, 7))]
    counts = {"labels": sum(loss.counts(part)["labels"] for part in parts)}
    sums = [loss.sums(Logits(None, logits[rows]), part) for rows, part in zip((slice(0, 4), slice(4, 7)), parts)]
    total = sum(float(loss.total(part, counts)) for part in sums)
    assert total == pytest.approx(float(F.binary_cross_entropy_with_logits(logits[mask], targets[mask])), rel=1e-6)
    assert float(loss.total(sums[1], loss.counts(parts[1]))) == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_half_precision_logits_are_computed_in_float32(dtype):
    logits, coarse = random_logits().to(dtype), random_logits(5, 2).to(dtype)
    targets, mask = random_targets().float(), random_mask()
    flat = TrainingLoss(binary_cross_entropy).sums(Logits(None, logits), Targets(targets, mask))
    assert flat["labels"].dtype == torch.float32
    expected = F.binary_cross_entropy_with_logits(logits.double()[mask], targets.double()[mask], reduction="sum")
    assert float(flat["labels"]) == pytest.approx(float(expected), rel=1e-6)
    loss = TrainingLoss(focal, {"fine": 1, "coarse": 1, "consistency": 1}, groups=[GroupSpec([0]), GroupSpec([1])])
    sums = loss.sums(Logits(coarse, logits), Targets(targets, mask, targets[:, :2], mask[:, :2]))
    assert {value.dtype for value in sums.values()} == {torch.float32}
    expected = ((coarse.double().sigmoid() - logits.double()[:, :2].sigmoid()) ** 2).sum()
    assert float(sums["consistency"]) == pytest.approx(float(expected), rel=1e-5)
