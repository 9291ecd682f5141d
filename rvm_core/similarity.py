"""How similar the features of each place are to those of a given one, and its picture."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.floating]

_TINY = 1e-12


def feature_at(features: FloatArray, x: float, y: float) -> Float32Array:
    """The features of a map (rows, cols, D) at a point in grid coordinates, centres of cells at .5, as float32 (D,).

    Interpolated between the four nearest centres; beyond the outermost centres their features go on.
    """
    rows, cols = features.shape[:2]
    x, y = np.clip((x - 0.5, y - 0.5), 0, (cols - 1, rows - 1))
    left, top = min(int(x), max(0, cols - 2)), min(int(y), max(0, rows - 2))
    patch = features[top : top + 2, left : left + 2].astype(np.float32)
    across = np.array((1 - (x - left), x - left), np.float32)[: patch.shape[1]]
    down = np.array((1 - (y - top), y - top), np.float32)[: patch.shape[0]]
    return np.asarray(np.einsum("r,c,rcd->d", down, across, patch), np.float32)


def cosine_similarity(features: FloatArray, vector: FloatArray) -> Float32Array:
    """Cosine of the angle between each of the features (..., D) and a vector (D,), (...) in [-1, 1]; 0 for zeros."""
    features = features.astype(np.float32, copy=False)
    vector = vector.astype(np.float32, copy=False)
    lengths = np.linalg.norm(features, axis=-1) * np.linalg.norm(vector)
    return np.clip(features @ vector / np.maximum(lengths, np.float32(_TINY)), -1, 1)


def heat_colors(values: FloatArray, low: float, high: float) -> UInt8Array:
    """Values (rows, cols) as RGB uint8 (rows, cols, 3): black at `low`, over red to yellow at `high`."""
    scaled = (values - low) * (255 / max(high - low, _TINY))
    painted = cv2.applyColorMap(np.clip(np.round(scaled), 0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.asarray(cv2.cvtColor(painted, cv2.COLOR_BGR2RGB), np.uint8)
