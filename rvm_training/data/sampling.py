"""Which frames of a clip make an example of pretraining, and which patches are visible.

S source frames, K targets, T frames of a clip, V visible patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rvm_training.sampling_config import ClipSamplingConfig, FrameSampling, SamplingConfig

IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Frames:
    """The frames of an example."""

    source: IntArray
    """(S,): places in the clip, in the order of the video."""
    target: IntArray
    """(K,): places in the clip, in the order in which they were drawn."""
    gaps: Int32Array
    """(K,): frames from the last source frame to each target."""


def draw_frames(random: np.random.Generator, sampling: SamplingConfig, length: int) -> Frames:
    """Frames of an example from a clip of `length` frames.

    The sources start anywhere where the farthest target still fits; the gaps are drawn independently of each other and
    of the start. A clip too short for that is played forth and back until it is long enough. Raises `ValueError` for a
    clip without frames.
    """
    if length < 1:
        raise ValueError("expected a clip of one frame or more")
    span = sampling.source_frames + sampling.max_gap
    start = int(random.integers(max(length - span, 0) + 1))
    source = start + np.arange(sampling.source_frames)
    gaps = random.integers(sampling.min_gap, sampling.max_gap, sampling.targets, endpoint=True)
    return Frames(bounce(source, length), bounce(source[-1] + gaps, length), gaps.astype(np.int32))


def bounce(places: IntArray, length: int) -> IntArray:
    """Places in a clip that is played forth and back: 0, 1, 2, 1, 0, 1, ... for a length of 3."""
    if length == 1:
        return np.zeros_like(places)
    folded = places % (2 * length - 2)
    return np.minimum(folded, 2 * length - 2 - folded)


def draw_clip(random: np.random.Generator, sampling: ClipSamplingConfig, length: int) -> IntArray:
    """Frames (T,) of an example from a clip of `length` frames, which start anywhere where all of them fit.

    A clip too short for that is played forth and back until it is long enough. Raises `ValueError` for a clip without
    frames.
    """
    if length < 1:
        raise ValueError("expected a clip of one frame or more")
    start = int(random.integers(max(length - sampling.span, 0) + 1))
    return bounce(start + sampling.stride * np.arange(sampling.frames), length)


def draw_visible(random: np.random.Generator, sampling: FrameSampling, count: int) -> Int32Array:
    """Visible places (count, V) of so many masks, ascending: any set of V is as likely as any other."""
    keys = random.random((count, sampling.places))
    chosen = np.argpartition(keys, sampling.visible - 1, axis=1)[:, : sampling.visible]
    return np.sort(chosen, axis=1).astype(np.int32)
