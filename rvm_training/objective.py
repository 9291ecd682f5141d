"""The objective of pretraining: pixels of masked target frames from source frames before them.

Shapes: B batch, S source frames, K targets, V visible patches of a target, H W frame in pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from rvm_core.model import RVM


class PretrainBatch(NamedTuple):
    """A batch of examples, as arrays of numpy or jax or as tensors of torch."""

    source: Any
    """uint8 (B, S, H, W, 3): consecutive source frames, RGB."""
    target: Any
    """uint8 (B, K, H, W, 3): target frames, RGB."""
    time_gaps: Any
    """int32 (B, K): frames from the last source frame to each target."""
    visible: Any
    """int32 (B, K, V): the visible patches of each target, row-major, ascending."""


def reconstruct(model: RVM, batch: PretrainBatch) -> tuple[Tensor, Tensor]:
    """Reconstructed and true targets, both (B, K, 3, H, W) float32, the true ones in [0, 1].

    The batch is of tensors, on the device of the model.
    """
    target = to_unit(batch.target)
    pixels, _ = model.reconstruct(to_unit(batch.source), target, batch.time_gaps.long(), batch.visible.long())
    return pixels, target


def loss(model: RVM, batch: PretrainBatch) -> Tensor:
    """Mean square of the difference over all pixels of all targets, hidden and visible, with values in [0, 1]."""
    pixels, target = reconstruct(model, batch)
    return (pixels.float() - target).square().mean()


def to_unit(frames: Tensor) -> Tensor:
    """uint8 (..., H, W, 3) -> float32 (..., 3, H, W) in [0, 1]."""
    return frames.movedim(-1, -3).float() / 255
