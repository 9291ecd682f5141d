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


_OVERLAPPING = 4
"""Pieces that have a frame in common, where they may."""


class MemoryClipError(ValueError):
    """A source has too few clips, or too short ones."""


def load_clips(path: str, count: int, *, apart: int, frames: int, size: int) -> UInt8Array:
    """Clips (count, frames, size, size, 3), RGB; always the same ones.

    path: a folder of shards or videos, whose long clips are cut in pieces, or `SCENES`; apart: the first so many clips
    share no frame with any other, while later ones may overlap each other.
    Raises `MemoryClipError` if there are fewer, and what `open_source` raises.
    """
    pieces = _scenes(frames, size) if path == SCENES else _pieces(path, apart, frames, size)
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


def _pieces(path: str, apart: int, frames: int, size: int) -> Iterator[UInt8Array]:
    source = open_source(path, size)
    given = 0
    for number in range(len(source)):
        clip, begin = source.clip(number), 0
        while begin + frames <= clip.length:
            pictures = clip.read(range(begin, begin + frames))
            yield np.stack([_square(picture, size) for picture in pictures])
            given += 1
            begin += frames if given <= apart else max(frames // _OVERLAPPING, 1)


def _square(picture: UInt8Array, size: int) -> UInt8Array:
    """The middle of a picture (H, W, 3), made smaller."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = picture[top : top + side, left : left + side]
    return np.asarray(cv2.resize(middle, (size, size), interpolation=cv2.INTER_AREA), np.uint8)
