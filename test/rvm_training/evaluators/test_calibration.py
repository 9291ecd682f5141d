"""Reliability of confidences, and the logistic fit."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rvm_training.evaluators.calibration import apply_logistic, fit_logistic, reliability


def test_reliability_by_hand() -> None:
    result = reliability([0.1, 0.2, 0.9, 1.0], [False, True, True, True], bins=2)
    assert result.edges == (0, 0.5, 1)
    assert result.count == (2, 2)
    assert result.confidence == pytest.approx((0.15, 0.95))
    assert result.frequency == pytest.approx((0.5, 1.0))
    assert result.expected_calibration_error == pytest.approx((0.35 * 2 + 0.05 * 2) / 4)
    assert result.brier_score == pytest.approx((0.01 + 0.64 + 0.01 + 0) / 4)


def test_empty_bins_and_no_cases() -> None:
    assert np.isnan(reliability([0.95], [True]).frequency).tolist() == [True] * 9 + [False]
    nothing = reliability([], [])
    assert sum(nothing.count) == 0 and math.isnan(nothing.expected_calibration_error)


def test_calibrated_confidence_has_a_small_error() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(20_000)
    truth = rng.random(20_000) < confidence
    assert reliability(confidence, truth).expected_calibration_error < 0.02
    assert reliability(confidence**2, truth).expected_calibration_error > 0.1


@pytest.mark.parametrize("confidence", [[1.1], [-0.1], [math.nan]])
def test_confidences_that_are_none(confidence: list[float]) -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        reliability(confidence, [True])


def test_fit_finds_the_coefficients() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal((0, 40), (1, 8), (40_000, 2))
    true = np.array([1.5, -0.2, 7.0])
    truth = rng.random(len(features)) < apply_logistic(features, true)
    found = fit_logistic(features, truth)
    np.testing.assert_allclose(found, true, rtol=0.06)
    probabilities = apply_logistic(features, found)
    assert reliability(probabilities, truth).expected_calibration_error < 0.01
    # At the most likely coefficients the mean probability is the share of true cases.
    assert probabilities.mean() == pytest.approx(truth.mean(), abs=1e-5)


def test_fit_of_parted_and_of_constant_cases_is_finite() -> None:
    x = np.linspace(-1, 1, 50)[:, None]
    parted = fit_logistic(x, x[:, 0] > 0)
    assert np.isfinite(parted).all() and parted[0] > 5
    assert apply_logistic([0.5], fit_logistic(np.ones((30, 1)), np.ones(30, bool))) > 0.95


def test_fit_refuses() -> None:
    with pytest.raises(ValueError, match=r"features \(n, k\)"):
        fit_logistic(np.zeros((3, 1)), np.zeros(2, bool))
    with pytest.raises(ValueError, match="finite"):
        fit_logistic(np.full((2, 1), np.nan), np.zeros(2, bool))
