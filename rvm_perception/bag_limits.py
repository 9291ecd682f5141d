"""Bounds on what is read and unpacked of a recording: its own numbers may be damaged, or be meant to exhaust memory."""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import import_module
from typing import Any, BinaryIO

MAX_UNPACKED_BYTES = 1 << 30
"""Of one message or chunk; a 4K colour image has 25 MB, a usual chunk some."""


def unpack_zstd(data: bytes, limit: int = MAX_UNPACKED_BYTES) -> bytes:
    """What was compressed. Raises `ValueError` if that is more than the limit or the data ends too early."""
    decompressor = _zstd().ZstdDecompressor()
    unpacked = bytes(decompressor.decompress(data, max_length=limit + 1))
    return _checked(unpacked, decompressor.eof, limit)


def unpack_lz4(data: bytes, limit: int = MAX_UNPACKED_BYTES) -> bytes:
    """Likewise for an lz4 frame."""
    decompressor = import_module("lz4.frame").LZ4FrameDecompressor()
    unpacked = bytes(decompressor.decompress(data, max_length=limit + 1))
    return _checked(unpacked, decompressor.eof, limit)


def open_zstd(file: BinaryIO) -> Any:
    """The uncompressed content of a file, to be read piece by piece."""
    return _zstd().open(file, "rb")


@cache
def bound_rosbags() -> None:
    """Has rosbags check a length before it takes memory for it. Raises `AttributeError` if it has changed inside."""
    from rosbags.rosbag2 import storage_mcap

    read = storage_mcap.read_exact

    def read_exact(bio: BinaryIO, size: int) -> bytes:
        here = bio.tell()
        rest = bio.seek(0, os.SEEK_END) - here
        bio.seek(here)
        if size > rest:
            raise ValueError(f"at {here} it announces {size} bytes, but {rest} are left")
        return read(bio, size)

    storage_mcap.read_exact = read_exact
    storage_mcap.DECOMPRESSORS["zstd"] = lambda data, size: unpack_zstd(data, min(size, MAX_UNPACKED_BYTES))
    storage_mcap.DECOMPRESSORS["lz4"] = lambda data, size: unpack_lz4(data, min(size, MAX_UNPACKED_BYTES))


def _checked(unpacked: bytes, is_whole: bool, limit: int) -> bytes:
    if len(unpacked) > limit:
        raise ValueError(f"it holds more than the {limit} bytes that it may")
    if not is_whole:
        raise ValueError("its compressed data ends too early")
    return unpacked


def _zstd() -> Any:
    """Python's own from 3.14 on; rosbags brings it to the versions before."""
    return import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
