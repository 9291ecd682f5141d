"""Augmentation of pretraining: a random resized crop of every frame or of a clip, a mirror image of whole clips."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from rvm_training.sampling_config import FrameSampling

UInt8Array = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]


def draw_crops(random: np.random.Generator, sampling: FrameSampling, count: int, height: int, width: int) -> IntArray:
    """Crops (count, 4) of frames of this size: y, x, height, width in whole pixels.

    A clip is square in the paper. So a square window as large as the frame's shorter side is put anywhere along the
    longer one, the same for all frames of the clip, and each frame gets its own crop in it: the ratio of width to
    height is uniform in its range, the share of the window's area is uniform from its least value to the largest one
    that fits with this ratio, and so is the place among those that fit.
    """
    side = min(height, width)
    window_y, window_x = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
    for_aspect, for_scale, *for_place = random.random((4, count))
    low, high = sampling.crop_aspect
    aspect = low + (high - low) * for_aspect
    fits = np.minimum(aspect, 1 / aspect)
    low, high = sampling.crop_scale
    least = np.minimum(low, fits)
    scale = least + (np.minimum(high, fits) - least) * for_scale
    crops = np.empty((count, 4), np.int64)
    crops[:, 2] = np.maximum(np.sqrt(scale / aspect) * side + 0.5, 1)
    crops[:, 3] = np.maximum(np.sqrt(scale * aspect) * side + 0.5, 1)
    crops[:, 0] = window_y + for_place[0] * (side + 1 - crops[:, 2])
    crops[:, 1] = window_x + for_place[1] * (side + 1 - crops[:, 3])
    return crops


def draw_flip(random: np.random.Generator, sampling: FrameSampling) -> bool:
    """Whether a clip is mirrored left to right."""
    return bool(random.random() < sampling.flip)


def crop_frame(frame: UInt8Array, crop: IntArray, flip: bool, out: UInt8Array) -> None:
    """Writes a crop (y, x, height, width) of a frame (H, W, 3), resized bicubically, to `out` (size, size, 3)."""
    y, x, height, width = crop.tolist()
    part = frame[y : y + height, x : x + width]
    size = out.shape[0]
    # A smaller picture without the averages of what lies between would flicker.
    shrinks = height > 1.5 * size and width > 1.5 * size
    if shrinks:
        half = (max(width // 2, size), max(height // 2, size))
        part = np.asarray(cv2.resize(part, half, interpolation=cv2.INTER_AREA), np.uint8)
    if flip:
        cv2.flip(cv2.resize(part, (size, size), interpolation=cv2.INTER_CUBIC), 1, out)
    else:
        cv2.resize(part, (size, size), out, interpolation=cv2.INTER_CUBIC)
