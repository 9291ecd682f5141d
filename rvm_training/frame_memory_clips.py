"""Clips of the frame memory task: synthetic scenes, or folders of shards or videos, small and whole in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from rvm_training.data.clip_sources import open_source
from rvm_training.data.scene_clips import FIRST_SEED, scene_video

UInt8Array = npt.NDArray[np.uint8]

SCENES = "scenes"
"""In the place of a folder: synthetic scenes."""


class MemoryClipError(ValueError):
    """A source has too few clips, or too short ones."""


def load_clips(path: str, count: int, *, frames: int, size: int) -> UInt8Array:
    """Clips (count, frames, size, size, 3), RGB, that do not overlap; always the same ones.

    path: a folder of shards or videos, or `SCENES`. Of long clips, one piece after the other is taken.
    Raises `MemoryClipError` if there are fewer, and what `open_source` raises.
    """
    pieces = _scenes(frames, size) if path == SCENES else _pieces(path, frames, size)
    found = list(itertools.islice(pieces, count))
    if len(found) < count:
        raise MemoryClipError(
            f"{path} has {len(found)} clips of {frames} frames, and {count} are wanted: give a folder of videos, or "
            f"shards made with --clip-frames {frames} or more"
        )
    return np.stack(found)


def _scenes(frames: int, size: int) -> Iterator[UInt8Array]:
    for seed in itertools.count(FIRST_SEED):
        yield scene_video("scenes", seed, size=size, num_frames=frames)


def _pieces(path: str, frames: int, size: int) -> Iterator[UInt8Array]:
    source = open_source(path, size)
    for number in range(len(source)):
        clip = source.clip(number)
        for begin in range(0, clip.length - frames + 1, frames):
            pictures = clip.read(range(begin, begin + frames))
            yield np.stack([_square(picture, size) for picture in pictures])


def _square(picture: UInt8Array, size: int) -> UInt8Array:
    """The middle of a picture (H, W, 3), made smaller."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = picture[top : top + side, left : left + side]
    return np.asarray(cv2.resize(middle, (size, size), interpolation=cv2.INTER_AREA), np.uint8)
