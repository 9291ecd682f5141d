"""What every kind of synthetic scene knows of its video, so that evaluators and readouts can take any of them.

T frames, H W image, O objects, P points. Pixel coordinates are (x, y): right, down, pixel centres at .5.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.intp]


class GroundTruth(Protocol):
    """The fields that all kinds of scenes share; `scenes.Scene` and `mujoco_scenes.MujocoScene` have them."""

    @property
    def video(self) -> UInt8Array:
        """(T, H, W, 3), RGB."""

    @property
    def labels(self) -> UInt8Array:
        """(T, H, W): which object is seen, from 1; 0 is the background."""

    @property
    def boxes(self) -> Float32Array:
        """(T, O, 4): x_min, y_min, x_max, y_max around what is seen of each object; NaN where nothing is seen."""

    @property
    def amodal_boxes(self) -> Float32Array:
        """(T, O, 4): the same around the whole object, also where it is hidden or outside of the image."""

    @property
    def seen_share(self) -> Float32Array:
        """(T, O): visible area over whole area, in [0, 1]."""

    @property
    def points(self) -> Float32Array:
        """(T, P, 2): x and y of each point, known also where it is hidden or outside of the image."""

    @property
    def visible(self) -> BoolArray:
        """(T, P): whether the point is in the image and nothing is in front of it."""

    @property
    def point_layers(self) -> IntArray:
        """(P,): what each point is on: 0 the background, otherwise the object's label."""

    @property
    def occluded(self) -> BoolArray:
        """(T, P): not visible, as the benchmarks name it."""


def seen_boxes(labels: UInt8Array, num_objects: int) -> Float32Array:
    """Boxes (T, O, 4) around each object's pixels in labels (T, H, W); NaN where it has none."""
    boxes = np.full((len(labels), num_objects, 4), np.nan, np.float32)
    for t, frame in enumerate(labels):
        for index in range(num_objects):
            mask = frame == index + 1
            rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            if len(rows):
                boxes[t, index] = cols[0], rows[0], cols[-1] + 1, rows[-1] + 1
    return boxes


def take_in_turns(owners: IntArray, count: int) -> IntArray:
    """Indices of `count` entries, the first of every owner, then the second of every owner, and so on."""
    turn = np.empty(len(owners), np.intp)
    for owner in np.unique(owners):
        turn[owners == owner] = np.arange(np.count_nonzero(owners == owner))
    return np.lexsort((owners, turn))[:count]
