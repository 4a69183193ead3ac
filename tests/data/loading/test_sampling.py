"""Rare classes drawn more often: how often, that it is a function of (seed, epoch), and what an epoch is made of."""

from collections import Counter

import numpy as np
import pytest

from data.loading.loaders import EpochBatchSampler
from data.loading.sampling import TARGET_PREVALENCE, draw, study_weights, times_before

NAMES = ("a", "b", "c")


def one_hot(counts) -> np.ndarray:
    return np.repeat(np.eye(len(counts)), counts, axis=0).astype(np.float32)


def findings(seed: int = 0, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = (rng.random((count, 3)) < [0.6, 0.2, 0.02]).astype(np.float32)
    mask = rng.random((count, 3)) < 0.8
    return np.where(mask, target, 0.7).astype(np.float32), mask  # what is unknown may have any value


def test_exclusive_classes_are_drawn_equally_often():
    target = one_hot([90, 9, 1])
    weights = study_weights("balanced", target, np.ones_like(target, bool), NAMES, True)
    assert weights.mean() == pytest.approx(1)
    assert (weights @ target) / 100 == pytest.approx([1 / 3] * 3)
    drawn = np.concatenate([draw(weights, 0, epoch) for epoch in range(6)])
    assert (target[drawn].sum(0) / len(drawn)) == pytest.approx([1 / 3] * 3, abs=0.01)


def test_the_two_sides_of_one_finding_are_drawn_equally_often_and_the_unknown_as_ever():
    target, mask = np.zeros((100, 1), np.float32), np.ones((100, 1), bool)
    target[:5], mask[90:] = 1, False
    weights = study_weights("balanced", target, mask, ("a",), False)
    assert weights[:5].sum() == pytest.approx(45) and weights[5:90].sum() == pytest.approx(45)
    assert weights[90:] == pytest.approx(np.ones(10))
    one_side = study_weights("balanced", np.ones((4, 1), np.float32), np.ones((4, 1), bool), ("a",), False)
    assert one_side.tolist() == [1, 1, 1, 1]


def test_several_findings_by_repeat_factors_against_a_slow_loop():
    target, mask = findings()
    expected = []
    for row, known in zip(target, mask):
        factor = 1.0
        for k in range(3):
            if known[k] and row[k] > 0.5:
                positives = sum(target[i, k] > 0.5 and mask[i, k] for i in range(len(target)))
                factor = max(factor, (TARGET_PREVALENCE / (positives / mask[:, k].sum())) ** 0.5)
        expected.append(factor)
    expected = np.array(expected) / np.mean(expected)
    assert study_weights("balanced", target, mask, NAMES, False) == pytest.approx(expected)


def test_weights_by_class_are_the_largest_of_the_known_positives():
    target = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 1]], np.float32)
    mask = np.ones_like(target, bool)
    mask[3, 2] = False
    weights = study_weights({"a": 2.0, "c": 5.0}, target, mask, NAMES, False)
    assert weights / weights[2] == pytest.approx([2, 1, 1, 2, 5])
    assert weights.mean() == pytest.approx(1)
    less = study_weights({"a": 0.5}, target, mask, NAMES, False)  # below 1: more seldom
    assert less / less[2] == pytest.approx([1, 1, 1, 0.5, 1])


def test_an_epoch_is_systematic_and_a_function_of_seed_and_epoch():
    target, mask = findings()
    weights = study_weights("balanced", target, mask, NAMES, False)
    counts = np.zeros(len(weights))
    for epoch in range(200):
        rows = draw(weights, 3, epoch)
        assert len(rows) == len(weights)
        times = np.bincount(rows, minlength=len(weights))
        assert (times >= np.floor(weights - 1e-9)).all() and (times <= np.ceil(weights + 1e-9)).all()
        counts += times
    assert counts / 200 == pytest.approx(weights, abs=0.15)
    assert (draw(weights, 3, 7) == draw(weights, 3, 7)).all()
    assert (draw(weights, 3, 7) != draw(weights, 3, 8)).any() and (draw(weights, 3, 7) != draw(weights, 4, 7)).any()


def test_batches_resume_in_the_middle_and_repeats_are_augmented_in_another_way():
    indices, weights = np.array([10, 20, 30, 40]), np.array([2.5, 0.5, 0.5, 0.5])
    sampler = EpochBatchSampler(indices, 2, True, 0, weights)
    sampler.epoch = 5
    whole = list(sampler)
    sampler.start = 1
    assert list(sampler) == whole[1:]
    keys = [key for batch in whole for key in batch]
    assert len(set(keys)) == len(keys) == 4  # no key twice: augmentation is a function of it
    repeated = Counter(row for _, row in keys)
    assert repeated[10] in (2, 3) and {epoch & 0xFFFFFFFF for epoch, _ in keys} == {5}
    assert sorted(epoch >> 32 for epoch, row in keys if row == 10) == list(range(repeated[10]))


def test_times_before():
    assert times_before(np.array([3, 5, 3, 3, 5])).tolist() == [0, 0, 1, 2, 1]
