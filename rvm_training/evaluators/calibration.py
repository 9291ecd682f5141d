"""Whether a confidence is the probability it says it is, and how to make it one from evidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 10
_RIDGE = 1e-3
"""Weight of the squared coefficients, in observations: keeps them finite where the evidence parts the cases exactly."""
_MAX_ITERATIONS = 100
_TOLERANCE = 1e-9

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Confidence beside truth, in bins of equal width."""

    edges: tuple[float, ...]
    """(BINS + 1,), from 0 to 1."""
    count: tuple[int, ...]
    """(BINS,): how many cases are in each bin."""
    confidence: tuple[float, ...]
    """(BINS,): their mean confidence, NaN in an empty bin."""
    frequency: tuple[float, ...]
    """(BINS,): the share of them that is true, NaN in an empty bin."""
    expected_calibration_error: float
    """Mean over all cases of |frequency - confidence| of their bin; NaN without cases."""
    brier_score: float
    """Mean of (confidence - truth)^2; NaN without cases."""


def reliability(confidence: npt.ArrayLike, truth: npt.ArrayLike, bins: int = BINS) -> Reliability:
    """Bins cases (n,) by confidence in [0, 1], beside whether they are true, bool (n,).

    Raises `ValueError` for confidences that are no probabilities, and for shapes that do not fit.
    """
    said, is_true = np.asarray(confidence, np.float64).ravel(), np.asarray(truth, bool).ravel()
    if said.shape != is_true.shape:
        raise ValueError(f"expected as many confidences as truths, got {said.size} and {is_true.size}")
    if not np.all((said >= 0) & (said <= 1)):
        raise ValueError("expected confidences in [0, 1]")
    index = np.minimum((said * bins).astype(np.intp), bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(index, said, bins) / count
        share = np.bincount(index, is_true, bins) / count
    gaps = np.where(count > 0, np.abs(share - mean), 0.0)
    return Reliability(
        edges=tuple(np.linspace(0, 1, bins + 1).tolist()),
        count=tuple(count.tolist()),
        confidence=tuple(mean.tolist()),
        frequency=tuple(share.tolist()),
        expected_calibration_error=float((gaps * count).sum() / said.size) if said.size else float("nan"),
        brier_score=float(np.mean((said - is_true) ** 2)) if said.size else float("nan"),
    )


def fit_logistic(features: npt.ArrayLike, truth: npt.ArrayLike) -> Float64Array:
    """Coefficients (k + 1,), the constant last, of the logistic function of features (n, k) that predicts truth (n,).

    The most likely ones, by Newton's method, with a very weak pull to 0, of features scaled to deviation 1. Raises
    `ValueError` for shapes that do not fit, values that are not finite and no cases.
    """
    x, y = np.asarray(features, np.float64), np.asarray(truth, bool).astype(np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(x):
        raise ValueError(f"expected features (n, k) and truths (n,) with n of 1 or more, got {x.shape} and {y.shape}")
    if not np.isfinite(x).all():
        raise ValueError("expected finite features")
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    deviation = np.where(deviation > 1e-12, deviation, 1.0)
    scaled = np.column_stack([(x - mean) / deviation, np.ones(len(x))])
    weights = _most_likely(scaled, y) / [*deviation, 1.0]
    weights[-1] -= weights[:-1] @ mean
    return weights


def apply_logistic(features: npt.ArrayLike, coefficients: npt.ArrayLike) -> Float64Array:
    """Probabilities (...) for `features` (..., k) by the coefficients (k + 1,) of `fit_logistic`."""
    weights = np.asarray(coefficients, np.float64)
    return _sigmoid(np.asarray(features, np.float64) @ weights[:-1] + weights[-1])


def _most_likely(x: Float64Array, y: Float64Array) -> Float64Array:
    weights = np.zeros(x.shape[1])
    loss = _loss(x, y, weights)
    for _ in range(_MAX_ITERATIONS):
        p = _sigmoid(x @ weights)
        gradient = x.T @ (p - y) + _RIDGE * weights
        curvature = (x * (p * (1 - p))[:, None]).T @ x + _RIDGE * np.eye(x.shape[1])
        step = np.linalg.solve(curvature, gradient)
        # The full step can go too far where the cases are almost parted.
        while (new := _loss(x, y, weights - step)) > loss and np.abs(step).max() > _TOLERANCE:
            step = step / 2
        weights, loss = weights - step, new
        if np.abs(step).max() < _TOLERANCE:
            break
    return weights


def _loss(x: Float64Array, y: Float64Array, weights: Float64Array) -> float:
    z = x @ weights
    return float(np.sum(np.logaddexp(0, z) - y * z) + _RIDGE / 2 * weights @ weights)


def _sigmoid(z: Float64Array) -> Float64Array:
    return np.asarray(0.5 * (1 + np.tanh(z / 2)))
