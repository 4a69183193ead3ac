"""Learning from a teacher: against slow formulas in float64, in windows, through train.py, and what is refused."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from configs.default_config import Config
from configs.errors import ConfigError
from tests.training.toys import (
    CLASSES,
    SIDE,
    TensorLoader,
    differences,
    full_model,
    make_trainer,
    random_data,
    snapshot,
    train_windows,
)
from training.distillation import DistillationLoss, Teacher, soft_targets_loss, teacher_of
from training.losses import TrainingLoss, binary_cross_entropy, cross_entropy
from training.precision import Precision
from utils.batch import Inputs, Logits

PLAIN = Precision("cpu", None)
NAMES = ("a", "b", "c")
PREPARED = {"size": [8, 8], "channels": 1, "mean": [0.5], "std": [0.25], "resize_mode": "stretch"}


def random_logits(seed: int, rows: int = 6) -> torch.Tensor:
    return 3 * torch.randn(rows, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slow_findings(student: float, teacher: float, temperature: float) -> float:
    p, q = (1 / (1 + math.exp(-x / temperature)) for x in (student, teacher))
    return -(q * math.log(p) + (1 - q) * math.log(1 - p))


def slow_exclusive(student: list[float], teacher: list[float], temperature: float) -> float:
    rows = [[math.exp(x / temperature) for x in row] for row in (student, teacher)]
    p, q = ([x / sum(row) for x in row] for row in rows)
    return sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_soft_targets_loss_is_the_slow_formula(temperature):
    student, teacher = random_logits(0), random_logits(1)
    loss = soft_targets_loss(student, teacher, temperature, exclusive=False)
    for i in range(len(student)):
        for k in range(CLASSES):
            expected = slow_findings(float(student[i, k]), float(teacher[i, k]), temperature)
            assert float(loss[i, k]) == pytest.approx(expected, rel=1e-10)
    rows = soft_targets_loss(student, teacher, temperature, exclusive=True)
    assert rows.shape == (len(student), 1)
    for i in range(len(student)):
        expected = slow_exclusive(student[i].tolist(), teacher[i].tolist(), temperature)
        assert float(rows[i, 0]) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("exclusive", [False, True])
def test_its_gradient_is_right_and_zero_where_both_agree(exclusive):
    teacher = random_logits(1)
    student = random_logits(0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_targets_loss(x, teacher, 2.0, exclusive), student)
    same = teacher.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(soft_targets_loss(same, teacher, 2.0, exclusive).sum(), same)
    assert gradient.abs().max() < 1e-12


def test_the_pull_of_a_hot_teacher_does_not_fade():
    """T² keeps the gradient's size: for T → ∞, of findings, T² · dL/dx → (x − y) / 4."""
    student, teacher = random_logits(0).requires_grad_(), random_logits(1)
    (gradient,) = torch.autograd.grad(1e6 * soft_targets_loss(student, teacher, 1e3, False).sum(), student)
    torch.testing.assert_close(gradient, (student - teacher).detach() / 4, rtol=1e-4, atol=1e-4)


# ---- as a loss of training


def teacher_like(model: nn.Module) -> Teacher:
    return Teacher(model.eval(), PLAIN, range(CLASSES))


def distilling(weight: float = 0.3, temperature: float = 2.0, exclusive: bool = False) -> DistillationLoss:
    labels = TrainingLoss(cross_entropy if exclusive else binary_cross_entropy, exclusive=exclusive)
    return DistillationLoss(labels, teacher_like(full_model(5)), weight, temperature)


def batch_of(count: int, seed: int = 0):
    loader = TensorLoader(*random_data(count, seed), count)
    return next(iter(loader.epoch(0)))[1]


