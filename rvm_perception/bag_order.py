"""In which order the frames and queries of a recording have their turn.

Frames of one camera come in the order of their stamps, as the camera took them, even where the recorder received them
in another. Only where the clock was set back, by the rules after which the node resets its state, a new part starts and
what was received before stays before. A query comes after the frames that were received before it and before those
received after it, as at a node that keeps up with its cameras. All of this follows from when messages were received and
stamped, never from how fast anything is read.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rvm_perception.bag_reader import Bag, BagError, MessageError, RawMessage, check_counts, header_stamp_ns
from rvm_perception.stream import StreamRules

Int64Array = npt.NDArray[np.int64]

HELD_BYTES = 256 << 20
"""So much is held of messages that are read before their turn; what is more is read once more when it has its turn."""


@dataclass(frozen=True, kw_only=True)
class BagIndex:
    """Every message of some topics, in the order of the file: entries i of all arrays belong together."""

    topics: tuple[str, ...]
    topic: npt.NDArray[np.int16]
    """Number in `topics`."""
    received: Int64Array
    """Nanoseconds."""
    stamp: Int64Array
    """Of the header, nanoseconds; of a message without a readable header that of the message before it."""
    size: Int64Array
    """Bytes."""

    def __len__(self) -> int:
        return len(self.topic)

    @property
    def counts(self) -> list[int]:
        """Messages of each topic."""
        counts: list[int] = np.bincount(self.topic, minlength=len(self.topics)).tolist()
        return counts


def index_bag(bag: Bag, topics: Sequence[str], *, progress: Any = None) -> BagIndex:
    """Reads through these topics once, keeping 26 bytes a message.

    progress: called after each message. Raises `BagError` for a bag that is damaged or has fewer messages than it says.
    """
    numbers = {name: number for number, name in enumerate(topics)}
    topic, received, stamp, size = array("h"), array("q"), array("q"), array("q")
    last = dict.fromkeys(topics, 0)
    counts = dict.fromkeys(topics, 0)
    for message in bag.messages(topics):
        # A message that cannot be read is told of when it has its turn.
        with suppress(MessageError):
            last[message.topic] = header_stamp_ns(message)
        counts[message.topic] += 1
        topic.append(numbers[message.topic])
        received.append(message.received_ns)
        stamp.append(last[message.topic])
        size.append(len(message.data))
        if progress is not None:
            progress()
    check_counts(bag.path, [bag.topics[name] for name in topics if name in bag.topics], counts)
    return BagIndex(
        topics=tuple(topics),
        topic=np.array(topic, np.int16),
        received=np.array(received, np.int64),
        stamp=np.array(stamp, np.int64),
        size=np.array(size, np.int64),
    )


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Messages in the order in which they have their turn."""

    position: Int64Array
    """In the index, of each."""
    time: Int64Array
    """Rises from each to the next: when it was received or, out of order, right after the one before, nanoseconds."""
    out_of_order: dict[str, int]
    """By topic: frames that were received after one of a later stamp."""

    def __len__(self) -> int:
        return len(self.position)


def turns(index: BagIndex, *, queries: Collection[str] = (), rules: StreamRules | None = None) -> Turns:
    """The order of all messages of an index; `queries`: those topics that hold no frames; `rules`: what is late."""
    rules = rules or StreamRules()
    by_receipt = np.argsort(index.received, kind="stable")
    rank = np.empty(len(index), np.int64)
    rank[by_receipt] = np.arange(len(index))
    parts: list[Int64Array] = []
    keys: list[Int64Array] = []
    moved: dict[str, int] = {}
    for number, name in enumerate(index.topics):
        received = by_receipt[index.topic[by_receipt] == number]
        if name in queries:
            parts.append(received)
            keys.append(rank[received])
            continue
        ordered = received[in_stamp_order(index.stamp[received], rules)]
        places = rank[ordered]
        # A frame is late if one that comes after it was received before it.
        moved[name] = int((places > np.minimum.accumulate(places[::-1])[::-1]).sum()) if len(places) else 0
        parts.append(ordered)
        keys.append(np.maximum.accumulate(places) if len(places) else places)
    position = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    key = np.concatenate(keys) if keys else np.zeros(0, np.int64)
    order = np.argsort(key, kind="stable")
    return Turns(position=position[order], time=_rising(index.received[by_receipt][key[order]]), out_of_order=moved)


