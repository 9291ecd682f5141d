"""Recordings of ROS 2 without ROS: rosbag2 folders and single files, sqlite3 and mcap, compressed or not.

Nothing here holds more than a few messages at once. What a bag says of its types is never run: only images and our own
messages are decoded, by definitions of ours, and everything else is passed over.
"""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rvm_perception.bag_limits import bound_rosbags, open_zstd, unpack_zstd
from rvm_perception.bag_types import own_types, require_rosbags

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
SUFFIXES = (".mcap", ".db3")
_RECOVER = "`--recover` evaluates what can be read of it"


class BagError(ValueError):
    """A recording cannot be used; the text says what is wrong with it and what to do.

    Args:
        reason: what is wrong.
        hint: what to do, where the reason does not say so itself.
    """

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(f"{reason}; {hint}" if hint else reason)
        self.reason = reason


class MessageError(ValueError):
    """One message of a recording is damaged."""


class RawMessage(NamedTuple):
    """A message as it was recorded."""

    topic: str
    message_type: str
    received_ns: int
    """When the recorder received it."""
    data: bytes
    """CDR."""


@dataclass(frozen=True, kw_only=True)
class BagTopic:
    """What a bag says of a topic."""

    name: str
    message_type: str
    """As sensor_msgs/msg/Image."""
    count: int | None
    """Messages; None where the bag does not say."""


class Source(Protocol):
    """Where messages come from: a reader of whole bags, or one of damaged ones."""

    storage: str
    """sqlite3 or mcap."""

    def topics(self) -> list[BagTopic]:
        """Every topic and type that there is."""

    def definition(self, message_type: str) -> str:
        """The definition of a type that the bag holds; empty if it holds none."""

    def messages(self, topics: Collection[str], start: int | None, stop: int | None) -> Iterator[RawMessage]:
        """Messages received from start on and before stop, in an order that is the same each time."""


class Bag:
    """A recording, opened; use it in a `with` statement.

    Args:
        path: a folder of rosbag2, or one of its files (.mcap, .db3, also with .zstd).
        recover: whether a damaged bag is read as far as that goes. `recovered` says then what is wrong with it.

    Raises `BagError` for what is no bag or is damaged, here or, where the damage lies further in, from `messages`;
    `MissingPackageError` without rosbags.
    """

    def __init__(self, path: str | Path, *, recover: bool = False) -> None:
        require_rosbags()
        bound_rosbags()
        self.path = Path(path)
        self.name = self.path.resolve().name
        self.recovered = ""
        self._stack = ExitStack()
        try:
            self._source = self._open(recover)
            found = self._source.topics()
        except BaseException:
            self._stack.close()
            raise
        self.storage = self._source.storage
        self.topics = {topic.name: topic for topic in found}
        """By name."""

    def messages(
        self, topics: Collection[str], start: int | None = None, stop: int | None = None
    ) -> Iterator[RawMessage]:
        """Messages of these topics in recorded order, the same in every pass, raw.

        start, stop: only those received in [start, stop), nanoseconds. Raises `BagError` where the bag is damaged.
        """
        with _as_bag_error(self.path):
            for message in self._source.messages(topics, start, stop):
                data = message.data
                # Compression message by message is told in metadata.yaml only, which single files come without.
                yield message._replace(data=unpack_zstd(data)) if data[:4] == ZSTD_MAGIC else message

    def lost(self, counts: Mapping[str, int]) -> int | None:
        """How many messages of some topics the bag announces beyond those that were read; None if it announces none.

        counts: how many were read, by topic.
        """
        if not self.recovered:
            return 0
        from rvm_perception.bag_recovery import announced_counts

        announced = announced_counts(self.path)
        if announced is None:
            return None
        return sum(max(0, announced.get(topic, 0) - count) for topic, count in counts.items())

    def check_definition(self, topic: BagTopic) -> None:
        """Raises `BagError` if the topic's type, one of ours, was another one when the bag was recorded."""
        from rosbags.typesys import get_types_from_msg

        text = self._source.definition(topic.message_type)
        if not text:
            return
        store = own_types().store
        with _as_bag_error(self.path):
            recorded = get_types_from_msg(text, topic.message_type)
        if recorded[topic.message_type][1] != store.fielddefs[topic.message_type][1]:
            raise BagError(
                f"{topic.name} in {self.path} holds {topic.message_type} of another version of rvm_perception: "
                f"leave the topic out, or convert the bag"
            )

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Bag:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, recover: bool) -> Source:
        if not self.path.exists():
            raise BagError(f"there is no bag {self.path}")
        try:
            whole = _WholeBag(self.path, self._stack)
            if recover:
                whole.check()
            return whole
        except BagError as error:
            if not recover:
                raise
            from rvm_perception.bag_recovery import DamagedBag

            self._stack.close()
            self.recovered = error.reason
            with _as_bag_error(self.path, hint=""):
                return DamagedBag(self.path, bag_files(self.path), self._stack)


def decode(message: RawMessage) -> Any:
    """The message with its fields as attributes, numbers of sequences as arrays of numpy. Raises `MessageError`."""
    try:
        return own_types().store.deserialize_cdr(message.data, message.message_type)
    except Exception as error:  # whatever rosbags meets in bytes that are no such message
        raise MessageError(f"{message.message_type} on {message.topic} is damaged: {error}") from error


def header_stamp_ns(message: RawMessage) -> int:
    """The stamp of a message that starts with a std_msgs/Header, without decoding the rest. Raises `MessageError`."""
    data = message.data
    if len(data) < 12 or data[0] != 0 or data[1] not in (0, 1):
        raise MessageError(f"{message.message_type} on {message.topic} has {len(data)} bytes and no header")
    order = "little" if data[1] else "big"
    seconds = int.from_bytes(data[4:8], order, signed=True)  # type: ignore[arg-type]
    return seconds * 1_000_000_000 + int.from_bytes(data[8:12], order)  # type: ignore[arg-type]


