"""k-means clusters of features, and a colour for each cluster.

Shapes: n vectors, D width, k clusters.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.intp]

_ATTEMPTS = 4
"""k-means finds a local optimum; the best of so many is kept."""
_ITERATIONS, _EPSILON = 100, 1e-4


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """A fixed division of the feature space: a vector belongs to the nearest centre."""

    centres: Float32Array
    """(k, D), the largest cluster first."""

    def assign(self, features: FloatArray) -> IntArray:
        """(..., D) -> the number of each vector's cluster, (...). Raises `ValueError` for another D."""
        if features.shape[-1] != self.centres.shape[1]:
            raise ValueError(f"expected features of {self.centres.shape[1]} channels, got shape {features.shape}")
        # |c - f|^2 without |f|^2, which is the same for all centres. Around their mean, so that no digits are lost.
        middle = self.centres.mean(axis=0)
        centres = self.centres - middle
        nearness = (features.astype(np.float32, copy=False) - middle) @ centres.T - (centres**2).sum(axis=1) / 2
        nearest: IntArray = nearness.argmax(axis=-1)
        return nearest

    def color(self, features: FloatArray) -> UInt8Array:
        """(..., D) -> uint8 RGB (..., 3)."""
        return cluster_colors(len(self.centres))[self.assign(features)]


def fit_clusters(vectors: FloatArray, k: int = 5, *, seed: int = 0) -> Clusters:
    """k-means with k-means++ starts of vectors (n, D); the same arguments always give the same clusters.

    Raises `ValueError` if there are fewer than k vectors, or a value is not finite.
    """
    if vectors.ndim != 2 or not 1 <= k <= len(vectors):
        raise ValueError(f"expected vectors (n, D) and 1 to n clusters, got shape {vectors.shape} and k = {k}")
    data = np.ascontiguousarray(vectors, np.float32)
    if not np.isfinite(data).all():
        raise ValueError("expected finite features, got NaN or infinity")
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, _ITERATIONS, _EPSILON)
    cv2.setRNGSeed(seed)
    _, labels, centres = cv2.kmeans(data, k, np.empty(0, np.int32), criteria, _ATTEMPTS, cv2.KMEANS_PP_CENTERS)
    order = np.argsort(-np.bincount(labels.ravel(), minlength=k), kind="stable")
    return Clusters(centres=np.asarray(centres, np.float32).reshape(k, -1)[order])


def cluster_colors(k: int) -> UInt8Array:
    """k clearly different colours, RGB uint8 (k, 3)."""
    colors = [colorsys.hsv_to_rgb((0.58 + i / k) % 1, 0.75, 1.0 if i % 2 == 0 else 0.8) for i in range(k)]
    return np.asarray(np.round(np.array(colors) * 255), np.uint8)