def test_value_is_the_weighted_sum_over_known_labels_and_over_all_the_teacher_says():
    loss, batch, student = distilling(), batch_of(10), full_model(1).eval()
    outputs = student(batch.inputs.image).detach()
    teachers = loss.teacher.model(batch.inputs.image).detach()
    pairs = [(i, k) for i in range(10) for k in range(CLASSES)]
    known = [(i, k) for i, k in pairs if batch.targets.mask[i, k]]
    assert 0 < len(known) < len(pairs)
    labels = binary_cross_entropy(outputs.double(), batch.targets.labels.double())
    hard = math.fsum(float(labels[i, k]) for i, k in known) / len(known)
    soft = math.fsum(slow_findings(float(outputs[i, k]), float(teachers[i, k]), 2.0) for i, k in pairs) / len(pairs)
    value = loss.total(loss.sums(Logits(None, outputs), batch.targets, batch.inputs), loss.counts(batch.targets))
    assert float(value) == pytest.approx(0.7 * hard + 0.3 * 4 * soft, rel=1e-5)
    assert loss.counts(batch.targets) == {"labels": len(known), "teacher": len(pairs)}


def test_exclusive_classes_and_hierarchical_outputs():
    batch, outputs = batch_of(10), random_logits(3, 10).float()
    loss = distilling(weight=1.0, temperature=3.0, exclusive=True)
    teachers = loss.teacher(batch.inputs).tolist()
    expected = 9 * np.mean([slow_exclusive(outputs[i].tolist(), teachers[i], 3.0) for i in range(10)])
    value = loss.total(loss.sums(Logits(None, outputs), batch.targets, batch.inputs), loss.counts(batch.targets))
    assert float(value) == pytest.approx(expected, rel=1e-5) and loss.counts(batch.targets)["teacher"] == 10
    fine = Teacher(Pair(), PLAIN, range(CLASSES))(batch.inputs)
    torch.testing.assert_close(fine, batch.inputs.image.mean((2, 3)).repeat(1, CLASSES))


class Pair(nn.Module):
    """A hierarchical teacher: (coarse, fine)."""

    def forward(self, x):
        return x.new_zeros(len(x), 2), x.mean((2, 3)).repeat(1, CLASSES)


def test_a_window_is_averaged_exactly_however_it_is_cut():
    """Trained in windows of 3 + 3 + 2 images and of 8, the weights are the same to rounding."""
    results = []
    for size, steps in ((8, 1), (3, 3)):
        torch.manual_seed(0)
        student = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES)).double()
        loss = DistillationLoss(TrainingLoss(binary_cross_entropy), teacher_like(full_model(5)), 0.6, 2.0)
        loss.teacher.model.double()
        trainer = make_trainer(student, rate=0.1, accumulation_steps=steps, loss=loss)
        images, target, mask = random_data(8)
        mask[:3] = False  # a micro-batch that only the teacher knows something of
        trainer.train_epoch(TensorLoader(images.double(), target.double(), mask, size))
        results.append(student[1].weight.detach().clone())
    assert float((results[0] - results[1]).abs().max()) < 1e-6
    assert trainer.state.global_step == 1


def test_the_teacher_is_only_asked():
    teacher = full_model(5)
    saved = SimpleNamespace(
        model=teacher.train(), class_names=NAMES, preprocessing=PREPARED, config=Config.from_overrides([])
    )
    loss = DistillationLoss(
        TrainingLoss(binary_cross_entropy),
        teacher_of(saved, NAMES, PREPARED, False, PLAIN, torch.device("cpu")),
        0.5,
        2.0,
    )
    before = copy.deepcopy(teacher.state_dict())
    student = full_model(1)
    trainer = make_trainer(student, loss=loss, epochs=1)
    trainer.train_epoch(TensorLoader(*random_data(16), 8))
    assert not teacher.training and all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    assert differences(before, teacher.state_dict()) == []
    assert differences(full_model(1).state_dict(), student.state_dict())
    content = trainer.learner.state_dict()
    assert content["model"].keys() == student.state_dict().keys()  # nothing of the teacher in a checkpoint


def test_interrupted_and_resumed_bit_for_bit():
    loader = TensorLoader(*random_data(32), 4)

    def fresh():
        return make_trainer(full_model(1), loss=distilling(), accumulation_steps=2, ema=0.9)

    torch.manual_seed(3)
    whole = fresh()
    whole.train_epoch(loader)
    torch.manual_seed(3)
    first = fresh()
    train_windows(first, loader, 2)
    saved = copy.deepcopy(first.learner.state_dict())
    second = fresh()
    torch.manual_seed(99)
    second.learner.load_state_dict(saved)
    second.train_epoch(loader)
    assert differences(snapshot(whole), snapshot(second)) == []


