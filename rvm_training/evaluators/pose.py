"""Mean end-point error of relative poses: how far apart two poses put the corners of a cube."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

CUBE: FloatArray = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
"""(8, 3): corners of the cube from -1 to 1 around the first camera, in the unit of the translation."""


def end_point_error(
    rotation: npt.ArrayLike,
    translation: npt.ArrayLike,
    true_rotation: npt.ArrayLike,
    true_translation: npt.ArrayLike,
    *,
    corners: npt.ArrayLike = CUBE,
) -> FloatArray:
    """Error of each pose (B,), in the unit of the translation: the mean distance between the two images of a corner.

    Rotations (B, 3, 3) and translations (B, 3) take a point p to R p + t. A benchmark's figure is the mean over its
    clips. Raises `ValueError` for shapes that do not fit and for numbers that are not finite.
    """
    moved = _moved(rotation, translation, corners)
    true = _moved(true_rotation, true_translation, corners)
    if moved.shape != true.shape:
        raise ValueError(f"expected as many poses as true ones, {len(true)}, got {len(moved)}")
    error: FloatArray = np.linalg.norm(moved - true, axis=-1).mean(axis=-1)
    return error


def _moved(rotation: npt.ArrayLike, translation: npt.ArrayLike, corners: npt.ArrayLike) -> FloatArray:
    r, t, p = (np.asarray(given, np.float64) for given in (rotation, translation, corners))
    if r.shape[1:] != (3, 3) or t.shape != (len(r), 3):
        raise ValueError(f"expected rotations (B, 3, 3) and translations (B, 3), got {r.shape} and {t.shape}")
    if not (np.isfinite(r).all() and np.isfinite(t).all()):
        raise ValueError("expected finite poses, got numbers that are not")
    moved: FloatArray = np.einsum("bij,cj->bci", r, p) + t[:, None]
    return moved
