"""Label codes, policies and coarse classes against slow loops."""

import numpy as np
import pytest

from configs.errors import DataError
from data.labels import (
    NIH_FINDINGS,
    UNCERTAIN_POLICIES,
    CoarseGroup,
    apply_uncertain,
    coarse_targets,
    default_groups,
    is_no_finding,
    nearest,
    parse_cell,
)

NAN = np.nan


def random_labels(rows: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([1, 0, -1, NAN], np.float32), (rows, classes))


def test_nih_findings():
    assert len(NIH_FINDINGS) == len(set(NIH_FINDINGS)) == 14


@pytest.mark.parametrize(
    "text, want", [("1", 1), ("0", 0), ("-1", -1), (" 1.0 ", 1), ("0.0", 0), ("-1.0", -1), ("", NAN), ("NaN", NAN)]
)
def test_parse_cell(text, want):
    np.testing.assert_equal(parse_cell(text), float(want))


@pytest.mark.parametrize("text", ["2", "yes", "0.5", "inf", "1,0", "--1", "True"])
def test_parse_cell_refuses(text):
    with pytest.raises(ValueError, match="is not 1, 0, -1 or empty"):
        parse_cell(text)


def test_names():
    assert is_no_finding("no_finding") and is_no_finding("No Finding") and not is_no_finding("Mass")
    assert nearest("efusion", NIH_FINDINGS) == ": did you mean 'Effusion'?"
    assert nearest("zzz", NIH_FINDINGS) == ""


@pytest.mark.parametrize("policy", UNCERTAIN_POLICIES)
def test_apply_uncertain_is_a_loop(policy):
    labels = random_labels(200, 5)
    before = labels.copy()
    targets, mask = apply_uncertain(labels, policy, seed=3)
    assert targets.dtype == np.float32 and mask.dtype == bool
    np.testing.assert_array_equal(labels, before)
    for row in range(200):
        for column in range(5):
            code, target, known = labels[row, column], targets[row, column], mask[row, column]
            if np.isnan(code):
                assert not known and target == 0
            elif code >= 0:
                assert known and target == code
            elif policy == "ignore":
                assert not known and target == 0
            elif policy == "smooth":
                assert known and 0.55 <= target <= 0.85
            else:
                assert known and target == (policy == "ones")


def test_smooth_depends_on_seed_row_and_class_only():
    labels = np.full((4000, 3), -1, np.float32)
    first, _ = apply_uncertain(labels, "smooth", 7)
    np.testing.assert_array_equal(first, apply_uncertain(labels, "smooth", 7)[0])
    np.testing.assert_array_equal(first[:100], apply_uncertain(labels[:100], "smooth", 7)[0])
    sparse = np.where(np.arange(4000)[:, None] % 3 == 0, labels, 0)
    picked = apply_uncertain(sparse, "smooth", 7)[0]
    np.testing.assert_array_equal(picked[::3], first[::3])
    assert (first != apply_uncertain(labels, "smooth", 8)[0]).mean() > 0.99
    assert len(np.unique(first)) > 11000
    assert abs(first.mean() - 0.7) < 0.005 and abs(first.std() - 0.3 / 12**0.5) < 0.003
    assert np.abs(np.corrcoef(first.T) - np.eye(3)).max() < 0.06
    assert np.isfinite(apply_uncertain(labels[:2], "smooth", -5)[0]).all()


def test_apply_uncertain_refuses():
    with pytest.raises(DataError, match="did you mean 'smooth'"):
        apply_uncertain(random_labels(2, 2), "smoth", 0)
    with pytest.raises(DataError, match="must be 1, 0, -1 or NaN"):
        apply_uncertain(np.array([[2.0]], np.float32), "ones", 0)


def slow_group(targets, mask, row, members, negated):
    """(target, known) of one coarse class by its definition."""
    known = [float(targets[row, member]) for member in members if mask[row, member]]
    positive = [value for value in known if value > 0]
    if positive:
        return (1 - max(positive) if negated else max(positive)), True
    if len(known) == len(members):
        return (1.0 if negated else 0.0), True
    return 0.0, False


@pytest.mark.parametrize("policy", UNCERTAIN_POLICIES)
def test_coarse_targets_are_a_loop(policy):
    targets, mask = apply_uncertain(random_labels(300, 6, 5), policy, 0)
    groups = (*default_groups([f"c{i}" for i in range(6)]), ("lungs", [0, 2, 4], False), CoarseGroup("one", (5,), True))
    coarse, known = coarse_targets(targets, mask, groups)
    assert coarse.shape == known.shape == (300, 4)
    assert coarse.dtype == np.float32 and known.dtype == bool
    for row in range(300):
        for column, (_, members, negated) in enumerate(groups):
            want, is_known = slow_group(targets, mask, row, members, negated)
            assert known[row, column] == is_known
            assert coarse[row, column] == pytest.approx(want, abs=1e-6)


def test_default_groups_leave_out_no_finding():
    groups = default_groups(("No Finding", "Mass", "Nodule"))
    assert groups == (("any finding", (1, 2), False), ("no finding", (1, 2), True))


def test_coarse_targets_refuse():
    targets, mask = np.zeros((2, 3), np.float32), np.ones((2, 3), bool)
    with pytest.raises(DataError, match="'empty' has no members"):
        coarse_targets(targets, mask, [("empty", [], False)])
    with pytest.raises(DataError, match="classes are 0 to 2"):
        coarse_targets(targets, mask, [("beyond", [3], False)])
