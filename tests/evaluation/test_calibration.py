"""Calibration against scikit-learn's logistic regression, grid searches, and what cannot be calibrated."""

import json
import math

import numpy as np
import pytest
from scipy.special import expit, log_softmax
from sklearn.linear_model import LogisticRegression

from configs.errors import CheckpointError, ConfigError
from evaluation.calibration import Calibration, fit_calibration, uncalibrated
from evaluation.reliability import expected_calibration_error
from utils.metrics import auroc


def overconfident(n=800, seed=0, slope=0.4, intercept=-0.7):
    """Three classes whose true log odds are slope · logit + intercept."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(n, 3))
    targets = (rng.random((n, 3)) < expit(slope * logits + intercept)).astype(float)
    return logits, targets, rng.random((n, 3)) < 0.9


def nll(line, z, t):
    u = line[0] * z + line[1]
    return -np.mean(t * np.log(expit(u)) + (1 - t) * np.log(expit(-u)))


def test_platt_equals_logistic_regression():
    logits, targets, mask = overconfident()
    found = fit_calibration(logits, targets, mask, "platt", smooth=False)
    for k in range(3):
        z, y = logits[mask[:, k], k], targets[mask[:, k], k]
        oracle = LogisticRegression(C=math.inf, tol=1e-10, max_iter=1000).fit(z[:, None], y)
        assert found.slopes[k] == pytest.approx(oracle.coef_[0, 0], abs=1e-6)
        assert found.intercepts[k] == pytest.approx(oracle.intercept_[0], abs=1e-6)
        assert found.slopes[k] == pytest.approx(0.4, abs=0.1) and found.intercepts[k] == pytest.approx(-0.7, abs=0.3)


def test_platts_targets_are_fitted():
    """The gradient of his likelihood, with targets (P + 1) / (P + 2) and 1 / (N + 2), vanishes at what was found."""
    logits, targets, mask = overconfident(40)
    found = fit_calibration(logits, targets, mask, "platt")
    for k in range(3):
        z, y = logits[mask[:, k], k], targets[mask[:, k], k]
        p, n = y.sum(), (1 - y).sum()
        t = np.where(y == 1, (p + 1) / (p + 2), 1 / (n + 2))
        line = np.array([found.slopes[k], found.intercepts[k]])
        residual = expit(line[0] * z + line[1]) - t
        assert abs(np.dot(residual, z)) < 1e-7 and abs(residual.sum()) < 1e-7
        assert all(nll(line, z, t) < nll(line + step, z, t) for step in ([0.01, 0], [-0.01, 0], [0, 0.01], [0, -0.01]))


def test_temperature_of_each_class_is_the_best_of_a_grid():
    logits, targets, mask = overconfident(intercept=0.0)
    found = fit_calibration(logits, targets, mask, "temperature")
    assert found.intercepts == (0.0, 0.0, 0.0) and found.reasons == ("", "", "")
    for k in range(3):
        z, y = logits[mask[:, k], k], targets[mask[:, k], k]
        grid = np.linspace(0.2, 0.8, 6001)
        best = grid[np.argmin([nll((slope, 0), z, y) for slope in grid])]
        assert found.slopes[k] == pytest.approx(best, abs=1e-4)


def test_exclusive_classes_have_one_temperature():
    rng = np.random.default_rng(3)
    logits = 4 * rng.normal(size=(600, 5))
    truth = np.array([rng.choice(5, p=p) for p in uncalibrated(logits / 2.5, True)])
    targets = np.eye(5)[truth]
    mask = np.ones((600, 5), bool)
    mask[-50:] = False
    found = fit_calibration(logits, targets, mask, "temperature", exclusive=True)
    assert len(set(found.slopes)) == 1 and 1 / found.slopes[0] == pytest.approx(2.5, rel=0.15)
    grid = np.linspace(0.3, 0.5, 2001)
    losses = [-np.mean((log_softmax(s * logits[:550], axis=1) * targets[:550]).sum(1)) for s in grid]
    assert found.slopes[0] == pytest.approx(grid[np.argmin(losses)], abs=2e-4)
    p = found.probabilities(logits)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-14)
    assert (p.argmax(1) == logits.argmax(1)).all()


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_calibration_lowers_the_error_and_keeps_ranks(method):
    logits, targets, mask = overconfident(intercept=0.0 if method == "temperature" else -0.7)
    fresh, fresh_targets, _ = overconfident(4000, 9, intercept=0.0 if method == "temperature" else -0.7)
    found = fit_calibration(logits, targets, mask, method)
    for k in range(3):
        before, after = uncalibrated(fresh, False)[:, k], found.probabilities(fresh)[:, k]
        errors = [expected_calibration_error(p, fresh_targets[:, k]) for p in (before, after)]
        print(f"{method}, class {k}: ECE {errors[0]:.3f} -> {errors[1]:.3f}")
        assert errors[1] < errors[0] / 2
        assert auroc(after, fresh_targets[:, k]) == pytest.approx(auroc(before, fresh_targets[:, k]), abs=1e-12)


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_what_cannot_be_calibrated_is_left_and_said(method):
    rng = np.random.default_rng(1)
    z = rng.normal(size=(200, 4))
    y = (rng.random((200, 4)) < expit(z)).astype(float)
    y[:, 1], y[:, 2], y[:, 3] = 0, 1, z[:, 3] < 0
    mask = np.ones((200, 4), bool)
    found = fit_calibration(z, y, mask, method)
    assert found.slopes[1:] == (1, 1, 1) and found.intercepts[1:] == (0, 0, 0)
    assert found.reasons[0] == "" and "no positives" in found.reasons[1] and "no negatives" in found.reasons[2]
    assert "do not rise" in found.reasons[3]
    np.testing.assert_array_equal(found.probabilities(z)[:, 1:], expit(z)[:, 1:])


def test_separated_scores_stay_finite():
    z = np.r_[np.linspace(-3, -1, 20), np.linspace(1, 3, 20)][:, None]
    y, mask = (z > 0).astype(float), np.ones((40, 1), bool)
    assert fit_calibration(z, y, mask, "temperature").slopes == (100.0,)
    smooth = fit_calibration(z, y, mask, "platt")
    assert smooth.reasons == ("",) and 0 < smooth.slopes[0] < 20
    assert "separated" in fit_calibration(z, y, mask, "platt", smooth=False).reasons[0]
    constant = fit_calibration(0 * z + 2, y, mask, "platt")
    assert "do not rise" in constant.reasons[0]


def test_calibration_comes_back_from_json():
    logits, targets, mask = overconfident(200)
    for method in ("temperature", "platt"):
        found = fit_calibration(logits, targets, mask, method)
        assert Calibration.from_dict(json.loads(json.dumps(found.as_dict()))) == found


@pytest.mark.parametrize(
    "change",
    [
        {"method": "magic"},
        {"slopes": [1.0, -1.0]},
        {"slopes": [1.0, math.nan]},
        {"slopes": [1.0]},
        {"slopes": [10**400, 1]},
        {"slopes": None},
        {"intercepts": ["x", 0]},
        {"slopes": [], "intercepts": [], "reasons": []},
    ],
)
def test_a_stored_calibration_that_cannot_be_is_refused(change):
    good = Calibration("platt", False, (1.0, 2.0), (0.0, 0.5), ("", "")).as_dict()
    with pytest.raises(CheckpointError, match="fit it again"):
        Calibration.from_dict({**good, **change})
    with pytest.raises(CheckpointError):
        Calibration.from_dict({key: value for key, value in good.items() if key != "method"})


def test_what_is_refused():
    z, one = np.zeros((2, 1)), np.ones((2, 1), bool)
    with pytest.raises(ConfigError, match=r"unknown calibration 'isotonic': it is one of temperature, platt, none"):
        fit_calibration(z, z, one, "isotonic")
    with pytest.raises(ConfigError, match="exclusive classes take calibration temperature"):
        fit_calibration(z, z, one, "platt", exclusive=True)
    with pytest.raises(ValueError, match=r"\[N, K\]"):
        fit_calibration(z, z[:1], one, "platt")
    with pytest.raises(ValueError, match="1 of 2 logits are not finite"):
        fit_calibration(np.array([[0.0], [math.inf]]), np.array([[0.0], [1.0]]), one, "platt")
    with pytest.raises(ValueError, match="3 classes"):
        Calibration("platt", False, (1.0,) * 3, (0.0,) * 3, ("",) * 3).probabilities(z)


def test_extreme_logits_do_not_overflow():
    logits = np.array([[-800.0, 800.0], [800.0, -800.0]])
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(uncalibrated(logits, False)).all() and np.isfinite(uncalibrated(logits, True)).all()


def test_newton_converges_from_afar():
    """Logits far off zero, tiny or huge in scale, rare positives, a few outliers."""
    rng = np.random.default_rng(2)
    for scale, shift, fraction, n in [
        (1e-4, 50, 0.01, 3000),
        (1e3, -1e4, 0.5, 50),
        (5, 0, 0.003, 20_000),
        (1, 0, 0.5, 4),
    ]:
        y = np.zeros(n)
        y[: max(int(fraction * n), 1)] = 1
        z = scale * (rng.normal(size=n) + 2 * y) + shift
        z[-1] += 40 * scale
        found = fit_calibration(z[:, None], y[:, None], np.ones((n, 1), bool), "platt")
        p, m = y.sum(), n - y.sum()
        residual = found.probabilities(z[:, None])[:, 0] - np.where(y > 0, (p + 1) / (p + 2), 1 / (m + 2))
        if not found.reasons[0]:
            assert abs(residual.mean()) < 1e-9 and abs(np.dot(residual, (z - z.mean()) / z.std())) / n < 1e-9
