"""Intersection over union (IoU) of boxes and of masks.

T frames, B boxes or segments. Boxes are x_min, y_min, x_max, y_max and cover [x_min, x_max] x [y_min, y_max].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


def box_iou(first: npt.ArrayLike, second: npt.ArrayLike) -> Float64Array:
    """IoU (...) of boxes (..., 4) in pairs; 0 where both are empty, NaN where a box is NaN, that is, not there."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.clip(sides, 0, None).prod(axis=-1)
    union = _box_area(a) + _box_area(b) - shared
    return np.divide(shared, union, out=np.where(np.isnan(union), np.nan, 0.0), where=union > 0)


def mask_iou(first: npt.ArrayLike, second: npt.ArrayLike) -> Float64Array:
    """IoU (...) of masks (..., H, W) of bool in pairs; 1 where both are empty, as DAVIS counts it."""
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    shared = (a & b).sum(axis=(-2, -1))
    union = (a | b).sum(axis=(-2, -1))
    return np.divide(shared, union, out=np.ones(np.shape(union)), where=union > 0)


def label_iou(first: npt.ArrayLike, second: npt.ArrayLike, num_labels: int) -> Float64Array:
    """IoU (T, num_labels) of label images (T, H, W) of integers, for labels 1 to `num_labels`, as of `mask_iou`."""
    a, b = np.asarray(first).astype(np.intp), np.asarray(second).astype(np.intp)
    if a.shape != b.shape or a.ndim != 3:
        raise ValueError(f"expected label images (T, H, W) of one shape, got {a.shape} and {b.shape}")
    size = num_labels + 1
    for labels in (a, b):
        if labels.size and not 0 <= labels.min() <= labels.max() <= num_labels:
            raise ValueError(f"expected labels 0 to {num_labels}, got {labels.min()} to {labels.max()}")
    counts = np.stack([np.bincount((x * size + y).ravel(), minlength=size**2) for x, y in zip(a, b, strict=True)])
    confusion = counts.reshape(-1, size, size)
    shared = np.diagonal(confusion, axis1=1, axis2=2)[:, 1:]
    union = confusion.sum(axis=2)[:, 1:] + confusion.sum(axis=1)[:, 1:] - shared
    return np.divide(shared, union, out=np.ones(union.shape), where=union > 0)


def mean_after_start(values: npt.ArrayLike, start_frames: npt.ArrayLike) -> float:
    """Mean of `values` (T, B) over the frames after each track's own start (B,): the given frame is not counted.

    NaN values do not count either; NaN if nothing counts.
    """
    table = np.asarray(values, np.float64)
    after = np.arange(len(table))[:, None] > np.asarray(start_frames)[None, :]
    counted = table[after & ~np.isnan(table)]
    return float(counted.mean()) if counted.size else float("nan")


def _box_area(boxes: Float64Array) -> Float64Array:
    return np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(axis=-1)
