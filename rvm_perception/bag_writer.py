"""Writes recordings: one mcap file of many messages, or a folder of rosbag2 in any of its forms."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rvm_core.atomic import flush, publish
from rvm_perception.bag_types import own_types, require_rosbags

Storage = Literal["mcap", "sqlite3"]
Compression = Literal["none", "file", "message", "chunk"]


class BagWriter:
    """Takes messages for a bag; made by `bag_folder`."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._connections: dict[str, Any] = {}

    def add_topic(self, topic: str, message_type: str) -> None:
        """Names a topic; topics without messages are in the bag too."""
        if topic not in self._connections:
            store = own_types().store
            self._connections[topic] = self._writer.add_connection(topic, message_type, typestore=store)

    def write(self, topic: str, message_type: str, time_ns: int, data: bytes) -> None:
        """Adds a message, received at time_ns, as CDR."""
        self.add_topic(topic, message_type)
        self._writer.write(self._connections[topic], time_ns, data)


@contextmanager
def bag_folder(path: Path, *, storage: Storage = "mcap", compression: Compression = "none") -> Iterator[BagWriter]:
    """Writes a new folder of rosbag2, which is there whole or not at all.

    compression: with zstd; `chunk` is that of mcap itself, `file` and `message` are those of rosbag2.
    Raises `FileExistsError` if there is something at `path`, `MissingPackageError` without rosbags.
    """
    require_rosbags()
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

    if path.exists():
        raise FileExistsError(f"{path} exists already: give another place, or remove it")
    # The folder's name becomes part of the names of its files.
    parent = path.with_name(f".{path.name}.{os.getpid()}.part")
    parent.mkdir(parents=True)
    try:
        modes = {
            "none": CompressionMode.NONE, "file": CompressionMode.FILE, "message": CompressionMode.MESSAGE,
            "chunk": CompressionMode.STORAGE,
        }  # fmt: skip
        plugin = StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3
        writer = Writer(parent / path.name, version=9, storage_plugin=plugin)
        writer.set_compression(modes[compression], CompressionFormat.ZSTD)
        with writer:
            yield BagWriter(writer)
        for file in (parent / path.name).iterdir():
            flush(file)
        publish(parent / path.name, path)
    finally:
        shutil.rmtree(parent, ignore_errors=True)


@contextmanager
def mcap_file(path: Path, topics: Iterable[tuple[str, str]] = ()) -> Iterator[BagWriter]:
    """Writes one mcap file, which replaces `path` at the end; topics: (name, type) of those that it has in any case."""
    folder = path.with_name(f".{path.name}.{os.getpid()}.part") / path.stem
    folder.parent.mkdir(parents=True)
    try:
        with bag_folder(folder, compression="chunk") as writer:
            for topic, message_type in topics:
                writer.add_topic(topic, message_type)
            yield writer
        file = folder / path.name
        flush(file)
        os.replace(file, path)
        flush(path.parent)
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)
