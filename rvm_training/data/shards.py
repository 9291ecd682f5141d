"""Shards of clips: tar files of JPEG frames, as WebDataset reads them, with an index to read single frames.

    FOLDER/job.json             what the shards are made of; made first
    FOLDER/shard-000000.tar     000000.json, 000000.000.jpg, 000000.001.jpg, ..., 000001.json, ...
    FOLDER/shard-000000.npy     the index: where each frame is in the tar file
    FOLDER/shard-000000.json    how many clips and frames there are, and what was skipped; made last
    FOLDER/shards.json          made when all shards are there: the list of them

NUMBER.json says where a clip comes from. Every file gets its name when it is complete.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from rvm_core.atomic import atomic_file
from rvm_training.data.jpeg import JpegError, decode_jpeg

FORMAT = "rvm-clips-1"
LIST = "shards.json"
JOB = "job.json"
INDEX_DTYPE = np.dtype([("clip", "<u4"), ("offset", "<u8"), ("size", "<u4"), ("crc", "<u4")])
"""A row of the index, one a frame, in order: number of the clip in the shard, place and length of the JPEG in the tar
file in bytes, its CRC-32."""
_OPEN_FILES = 64

UInt8Array = npt.NDArray[np.uint8]


class ShardError(ValueError):
    """A folder or file of shards is missing or damaged; says which."""


class ClipError(ValueError):
    """One clip cannot be read; says why. Others can."""


def shard_name(number: int) -> str:
    return f"shard-{number:06d}"


def write_json(path: Path, value: object) -> None:
    """Readable JSON, whole or not at all."""
    with atomic_file(path) as part:
        part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Raises `ShardError` for what is no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ShardError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ShardError(f"{path}: expected an object, got {type(value).__name__}")
    return value


class ShardWriter:
    """Writes the tar file of one shard, clip by clip, with the same bytes for the same clips."""

    def __init__(self, file: BinaryIO) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)
        self._rows: list[tuple[int, int, int, int]] = []
        self.clips = 0

    def add(self, about: Mapping[str, Any], frames: Sequence[bytes]) -> None:
        """A clip of JPEG frames, and what to say of it."""
        key = f"{self.clips:06d}"
        self._member(f"{key}.json", json.dumps(about).encode())
        for number, frame in enumerate(frames):
            offset = self._member(f"{key}.{number:03d}.jpg", frame)
            self._rows.append((self.clips, offset, len(frame), zlib.crc32(frame)))
        self.clips += 1

    def close(self) -> npt.NDArray[Any]:
        """Ends the tar file. Returns its index."""
        self._tar.close()
        return np.array(self._rows, INDEX_DTYPE)

    def _member(self, name: str, data: bytes) -> int:
        """Adds a file. Returns where its data begins."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        offset = self._tar.offset + tarfile.BLOCKSIZE
        self._tar.addfile(member, io.BytesIO(data))
        return offset


class Shard:
    """Reads single frames of the clips of one shard. Threads may share it."""

    def __init__(self, folder: Path, name: str) -> None:
        """Raises `ShardError` for files that are missing or damaged."""
        self._path = folder / f"{name}.tar"
        index_path = folder / f"{name}.npy"
        try:
            self._index = np.load(index_path, allow_pickle=False)
            self._file = open(self._path, "rb", buffering=0)  # noqa: SIM115
        except (OSError, ValueError, EOFError) as error:
            raise ShardError(f"{index_path.with_suffix('')}: {error}") from error
        if self._index.dtype != INDEX_DTYPE or self._index.ndim != 1:
            raise ShardError(f"{index_path} is no index of a shard; make the shard again")
        clips = self._index["clip"]
        self._first = np.searchsorted(clips, np.arange(int(clips[-1]) + 2 if len(clips) else 1))

    def __len__(self) -> int:
        """Number of clips."""
        return len(self._first) - 1

    def length(self, clip: int) -> int:
        """Number of frames of a clip."""
        return int(self._first[clip + 1] - self._first[clip])

    def read(self, clip: int, frame: int) -> UInt8Array:
        """A frame of a clip, RGB (H, W, 3). Raises `ClipError`."""
        _, offset, size, crc = self._index[self._first[clip] + frame].item()
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size or zlib.crc32(data) != crc:
            raise ClipError(f"{self._path}: clip {clip}, frame {frame} is damaged")
        try:
            return decode_jpeg(data)
        except JpegError as error:
            raise ClipError(f"{self._path}: clip {clip}, frame {frame}: {error}") from error

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


class ShardFolder:
    """All clips of a folder of shards, by number. Opens shards when they are needed."""

    def __init__(self, folder: Path) -> None:
        """Raises `ShardError` if the folder holds no complete set of shards."""
        if not (folder / LIST).is_file():
            more = "; it is not finished: run the command that made it again" if (folder / JOB).is_file() else ""
            raise ShardError(f"looked for {LIST} of a folder of shards in {folder}: not there{more}")
        about = read_json(folder / LIST)
        if about.get("format") != FORMAT:
            raise ShardError(f"{folder / LIST}: expected the format {FORMAT}, got {about.get('format')!r}")
        try:
            self._names = [str(shard["name"]) for shard in about["shards"]]
            counts = [int(shard["clips"]) for shard in about["shards"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{folder / LIST}: expected a list of shards with name and clips: {error}") from error
        if min(counts, default=0) < 0:
            raise ShardError(f"{folder / LIST}: expected a list of shards with name and clips, got less than no clip")
        self._folder = folder
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._open = lru_cache(maxsize=_OPEN_FILES)(lambda name: Shard(folder, name))

    def __reduce__(self) -> tuple[type[ShardFolder], tuple[Path]]:
        """Another process opens its own files."""
        return ShardFolder, (self._folder,)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, clip: int) -> tuple[Shard, int]:
        """The shard of a clip and its number in it. Raises `ClipError` if the shard is damaged."""
        number = int(np.searchsorted(self._ends, clip, side="right"))
        begin = int(self._ends[number - 1]) if number else 0
        try:
            shard = self._open(self._names[number])
        except ShardError as error:
            raise ClipError(str(error)) from error
        if clip - begin >= len(shard):
            raise ClipError(f"{self._names[number]} has {len(shard)} clips, less than {LIST} says")
        return shard, clip - begin


def write_list(folder: Path, shards: Iterable[Mapping[str, Any]]) -> None:
    """Writes the list that makes a folder of shards complete; `shards` have at least name and clips."""
    write_json(folder / LIST, {"format": FORMAT, "shards": list(shards)})
