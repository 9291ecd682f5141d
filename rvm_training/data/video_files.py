"""Frames of video files, decoded with PyAV in one thread and made smaller on the way."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rvm_training.train_extra import needs_train_extra

UInt8Array = npt.NDArray[np.uint8]

SUFFIXES = frozenset((".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".3gp", ".flv", ".ts", ".wmv"))
_WHOLE = 0.9
"""A video is damaged if less than this share of its frames can be decoded."""


class VideoFileError(ValueError):
    """A video that cannot be decoded, or not to its end; says why."""


def read_video(path: Path, *, size: int, start: int = 0, stride: int = 1) -> Iterator[UInt8Array]:
    """Every `stride`-th frame, RGB (H, W, 3), upright, the shorter side of `size` pixels if it was longer.

    start: number of the first frame; exact for a constant frame rate, what is decoded begins at the key frame before.
    Raises `VideoFileError` for what is no video, after the last good frame of a video that is damaged further on, and
    at the end of one of which frames are missing; `ImportError`, which names the extra, without PyAV.
    """
    av = _av()
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise VideoFileError("it has no pictures")
            stream = container.streams.video[0]
            stream.thread_count = 1
            expected = _expected_frames(container, stream)
            number = start - 1
            for number, frame in enumerate(_decode(container, stream, start), start=start):
                if frame.is_corrupt:
                    raise VideoFileError(f"frame {number} is damaged")
                if (number - start) % stride == 0:
                    yield _picture(frame, size)
            # FFmpeg goes over damage in silence. What a header says is often off by a few frames.
            if number + 1 < _WHOLE * expected:
                raise VideoFileError(f"only {number + 1} of {expected} frames can be decoded")
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        if isinstance(error, VideoFileError):
            raise
        raise VideoFileError(str(error) or type(error).__name__) from error


def _decode(container: Any, stream: Any, start: int) -> Iterator[Any]:
    """Frames from number `start` on."""
    if not start:
        yield from container.decode(stream)
        return
    if not stream.average_rate or not stream.time_base:
        yield from islice(container.decode(stream), start, None)
        return
    ticks = 1 / (stream.average_rate * stream.time_base)
    origin = stream.start_time or 0
    container.seek(origin + int(start * ticks), stream=stream)
    first = origin + (start - 0.5) * ticks
    yield from dropwhile(lambda frame: frame.pts is not None and frame.pts < first, container.decode(stream))


def frame_count(path: Path) -> int:
    """How many frames a video has by what its header says; 0 if it does not say. Raises `VideoFileError`."""
    av = _av()
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise VideoFileError("it has no pictures")
            return _expected_frames(container, container.streams.video[0])
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, VideoFileError):
            raise
        raise VideoFileError(str(error) or type(error).__name__) from error


def _expected_frames(container: Any, stream: Any) -> int:
    if stream.frames:
        return int(stream.frames)
    seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    seconds = seconds or (container.duration or 0) / _av().time_base
    return int(seconds * float(stream.average_rate or 0))


def _av() -> Any:
    """PyAV. Raises `ImportError` that names the extra."""
    with needs_train_extra():
        import av
    return av


def _picture(frame: Any, size: int) -> UInt8Array:
    height, width = frame.height, frame.width
    shorter = min(height, width)
    if shorter > size:
        height, width = (round(side * size / shorter) for side in (height, width))
    ways = _av().video.reformatter.Interpolation
    # FFmpeg's faster way makes pictures darker by about one grey level.
    exact = ways.AREA | ways.ACCURATE_RND | ways.FULL_CHR_H_INT | ways.BITEXACT
    image = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation=exact)
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else np.asarray(image, np.uint8)