def in_stamp_order(stamps: Int64Array, rules: StreamRules | None = None) -> Int64Array:
    """The order, as indices, of frames that were received with these stamps."""
    rules = rules or StreamRules()
    tolerance_ns, limit = int(rules.late_tolerance * 1e9), rules.late_limit
    if len(stamps) < 2 or (np.diff(stamps) >= 0).all():
        return np.arange(len(stamps))
    parts: list[list[int]] = [[]]
    newest, late = int(stamps[0]), 0
    for i, stamp in enumerate(stamps.tolist()):
        late = late + 1 if stamp < newest else 0
        if late and (newest - stamp >= tolerance_ns or late >= limit):
            # The clock was set back. Where only a row of late frames tells, it was set back before the first of them.
            moved = 0 if newest - stamp >= tolerance_ns else late - 1
            start = parts[-1][len(parts[-1]) - moved :]
            del parts[-1][len(parts[-1]) - moved :]
            parts.append([*start, i])
            newest, late = max(int(stamps[j]) for j in parts[-1]), 0
            continue
        parts[-1].append(i)
        newest = max(newest, stamp)
    return np.array([i for part in parts for i in sorted(part, key=lambda j: int(stamps[j]))], np.int64)


def read_turns(bag: Bag, index: BagIndex, wanted: Turns, *, first: int = 0) -> Iterator[tuple[int, RawMessage]]:
    """Each turn from number `first` on, with its message. Raises `BagError` if the bag changed since it was indexed."""
    position = wanted.position[first:]
    if not len(position):
        return
    names = {index.topics[number] for number in np.unique(index.topic[position]).tolist()}
    start = int(index.received[position].min())
    chosen = np.isin(index.topic, [number for number, name in enumerate(index.topics) if name in names])
    passed = np.flatnonzero(chosen & (index.received >= start))
    turn = np.full(len(index), -1, np.int64)
    turn[position] = np.arange(len(position))
    reader = zip(passed.tolist(), bag.messages(names, start), strict=False)
    held: dict[int, RawMessage] = {}
    held_bytes, read = 0, -1
    for number, at in enumerate(position.tolist()):
        while at not in held and read < at:
            read, message = next(reader, (len(index), None))
            if message is None:
                break
            if len(message.data) != index.size[read] or message.received_ns != index.received[read]:
                raise BagError(f"{bag.path} changed while it was read")
            if read == at or (turn[read] > number and held_bytes < HELD_BYTES):
                held[read] = message
                held_bytes += len(message.data)
        found = held.pop(at, None)
        if found is None:
            found = _read_one(bag, index, at)
        else:
            held_bytes -= len(found.data)
        yield first + number, found


def _read_one(bag: Bag, index: BagIndex, position: int) -> RawMessage:
    """A message by itself, told from others of its topic and time by its place among them."""
    received, topic = index.received[position], index.topic[position]
    same = np.flatnonzero((index.received == received) & (index.topic == topic))
    place = int(np.searchsorted(same, position))
    name = index.topics[int(topic)]
    for number, message in enumerate(bag.messages([name], int(received), int(received) + 1)):
        if number == place:
            return message
    raise BagError(f"{bag.path} changed while it was read: a message of {name} is missing")


def _rising(times: Int64Array) -> Int64Array:
    """The times, each raised as far as needed to lie at least a nanosecond after the one before."""
    steps = np.arange(len(times))
    return np.maximum.accumulate(times - steps) + steps if len(times) else times
