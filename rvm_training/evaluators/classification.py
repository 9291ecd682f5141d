"""Top-1 accuracy, with the probabilities of a video's clips averaged as on Kinetics."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def average_clips(logits: npt.ArrayLike) -> FloatArray:
    """Logits (videos, clips, classes) -> probabilities (videos, classes): the mean of the clips' softmax."""
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 3 or not logits.shape[1]:
        raise ValueError(f"expected logits (videos, clips, classes) of one clip or more, got {logits.shape}")
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: FloatArray = (powers / powers.sum(axis=-1, keepdims=True)).mean(axis=1)
    return probabilities


def top_1(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Share of videos whose highest score is their label's; NaN for no videos.

    scores (videos, classes): logits or probabilities; labels (videos,) int. Among equal scores the lowest class counts,
    so that a constant prediction is not right by a tie. Raises `ValueError` for shapes that do not fit, scores that
    are not numbers and labels that are no class.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"expected scores (videos, classes) and labels (videos,), got {scores.shape}, {labels.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"expected numbers, got {int(np.isnan(scores).sum())} scores that are not")
    if not labels.size:
        return float("nan")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"expected labels from 0 to {scores.shape[1] - 1}, got {labels.min()} to {labels.max()}")
    return float((scores.argmax(axis=1) == labels).mean())
