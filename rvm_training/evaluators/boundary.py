"""F of DAVIS: how well the boundaries of two masks agree, with a tolerance that grows with the image.

Described with the benchmark (Perazzi et al., CVPR 2016). H x W image.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

TOLERANCE = 0.008
"""Of the image's diagonal; in pixels it is rounded up."""

BoolArray = npt.NDArray[np.bool_]


def boundary_f(first: npt.ArrayLike, second: npt.ArrayLike, *, tolerance: float = TOLERANCE) -> float:
    """The harmonic mean of precision and recall of the boundary pixels of two masks (H, W) of bool.

    A boundary pixel is found if one of the other mask is within the tolerance. 1 if neither mask has a boundary, 0 if
    only one has.
    """
    a, b = mask_boundary(first), mask_boundary(second)
    if a.shape != b.shape:
        raise ValueError(f"expected masks of one size, got {a.shape} and {b.shape}")
    count_a, count_b = int(a.sum()), int(b.sum())
    if not count_a or not count_b:
        return 1.0 if count_a == count_b else 0.0
    disk = _disk(int(np.ceil(tolerance * np.linalg.norm(a.shape))))
    precision = float((a & _near(b, disk)).sum()) / count_a
    recall = float((b & _near(a, disk)).sum()) / count_b
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def mask_boundary(mask: npt.ArrayLike) -> BoolArray:
    """The pixels (H, W) of a mask that differ from their neighbour to the right, below, or right below."""
    inside = np.asarray(mask, bool)
    # The edge repeated has no boundary at the image's border.
    around = np.pad(inside, ((0, 1), (0, 1)), mode="edge")
    differs: BoolArray = (inside != around[:-1, 1:]) | (inside != around[1:, :-1]) | (inside != around[1:, 1:])
    return differs


def _disk(radius: int) -> npt.NDArray[np.uint8]:
    offsets = np.arange(-radius, radius + 1)
    return (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.uint8)


def _near(boundary: BoolArray, disk: npt.NDArray[np.uint8]) -> BoolArray:
    return np.asarray(cv2.dilate(boundary.astype(np.uint8), disk), bool)
