"""Where clips come from: folders of shards and folders of videos, both read frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rvm_training.data.layouts import find_videos
from rvm_training.data.shards import JOB, LIST, ClipError, Shard, ShardFolder
from rvm_training.data.video_files import VideoFileError, frame_count, read_video

UInt8Array = npt.NDArray[np.uint8]


class Clip(Protocol):
    """Frames that follow each other."""

    length: int
    """Number of frames."""

    def read(self, places: Sequence[int]) -> list[UInt8Array]:
        """The frames at these places, RGB (H, W, 3), all of one size. Raises `ClipError`."""


class ClipSource(Protocol):
    """Clips by number."""

    def __len__(self) -> int:
        """How many there are."""

    def clip(self, number: int) -> Clip:
        """One of them. Raises `ClipError`."""


class ShardSource:
    """The clips of a folder of shards."""

    def __init__(self, folder: Path) -> None:
        """Raises `ShardError` for a folder without a complete set of shards."""
        self._shards = ShardFolder(folder)

    def __len__(self) -> int:
        return len(self._shards)

    def clip(self, number: int) -> Clip:
        shard, inside = self._shards.locate(number)
        return _ShardClip(shard, inside)


class _ShardClip:
    def __init__(self, shard: Shard, number: int) -> None:
        self._shard, self._number = shard, number
        self.length = shard.length(number)

    def read(self, places: Sequence[int]) -> list[UInt8Array]:
        frames = {place: self._shard.read(self._number, place) for place in set(places)}
        return [frames[place] for place in places]


class VideoSource:
    """Videos of a folder, each a clip of all its frames. Simple, and slow: a shard needs no video decoder."""

    def __init__(self, folder: Path, size: int) -> None:
        """Frames are made smaller, to a shorter side of `size` pixels. Raises `ValueError` where there is no video."""
        self._videos, self._size = find_videos(folder).videos, size

    def __len__(self) -> int:
        return len(self._videos)

    def clip(self, number: int) -> Clip:
        return _VideoClip(self._videos[number], self._size)


class _VideoClip:
    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        try:
            self.length = frame_count(path)
        except VideoFileError as error:
            raise ClipError(f"{path}: {error}") from error
        if not self.length:
            raise ClipError(f"{path} does not say how long it is; make shards of it")

    def read(self, places: Sequence[int]) -> list[UInt8Array]:
        first, last = min(places), max(places)
        wanted = set(places)
        frames: dict[int, UInt8Array] = {}
        try:
            video = read_video(self._path, size=self._size, start=first)
            for place, frame in enumerate(video, start=first):
                if place in wanted:
                    frames[place] = frame
                if place >= last:
                    break
        except VideoFileError as error:
            raise ClipError(f"{self._path}: {error}") from error
        if len(frames) < len(wanted):
            raise ClipError(f"{self._path} ends before frame {last}, its header says {self.length}")
        return [frames[place] for place in places]


def open_source(path: str, size: int) -> ClipSource:
    """The clips of a folder of shards or videos.

    size: what videos are made smaller to, pixels. Raises `ShardError`, `ValueError` for a folder that is neither.
    """
    folder = Path(path).expanduser()
    if (folder / LIST).is_file() or (folder / JOB).is_file():
        return ShardSource(folder)
    return VideoSource(folder, size)
