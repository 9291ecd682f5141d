"""Masks and joints to soft labels and back, as the evaluation protocols of the release do it.

Shapes: H x W original image, h rows and w columns of the grid, K labels, J joints.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

_JOINT_SIGMA = 0.5
"""Width of a joint's Gaussian, cells."""
_BEST_CELLS = 5
"""Cells whose mean is a joint's position."""


def mask_to_labels(
    mask: npt.NDArray[np.integer], *, processing_size: tuple[int, int], grid: tuple[int, int]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.integer]]:
    """A label image (H, W) as one plane per label that is present: float32 (h, w, K), and the labels (K,).

    `processing_size` is the (height, width) in pixels at which the encoder sees the frame.
    """
    values = np.unique(mask)
    height, width = processing_size
    small = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    planes = [cv2.resize((small == value).astype(np.float32), grid[::-1]) for value in values]
    return np.stack(planes, axis=-1), values


def labels_to_mask(
    labels: npt.NDArray[np.float32],
    values: npt.NDArray[np.integer],
    *,
    processing_size: tuple[int, int],
    size: tuple[int, int],
) -> npt.NDArray[np.integer]:
    """Soft labels (h, w, K) as a label image of the original size (H, W) with the dtype of `values` (K,)."""
    height, width = processing_size
    # One plane at a time, as OpenCV takes no more than four channels in some builds; the largest so far is kept.
    best = np.full((height, width), -np.inf, np.float32)
    winner = np.zeros((height, width), np.intp)
    for label in range(labels.shape[-1]):
        plane = cv2.resize(np.ascontiguousarray(labels[..., label]), (width, height), interpolation=cv2.INTER_LINEAR)
        higher = plane > best
        best[higher], winner[higher] = plane[higher], label
    return values[winner][np.ix_(_nearest(height, size[0]), _nearest(width, size[1]))]


def _nearest(source: int, target: int) -> npt.NDArray[np.intp]:
    """Index of the nearest of `source` pixels for each of `target` pixels.

    A running sum decides ties as Pillow does, by which the reference masks were made; OpenCV's differ between versions.
    """
    step = source / target
    return np.cumsum(np.concatenate([[step / 2], np.full(target - 1, step)])).astype(np.intp)


def joints_to_labels(
    joints: npt.NDArray[np.floating], *, size: tuple[int, int], grid: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Joints (J, 2) as (x, y) in pixels of an image of `size` (H, W): a Gaussian each, float32 (h, w, 1 + J).

    Plane 0 is one where no joint is. Joints outside of the image leave their plane empty.
    """
    height, width = grid
    labels = np.zeros((height, width, 1 + len(joints)), np.float32)
    reach = 3 * _JOINT_SIGMA
    offsets = np.arange(int(2 * reach) + 1) - int(2 * reach + 1) // 2
    for joint, (x, y) in enumerate(np.asarray(joints, np.float64) * [width / size[1], height / size[0]], start=1):
        # The Gaussian's window; int() rounds towards zero, which is the release's rule.
        left, top, right, bottom = int(x - reach), int(y - reach), int(x + reach + 1), int(y + reach + 1)
        if left >= width or top >= height or right < 0 or bottom < 0:
            continue
        columns, rows = left + np.arange(len(offsets)), top + np.arange(len(offsets))
        gaussian = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * _JOINT_SIGMA**2))
        in_x = (columns >= 0) & (columns < min(right, width))
        in_y = (rows >= 0) & (rows < min(bottom, height))
        labels[rows[in_y][:, None], columns[in_x], joint] = gaussian[np.ix_(in_y, in_x)]
    labels[..., 0] = labels.sum(-1) == 0
    return labels


def labels_to_joints(labels: npt.NDArray[np.float32], *, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Soft labels (h, w, 1 + J) as joints (J, 2), x and y in pixels of an image of `size`; -1 where a plane is empty.

    A position is the mean of the five best cells' corners, weighted by their values.
    """
    height, width = labels.shape[:2]
    planes = labels[..., 1:].reshape(height * width, -1)
    cells = np.argsort(-planes, axis=0, kind="stable")[:_BEST_CELLS]
    weights = np.take_along_axis(planes, cells, axis=0).astype(np.float64)
    total = weights.sum(0)
    corners: Sequence[npt.NDArray[np.intp]] = (cells % width, cells // width)
    mean = np.stack([(corner * weights).sum(0) for corner in corners], axis=-1) / np.maximum(total, 1e-300)[:, None]
    joints = mean * [size[1] / width, size[0] / height]
    joints[planes.sum(0) == 0] = -1
    return joints.astype(np.float32)
