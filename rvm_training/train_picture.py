"""Pictures of reconstructions during pretraining.

Shapes: B examples, S source frames, K targets, T frames of a clip, V visible patches, N all of a frame, H W frame.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rvm_core.config import PATCH_SIZE, TUBE_FRAMES
from rvm_core.reconstruction import hide_patches
from rvm_training.pretrain_batch import Batch, ClipBatch
from rvm_training.sampling_config import Mask

UInt8Array = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]


def draw_reconstructions(
    batch: Batch, pixels: npt.NDArray[np.float32], gap: int = 4, *, mask: Mask = "tubes"
) -> UInt8Array:
    """One row an example. Of sources and targets: the last source frame, the first target with hidden patches grey, as
    it was reconstructed, and as it is. Of a clip: the same three of its first frame, then of its last.

    batch of B examples, of numpy; pixels (B, K or T, 3, H, W) in the scale of [0, 1]; gap between pictures in pixels;
    mask: what is hidden as a whole in clips. Returns RGB (B * (H + gap) - gap, n * W + (n - 1) * gap, 3), n = 4 or 6.
    """
    rows = []
    if isinstance(batch, ClipBatch):
        for frames, visible, reconstructed in zip(batch.frames, batch.visible, pixels, strict=True):
            row = []
            for place in (0, len(frames) - 1):
                shown = _visible_in_frame(visible, place, frames.shape[1:3], mask)
                row += [hide_patches(frames[place], shown), _to_uint8(reconstructed[place]), frames[place]]
            rows.append(_joined(row, 1, gap))
        return _joined(rows, 0, gap)
    for source, target, visible, reconstructed in zip(batch.source, batch.target, batch.visible, pixels, strict=True):
        row = [source[-1], hide_patches(target[0], visible[0]), _to_uint8(reconstructed[0]), target[0]]
        rows.append(_joined(row, 1, gap))
    return _joined(rows, 0, gap)


def _visible_in_frame(visible: IntArray, place: int, size: tuple[int, int], mask: Mask) -> IntArray:
    """Patches that are visible in one frame of a clip."""
    if mask == "tubes":
        return visible
    patches = (size[0] // PATCH_SIZE) * (size[1] // PATCH_SIZE)
    inside = visible // patches == place // TUBE_FRAMES
    return visible[inside] % patches


def _to_uint8(pixels: npt.NDArray[np.float32]) -> UInt8Array:
    """(3, H, W) in the scale of [0, 1] -> (H, W, 3)."""
    return (np.moveaxis(np.clip(np.nan_to_num(pixels), 0, 1), 0, -1) * 255).round().astype(np.uint8)


def _joined(pictures: list[UInt8Array], axis: int, gap: int) -> UInt8Array:
    shape = list(pictures[0].shape)
    shape[axis] = gap
    white = np.full(shape, 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, white)][:-1]
    return np.concatenate(parts, axis=axis)
