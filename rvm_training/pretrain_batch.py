"""Batches of pretraining, as arrays of numpy or jax or as tensors of torch. Needs neither torch nor jax.

Shapes: B batch, S source frames, K targets, T frames of a clip, V visible patches, H W frame in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from rvm_training.sampling_config import ClipSamplingConfig, SamplingConfig


class PretrainBatch(NamedTuple):
    """Examples of source frames and targets."""

    source: Any
    """uint8 (B, S, H, W, 3): consecutive source frames, RGB."""
    target: Any
    """uint8 (B, K, H, W, 3): target frames, RGB."""
    time_gaps: Any
    """int32 (B, K): frames from the last source frame to each target."""
    visible: Any
    """int32 (B, K, V): the visible patches of each target, row-major, ascending."""


class ClipBatch(NamedTuple):
    """Examples of clips that are partly hidden."""

    frames: Any
    """uint8 (B, T, H, W, 3): frames of a clip, RGB."""
    visible: Any
    """int32 (B, V), ascending: patches that are visible in all frames, row-major; or tubelets, by time, row, column."""


Batch: TypeAlias = PretrainBatch | ClipBatch
Sampling: TypeAlias = SamplingConfig | ClipSamplingConfig


def batch_like(example: Batch, arrays: Iterable[Any]) -> Batch:
    """The batch of these arrays, of the kind of another one."""
    make: Any = type(example)._make
    return make(arrays)


class Layout(NamedTuple):
    """Of an array."""

    shape: tuple[int, ...]
    dtype: type[np.generic]


def batch_layout(sampling: Sampling, batch_size: int) -> Batch:
    """The `Layout` of every array of a batch, as a batch."""
    picture = (sampling.image_size, sampling.image_size, 3)
    if isinstance(sampling, ClipSamplingConfig):
        return ClipBatch(
            Layout((batch_size, sampling.frames, *picture), np.uint8),
            Layout((batch_size, sampling.visible), np.int32),
        )
    return PretrainBatch(
        Layout((batch_size, sampling.source_frames, *picture), np.uint8),
        Layout((batch_size, sampling.targets, *picture), np.uint8),
        Layout((batch_size, sampling.targets), np.int32),
        Layout((batch_size, sampling.targets, sampling.visible), np.int32),
    )
