"""The objective of pretraining: the pixels of frames of which only a few patches are shown.

Shapes: B batch, K targets or all frames of a clip, H W frame in pixels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rvm_training.pretrain_batch import Batch, ClipBatch, PretrainBatch

__all__ = ["PretrainBatch", "loss", "reconstruct", "to_unit"]


def reconstruct(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Reconstructed and true frames, both (B, K, 3, H, W) float32, the true ones in [0, 1].

    model: of the kind that learns from such batches (see `pretrain_model.build_model`). The batch is of tensors, on its
    device.
    """
    if isinstance(batch, ClipBatch):
        frames = to_unit(batch.frames)
        return model.reconstruct(frames, batch.visible.long()), frames
    target = to_unit(batch.target)
    pixels, _ = model.reconstruct(to_unit(batch.source), target, batch.time_gaps.long(), batch.visible.long())
    return pixels, target


def loss(model: Any, batch: Batch) -> Tensor:
    """Mean square of the difference over all pixels of all these frames, hidden and visible, with values in [0, 1]."""
    pixels, truth = reconstruct(model, batch)
    return (pixels.float() - truth).square().mean()


def to_unit(frames: Tensor) -> Tensor:
    """uint8 (..., H, W, 3) -> float32 (..., 3, H, W) in [0, 1]."""
    return frames.movedim(-1, -3).float() / 255
