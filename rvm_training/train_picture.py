"""Pictures of reconstructions during pretraining.

Shapes: B examples, S source frames, K targets, V visible patches, H W frame.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rvm_core.reconstruction import hide_patches
from rvm_training.objective import PretrainBatch

UInt8Array = npt.NDArray[np.uint8]


def draw_reconstructions(batch: PretrainBatch, pixels: npt.NDArray[np.float32], gap: int = 4) -> UInt8Array:
    """One row an example: the last source frame, the first target with hidden patches grey, as it was reconstructed,
    and as it is.

    batch of B examples, of numpy; pixels (B, K, 3, H, W) in the scale of [0, 1]; gap between pictures in pixels.
    Returns RGB (B * (H + gap) - gap, 4 * W + 3 * gap, 3).
    """
    rows = []
    for source, target, visible, reconstructed in zip(batch.source, batch.target, batch.visible, pixels, strict=True):
        shown = (np.moveaxis(np.clip(np.nan_to_num(reconstructed[0]), 0, 1), 0, -1) * 255).round().astype(np.uint8)
        rows.append(_joined([source[-1], hide_patches(target[0], visible[0]), shown, target[0]], 1, gap))
    return _joined(rows, 0, gap)


def _joined(pictures: list[UInt8Array], axis: int, gap: int) -> UInt8Array:
    shape = list(pictures[0].shape)
    shape[axis] = gap
    white = np.full(shape, 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, white)][:-1]
    return np.concatenate(parts, axis=axis)