def test_a_student_of_a_teacher_alone_becomes_like_it():
    """weight 1: labels say nothing, the student approaches the teacher's logits."""
    torch.manual_seed(0)
    images, target, mask = random_data(128)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))
    student = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))
    loss = DistillationLoss(TrainingLoss(binary_cross_entropy), teacher_like(teacher), 1.0, 2.0)
    trainer = make_trainer(student, rate=0.01, loss=loss, weight_decay=0.0, epochs=15)
    before = float((student(images) - teacher(images)).detach().abs().mean())
    trainer.fit(TensorLoader(images, target, mask, 16), TensorLoader(images[:8], target[:8], mask[:8], 8))
    after = float((student(images) - teacher(images)).detach().abs().mean())
    print(f"mean difference of logits {before:.3f} → {after:.3f}")
    assert after < before / 3


# ---- who may teach whom


def saved_teacher(names=NAMES, preprocessing=None, *overrides: str):
    config = Config.from_overrides(list(overrides))
    prepared = PREPARED if preprocessing is None else preprocessing
    return SimpleNamespace(model=full_model(5), class_names=names, preprocessing=prepared, config=config)


def ask(saved, names=NAMES, preprocessing=PREPARED, exclusive=False) -> Teacher:
    return teacher_of(saved, names, preprocessing, exclusive, PLAIN, torch.device("cpu"))


def test_classes_are_matched_by_name():
    images = random_data(4)[0]
    logits = full_model(5).eval()(images).detach()
    torch.testing.assert_close(ask(saved_teacher())(Inputs.of_images(images)), logits)
    torch.testing.assert_close(ask(saved_teacher(), ("c", "a", "b"))(Inputs.of_images(images)), logits[:, [2, 0, 1]])
    torch.testing.assert_close(ask(saved_teacher(), ("b",))(Inputs.of_images(images)), logits[:, [1]])


def test_images_are_brought_to_the_teachers_normalisation():
    raw = torch.rand(4, 1, SIDE, SIDE, dtype=torch.float64)
    other = {**PREPARED, "mean": [0.3], "std": [0.1]}
    expected = full_model(5).eval()(((raw - 0.3) / 0.1).float()).detach()
    found = ask(saved_teacher(preprocessing=other))(Inputs.of_images(((raw - 0.5) / 0.25).float()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    volumes = {"size": [4, 8, 8], "channels": 1, "mean": [0.5], "std": [0.2], "spacing_mm": None, "window": None}
    teacher = ask(saved_teacher(preprocessing={**volumes, "mean": [0.1]}), preprocessing=volumes)
    assert teacher.scale is not None and teacher.scale.shape == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        (saved_teacher(("a", "b", "x")), "lacks c; its classes are a, b, x"),
        (saved_teacher(None), "does not say what its classes are"),
        (saved_teacher(NAMES, {**PREPARED, "size": [16, 16]}), r"size \[16, 16\] instead of \[8, 8\]"),
        (saved_teacher(NAMES, {**PREPARED, "resize_mode": "letterbox"}), "letterbox instead of stretch"),
        (saved_teacher(NAMES, {**PREPARED, "channels": 3}), "channels 3 instead of 1"),
        (saved_teacher(NAMES, None, "MODEL.task=multi_class"), "one kind"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(saved, words):
    with pytest.raises(ConfigError, match=r"LOSS\.teacher.*" + words):
        ask(saved)


def test_an_exclusive_teacher_must_have_the_same_classes():
    saved = saved_teacher(("a", "b", "c"), None, "MODEL.task=multi_class", "LOSS.type=cross_entropy")
    assert list(ask(saved, ("c", "b", "a"), exclusive=True).columns) == [2, 1, 0]
    with pytest.raises(ConfigError, match="has c besides"):
        ask(saved, ("a", "b"), exclusive=True)


def test_a_file_without_preprocessing_is_refused():
    saved = saved_teacher()
    saved.preprocessing = None
    with pytest.raises(ConfigError, match="how its images were prepared"):
        ask(saved)
