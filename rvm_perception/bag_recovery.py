"""Reads what can be read of a damaged recording: files that end too early, without index, or with holes."""

from __future__ import annotations

import sqlite3
import struct
from binascii import crc32
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from rvm_perception.bag_reader import BagError, BagTopic, RawMessage, decompress_file, storage_of

_MCAP_MAGIC = b"\x89MCAP0\r\n"
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK = 3, 4, 5, 6
_MOST_MISSING_ROWS = 256
"""So many rows in a row that cannot be read are the end."""


class _File(Protocol):
    def topics(self) -> dict[str, str]: ...
    def definition(self, message_type: str) -> str: ...
    def messages(self) -> Iterator[RawMessage]: ...


class DamagedBag:
    """The readable part of a bag; see `bag_reader.Source`. Raises `BagError` if there is none."""

    def __init__(self, path: Path, files: Sequence[Path], stack: ExitStack) -> None:
        self._files: list[_File] = []
        for file in files:
            plain = decompress_file(file, stack, tolerant=True)
            with suppress(OSError, sqlite3.Error):
                self._files.append(_McapFile(plain) if storage_of(plain) == "mcap" else _Sqlite3File(plain, stack))
        self.storage = storage_of(files[0]) if files else ""
        self._counts: dict[tuple[str, str], int] = {}
        for part in self._files:
            for message in part.messages():
                key = (message.topic, message.message_type)
                self._counts[key] = self._counts.get(key, 0) + 1
        if not self._counts:
            raise BagError(f"{path} is damaged, and no message of it can be read")

    def topics(self) -> list[BagTopic]:
        found = {(name, kind): 0 for part in self._files for name, kind in part.topics().items()} | self._counts
        return [BagTopic(name=name, message_type=kind, count=count) for (name, kind), count in found.items()]

    def definition(self, message_type: str) -> str:
        return next((text for part in self._files if (text := part.definition(message_type))), "")

    def messages(self, topics: Collection[str], start: int | None, stop: int | None) -> Iterator[RawMessage]:
        for part in self._files:
            for message in part.messages():
                if message.topic not in topics:
                    continue
                if (start is None or message.received_ns >= start) and (stop is None or message.received_ns < stop):
                    yield message


def announced_counts(path: Path) -> dict[str, int] | None:
    """How many messages of each topic the metadata.yaml of a bag announces; None if there is none to be read."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe").load((path / "metadata.yaml").read_text(encoding="utf-8"))
        entries = content["rosbag2_bagfile_information"]["topics_with_message_count"]
        return {str(entry["topic_metadata"]["name"]): int(entry["message_count"]) for entry in entries}
    except (OSError, ValueError, YAMLError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class _Channel:
    topic: str
    message_type: str


class _McapFile:
    """The records of an mcap file in their order, as long as they make sense. The index at its end is not used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._schemas: dict[int, tuple[str, str]] = {}
        self._channels: dict[int, _Channel] = {}

    def topics(self) -> dict[str, str]:
        for _ in self.messages():
            pass
        return {channel.topic: channel.message_type for channel in self._channels.values()}

    def definition(self, message_type: str) -> str:
        return next((text for name, text in self._schemas.values() if name == message_type), "")

    def messages(self) -> Iterator[RawMessage]:
        with self._path.open("rb") as file:
            size = self._path.stat().st_size
            if file.read(len(_MCAP_MAGIC)) != _MCAP_MAGIC:
                return
            while (record := _next_record(file, size)) is not None:
                operation, content = record
                if operation != _CHUNK:
                    yield from self._take(operation, content)
                    continue
                # A chunk that cannot be unpacked is a hole; the next record is where it should be.
                with suppress(Exception):
                    yield from self._chunk(content)

    def _chunk(self, content: bytes) -> Iterator[RawMessage]:
        from rosbags.rosbag2.storage_mcap import DECOMPRESSORS

        size, crc, name_size = struct.unpack_from("<QII", content, 16)
        name = content[32 : 32 + name_size].decode()
        data = DECOMPRESSORS[name](content[40 + name_size :], size)
        if len(data) != size or (crc and crc32(data) != crc):
            return
        messages: list[RawMessage] = []
        at = 0
        while at + 9 <= len(data):
            (length,) = struct.unpack_from("<Q", data, at + 1)
            messages += self._take(data[at], data[at + 9 : at + 9 + length])
            at += 9 + length
        yield from messages

    def _take(self, operation: int, content: bytes) -> Iterator[RawMessage]:
        if operation == _SCHEMA:
            (id,) = struct.unpack_from("<H", content)
            name, at = _string(content, 2)
            encoding, at = _string(content, at)
            text, _ = _string(content, at)
            self._schemas[id] = (name, text if encoding == "ros2msg" else "")
        elif operation == _CHANNEL:
            id, schema = struct.unpack_from("<HH", content)
            topic, _ = _string(content, 4)
            self._channels[id] = _Channel(topic, self._schemas.get(schema, ("", ""))[0])
        elif operation == _MESSAGE and len(content) >= 22:
            id, _, received = struct.unpack_from("<HIQ", content)
            if id in self._channels:
                channel = self._channels[id]
                yield RawMessage(channel.topic, channel.message_type, received, content[22:])


def _next_record(file: BinaryIO, size: int) -> tuple[int, bytes] | None:
    head = file.read(9)
    if len(head) < 9:
        return None
    (length,) = struct.unpack_from("<Q", head, 1)
    if file.tell() + length > size:
        return None
    return head[0], file.read(length)


def _string(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<I", data, at)
    return data[at + 4 : at + 4 + length].decode(errors="replace"), at + 4 + length


class _Sqlite3File:
    """The rows of a rosbag2 database in the order in which they were written, without its index."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        # immutable: no lock and no repair, which would write; where a log waits beside it, that must be read too.
        mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "mode=ro&immutable=1"
        self._connection = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True)
        stack.callback(self._connection.close)
        # Without it, a file that is shorter than it says is refused as a whole.
        self._connection.execute("PRAGMA writable_schema = ON")
        rows = self._connection.execute("SELECT id, name, type FROM topics").fetchall()
        self._channels = {int(id): _Channel(str(name), str(kind)) for id, name, kind in rows}

    def topics(self) -> dict[str, str]:
        return {channel.topic: channel.message_type for channel in self._channels.values()}

    def definition(self, message_type: str) -> str:
        query = "SELECT encoded_message_definition FROM message_definitions WHERE topic_type = ? AND encoding = ?"
        with suppress(sqlite3.Error):
            row = self._connection.execute(query, (message_type, "ros2msg")).fetchone()
            return str(row[0]) if row else ""
        return ""

    def messages(self) -> Iterator[RawMessage]:
        # Row by row, as an error ends a query that runs through.
        query = "SELECT id, topic_id, timestamp, data FROM messages NOT INDEXED WHERE id >= ? ORDER BY id LIMIT 1"
        next_id, missing = 0, 0
        while missing <= _MOST_MISSING_ROWS:
            try:
                row = self._connection.execute(query, (next_id,)).fetchone()
            except sqlite3.Error:
                next_id, missing = next_id + 1, missing + 1
                continue
            if row is None:
                return
            id, topic_id, received, data = row
            next_id, missing = int(id) + 1, 0
            if topic_id in self._channels and isinstance(data, bytes):
                channel = self._channels[topic_id]
                yield RawMessage(channel.topic, channel.message_type, int(received), data)
