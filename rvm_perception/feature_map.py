"""Reads a FeatureMap message with numpy alone: its features as an array, and its grid's place in the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from rvm_perception.msg import FeatureMap

Float64Array = npt.NDArray[np.float64]

# FLOAT32 and FLOAT16 of FeatureMap.msg; repeated so that reading needs no generated code. A test compares them.
_DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 2: np.dtype("<f2")}


class FeatureMapError(ValueError):
    """A FeatureMap message contradicts itself; the text says what was expected and what was received."""


def feature_map_to_numpy(msg: FeatureMap) -> npt.NDArray[Any]:
    """Patch features of a FeatureMap message as a (rows, cols, channels) array.

    The result is a read-only view of the message's data in the message's type, float32 or float16: it lives as long
    as the message's data and changes with it, so copy it to keep it. Raises `FeatureMapError` if type or sizes do not
    fit.
    """
    dtype = _DTYPES.get(msg.dtype)
    if dtype is None:
        raise FeatureMapError(f"expected dtype 1 (float32) or 2 (float16), got {msg.dtype}")
    shape = (msg.rows, msg.cols, msg.channels)
    if min(shape) <= 0:
        raise FeatureMapError(f"expected at least one row, column and channel, got {_sizes(shape)}")
    size = msg.rows * msg.cols * msg.channels * dtype.itemsize
    if len(msg.data) != size:
        raise FeatureMapError(f"expected {size} bytes for {_sizes(shape)} of {dtype.name}, got {len(msg.data)}")
    features: npt.NDArray[Any] = np.frombuffer(msg.data, dtype).reshape(shape)
    features.flags.writeable = False
    return features


def grid_to_pixels(msg: FeatureMap, cells: npt.ArrayLike) -> Float64Array:
    """Grid coordinates (..., 2) as (col, row), cell centres at .5, to source pixels (..., 2) as (x, y), float64."""
    affine = _affine(msg)
    return np.asarray(cells, np.float64) @ affine[:, :2].T + affine[:, 2]


def pixels_to_grid(msg: FeatureMap, pixels: npt.ArrayLike) -> Float64Array:
    """Source pixels (..., 2) as (x, y), pixel centres at .5, to grid coordinates (..., 2) as (col, row), float64.

    `np.floor` of the result is the cell; it may lie outside the grid, since parts of the image may not be seen.
    Raises `FeatureMapError` if the message's map has no inverse.
    """
    affine = _affine(msg)
    try:
        inverse = np.linalg.inv(affine[:, :2])
    except np.linalg.LinAlgError:
        raise FeatureMapError(
            f"expected a grid_to_image that can be inverted, got {affine.ravel().tolist()}; was it filled in?"
        ) from None
    return (np.asarray(pixels, np.float64) - affine[:, 2]) @ inverse.T


def _affine(msg: FeatureMap) -> Float64Array:
    return np.asarray(msg.grid_to_image, np.float64).reshape(2, 3)


def _sizes(shape: tuple[int, int, int]) -> str:
    return "{} rows, {} columns, {} channels".format(*shape)
