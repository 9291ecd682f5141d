"""What RVM's features are measured against, as features of patches: raw pixels, and histograms of colours.

Shapes: H W image, multiples of the patch size; N patches.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from rvm_core.config import PATCH_SIZE

COLOUR_LEVELS = 6
"""Into so many levels each colour channel is divided for a histogram."""

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]


def pixel_tokens(frame: UInt8Array) -> torch.Tensor:
    """The pixels of each patch, without the frame's mean colour, as features: (H, W, 3) to float32 (N + 1, 768)."""
    patches = _patches(frame).astype(np.float32) / np.float32(255)
    patches -= patches.mean(axis=(0, 1))
    return _with_mean_token(patches.reshape(len(patches), -1))


def colour_tokens(frame: UInt8Array) -> torch.Tensor:
    """The histogram of the colours of each patch as features: (H, W, 3) to float32 (N + 1, COLOUR_LEVELS ** 3).

    They are roots of shares, so that the product of two is the Bhattacharyya coefficient of the histograms.
    """
    patches = _patches(frame)
    levels = patches.astype(np.intp) * COLOUR_LEVELS // 256
    bins = levels @ np.array([COLOUR_LEVELS**2, COLOUR_LEVELS, 1])
    size = COLOUR_LEVELS**3
    bins += size * np.arange(len(bins))[:, None]
    counts = np.bincount(bins.ravel(), minlength=size * len(bins)).reshape(-1, size)
    return _with_mean_token(np.sqrt(counts / counts.sum(axis=1, keepdims=True)).astype(np.float32))


def _patches(frame: UInt8Array) -> UInt8Array:
    """(N, 256, 3)."""
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.shape[0] % PATCH_SIZE or frame.shape[1] % PATCH_SIZE:
        raise ValueError(f"expected a frame (H, W, 3) with sides that are multiples of {PATCH_SIZE}, got {frame.shape}")
    rows, cols = frame.shape[0] // PATCH_SIZE, frame.shape[1] // PATCH_SIZE
    patches = frame.reshape(rows, PATCH_SIZE, cols, PATCH_SIZE, 3).swapaxes(1, 2)
    return patches.reshape(rows * cols, PATCH_SIZE * PATCH_SIZE, 3)


def _with_mean_token(features: Float32Array) -> torch.Tensor:
    """Puts the mean in the place of [CLS]."""
    return torch.from_numpy(np.concatenate([features.mean(axis=0, keepdims=True), features]))