def bag_files(path: Path) -> list[Path]:
    """The storage files of a bag that are there, in the order in which they were recorded."""
    if path.is_file():
        return [path]

    def place(file: Path) -> tuple[list[int], str]:
        # The recorder numbers the files of a bag: name_0.mcap, ..., name_10.mcap.
        return [int(digits) for digits in re.findall(r"_(\d+)\.", file.name)], file.name

    return sorted((file for file in path.iterdir() if storage_of(file)), key=place)


def storage_of(file: Path) -> str:
    """ "mcap", "sqlite3", or "" for another file, by its name."""
    suffix = Path(file.name.removesuffix(".zstd")).suffix
    return {".mcap": "mcap", ".db3": "sqlite3"}.get(suffix, "")


def decompress_file(file: Path, stack: ExitStack, *, tolerant: bool = False) -> Path:
    """A .zstd file decompressed, for as long as the stack lasts; others as they are.

    tolerant: of a damaged one, what comes before the damage.
    """
    if file.suffix != ".zstd":
        return file
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rvm_bag_")))
    target = folder / file.stem
    with file.open("rb") as raw, target.open("wb") as sink:
        with open_zstd(raw) as content:
            try:
                shutil.copyfileobj(content, sink)
            except OSError:
                raise
            except Exception:
                if not tolerant:
                    raise
    return target


class _WholeBag:
    """A bag that is as it should be, by rosbags."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path = path
        if path.is_dir() and not (path / "metadata.yaml").exists():
            names = ", ".join(file.name for file in bag_files(path))
            if not names:
                raise BagError(f"{path} is no bag: it holds neither metadata.yaml nor a file *.mcap or *.db3")
            raise BagError(
                f"{path} has no metadata.yaml: it was not recorded to its end ({names})",
                f"`ros2 bag reindex` makes one, and {_RECOVER}",
            )
        if path.is_file() and not storage_of(path):
            convert = ": convert ROS 1 bags with `rosbags-convert`" if path.suffix == ".bag" else ""
            raise BagError(f"{path} is no bag: expected a folder of rosbag2, or a file *.mcap or *.db3{convert}")
        with _as_bag_error(path):
            from rosbags.rosbag2 import Reader

            self._check_log(path)
            self._reader = stack.enter_context(Reader(decompress_file(path, stack) if path.is_file() else path))
            formats = {getattr(c.ext, "serialization_format", "cdr") for c in self._reader.connections} - {"cdr", ""}
            if formats:
                raise BagError(f"{path} holds messages in {', '.join(sorted(formats))}; expected cdr")
        files = bag_files(path)
        self.storage = storage_of(files[0]) if files else ""

    def check(self) -> None:
        """Reads everything once. Raises `BagError`."""
        with _as_bag_error(self._path):
            counts = dict.fromkeys((topic.name for topic in self.topics()), 0)
            for connection, _, _ in self._reader.messages(self._reader.connections):
                counts[connection.topic] += 1
            check_counts(self._path, self.topics(), counts)

    def topics(self) -> list[BagTopic]:
        found: dict[str, BagTopic] = {}
        for connection in self._reader.connections:
            before = found.get(connection.topic)
            if before and before.message_type != connection.msgtype:
                raise BagError(
                    f"{self._path} holds {connection.topic} as {before.message_type} and as {connection.msgtype}"
                )
            count = connection.msgcount + ((before.count or 0) if before else 0)
            found[connection.topic] = BagTopic(name=connection.topic, message_type=connection.msgtype, count=count)
        return list(found.values())

    def definition(self, message_type: str) -> str:
        from rosbags.interfaces import MessageDefinitionFormat

        definitions = (c.msgdef for c in self._reader.connections if c.msgtype == message_type)
        return next((d.data for d in definitions if d.format == MessageDefinitionFormat.MSG), "")

    def messages(self, topics: Collection[str], start: int | None, stop: int | None) -> Iterator[RawMessage]:
        connections = [connection for connection in self._reader.connections if connection.topic in topics]
        if not connections:
            return
        for connection, received, data in self._reader.messages(connections, start, stop):
            yield RawMessage(connection.topic, connection.msgtype, received, bytes(data))

    @staticmethod
    def _check_log(path: Path) -> None:
        for file in bag_files(path):
            log = file.with_name(f"{file.name}-wal")
            if log.exists() and log.stat().st_size:
                raise BagError(
                    f"{file} was not closed: part of it is in {log.name}",
                    f"`sqlite3 {file.name} 'pragma wal_checkpoint'` puts it in place, and {_RECOVER}",
                )


def check_counts(path: Path, topics: Collection[BagTopic], counts: dict[str, int]) -> None:
    """Raises `BagError` if fewer messages were read of a topic than the bag says to have."""
    for topic in topics:
        if topic.count is not None and topic.name in counts and counts[topic.name] < topic.count:
            raise BagError(
                f"{path} says that it has {topic.count} messages of {topic.name}, but {counts[topic.name]} can be read",
                _RECOVER,
            )


class _as_bag_error:
    """Whatever goes wrong while a bag is read becomes a `BagError`; a full disk stays what it is."""

    def __init__(self, path: Path, hint: str = _RECOVER) -> None:
        self._path, self._hint = path, hint

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, BagError):
            return
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO):
            return
        text = str(error) or type(error).__name__
        raise BagError(f"{self._path} is damaged or incomplete: {text}", self._hint) from error
