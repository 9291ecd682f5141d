"""Absolute relative error of depth, as on ScanNet: mean of |predicted - true| / true over the pixels that count."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MIN_DEPTH, MAX_DEPTH = 0.001, 10.0
"""Metres between which a measured depth counts."""


def abs_rel(
    predicted: npt.ArrayLike, truth: npt.ArrayLike, *, min_depth: float = MIN_DEPTH, max_depth: float = MAX_DEPTH
) -> float:
    """AbsRel of one video, a share; NaN where no pixel counts. A benchmark's figure is the mean over its videos.

    predicted and truth: depth in metres, of one shape. Pixels whose true depth is not inside (min_depth, max_depth), or
    not finite, do not count; predictions are held inside these limits. Raises `ValueError` for other shapes and for a
    prediction that is not a number where it counts.
    """
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    if predicted.shape != truth.shape:
        raise ValueError(f"expected predictions of the shape of the truth, {truth.shape}, got {predicted.shape}")
    valid = (truth > min_depth) & (truth < max_depth)
    if not valid.any():
        return float("nan")
    true = truth[valid]
    error = np.abs(np.clip(predicted[valid], min_depth, max_depth) - true) / true
    if np.isnan(error).any():
        raise ValueError(f"expected numbers, got {int(np.isnan(error).sum())} predictions that are not")
    return float(error.mean())
