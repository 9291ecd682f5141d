"""Small recordings for tests: from a clip, in every form of storage, and damaged in every way."""

from __future__ import annotations

import struct
from binascii import crc32
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lz4.frame  # type: ignore[import-untyped]
import numpy as np

from rvm_perception.bag_reader import RawMessage
from rvm_perception.bag_types import IMAGE, TRACK_QUERIES, own_types
from rvm_perception.bag_writer import bag_folder
from rvm_perception.conversions import labels_to_image, rgb_to_image
from rvm_perception.make_bag import BagCamera, make_bag, make_header
from rvm_perception.parameters import NodeParameters
from video_clip import make_clip

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "test" / "data" / "rvm_tiny_official_format.npz"
PARAMETERS = NodeParameters(
    weights=str(WEIGHTS), height=32, width=48, backend="torch", precision="fp32", device="cpu", max_gap=1.0
)
START_NS = 1000 * 10**9
PERIOD_NS = 40_000_000
"""Of the cameras."""
DELAY_NS = 1_000_000
"""From stamp to receipt."""

STORAGES = [("mcap", "none"), ("mcap", "chunk"), ("mcap", "file"), ("mcap", "message"),
            ("sqlite3", "none"), ("sqlite3", "file"), ("sqlite3", "message")]  # fmt: skip
"""Every storage and compression that rosbag2 has."""


def clip_bag(folder: Path, *, name: str = "bag", frames: int = 8, **options: Any) -> Path:
    """A bag of the first frames of a clip of 72x48 pixels."""
    forms = {key: options.pop(key) for key in ("form", "topic") if key in options}
    video = make_clip(folder)
    make_bag(folder / name, [BagCamera(video=video, frames=frames, **forms)], **options)
    return folder / name


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One image of a bag that is made message by message."""

    stamp: int
    """Periods after the start."""
    received: float | None = None
    """Likewise; None: right after the stamp."""
    topic: str = "/camera/image_raw"
    frame_id: str = "optical"
    size: tuple[int, int] = (48, 72)
    encoding: str = "rgb8"

    @property
    def received_ns(self) -> int:
        return START_NS + round((self.stamp if self.received is None else self.received) * PERIOD_NS) + DELAY_NS

    def raw(self) -> RawMessage:
        types = own_types()
        header = make_header(START_NS + self.stamp * PERIOD_NS, self.frame_id)
        pixels = np.random.default_rng(self.stamp).integers(0, 256, (*self.size, 3), np.uint8)
        message: Any = rgb_to_image(pixels, header, message_type=types.message(IMAGE))
        message.encoding = self.encoding
        return RawMessage(self.topic, IMAGE, self.received_ns, types.serialize(message, IMAGE))


def query(received: float, *, stamp: int | None = None, topic: str = "/rvm/track_queries", **fields: Any) -> RawMessage:
    """A request received so many periods after the start, about the frame of a stamp or the newest one."""
    types = own_types()
    header = make_header(0 if stamp is None else START_NS + stamp * PERIOD_NS, "")
    message = types.message(TRACK_QUERIES)(header=header, **fields)
    received_ns = START_NS + round(received * PERIOD_NS) + DELAY_NS
    return RawMessage(topic, TRACK_QUERIES, received_ns, types.serialize(message, TRACK_QUERIES))


def write_bag(path: Path, messages: Iterable[RawMessage], **options: Any) -> Path:
    """A bag of these messages, written in the order of their receipt."""
    with bag_folder(path, **options) as writer:
        for message in sorted(messages, key=lambda message: message.received_ns):
            writer.write(message.topic, message.message_type, message.received_ns, message.data)
    return path


def tracked_bag(path: Path) -> Path:
    """Twelve frames with requests for a point, a box and a mask, one of which waits for its frame, and a reset."""
    labels = np.zeros((48, 72), np.uint16)
    labels[10:30, 20:50] = 5
    mask = labels_to_image(
        labels, own_types().message("std_msgs/msg/Header")(), message_type=own_types().message(IMAGE)
    )
    shots = [Shot(stamp=i) for i in range(8)] + [Shot(stamp=i) for i in range(60, 64)]
    queries = [
        query(0.5, point_x=[30.0, 500.0], point_y=[20.0, 1.0], point_labels=["hub", ""], request_id="points"),
        query(2.5, stamp=1, box_x_min=[10.0], box_y_min=[10.0], box_x_max=[40.0], box_y_max=[40.0]),
        query(2.6, stamp=4, point_x=[8.0], point_y=[8.0], point_ids=[77], request_id="ahead"),
        query(3.5, mask=mask, request_id="mask"),
        query(60.5, point_x=[30.0], point_y=[20.0], request_id="again"),
        query(63.5, stamp=64, point_x=[30.0], point_y=[20.0], request_id="too late"),
    ]
    return write_bag(path, [*(shot.raw() for shot in shots), *queries])


NOT_REPEATED = ("timing.csv", "timing.json")
"""Files of a replay that tell how long it took."""


def contents(folder: Path) -> dict[str, bytes]:
    """What must be the same in two runs."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in NOT_REPEATED)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def storage_file(bag: Path) -> Path:
    """The one file of a bag that holds its messages."""
    (file,) = (file for file in bag.iterdir() if file.name != "metadata.yaml")
    return file


def cut(file: Path, share: float) -> None:
    """Leaves the first part of a file."""
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


def spoil(file: Path, share: float, length: int = 64) -> None:
    """Writes rubbish in the middle of a file."""
    data = bytearray(file.read_bytes())
    at = int(len(data) * share)
    data[at : at + length] = b"\xa5" * length
    file.write_bytes(bytes(data))


def mcap_of(path: Path, messages: Sequence[RawMessage], *, compression: str = "lz4", indexed: bool = True) -> Path:
    """One mcap file, a chunk for each message, as other recorders write it: with lz4, or without an index."""
    topics = list(dict.fromkeys((message.topic, message.message_type) for message in messages))
    store = own_types().store
    heads = b""
    for id, (topic, kind) in enumerate(topics, 1):
        text, _ = store.generate_msgdef(kind, ros_version=2)
        heads += _record(3, struct.pack("<H", id) + _text(kind) + _text("ros2msg") + _text(text))
        heads += _record(4, struct.pack("<HH", id, id) + _text(topic) + _text("cdr") + struct.pack("<I", 0))
    data = b"\x89MCAP0\r\n" + _record(1, _text("ros2") + _text("test"))
    chunk_index = b""
    for number, message in enumerate(messages):
        id = topics.index((message.topic, message.message_type)) + 1
        time = message.received_ns
        head = b"" if number else heads
        body = head + _record(5, struct.pack("<HIQQ", id, number, time, time) + message.data)
        packed = lz4.frame.compress(body) if compression == "lz4" else body
        sizes = _text(compression) + struct.pack("<Q", len(packed))
        chunk = _record(6, struct.pack("<QQQI", time, time, len(body), crc32(body)) + sizes + packed)
        index = _record(7, struct.pack("<HIQQ", id, 16, time, len(head)))
        offsets = struct.pack("<IHQ", 10, id, len(data) + len(chunk))
        places = struct.pack("<QQQQ", time, time, len(data), len(chunk)) + offsets + struct.pack("<Q", len(index))
        chunk_index += _record(8, places + sizes[:-8] + struct.pack("<QQ", len(packed), len(body)))
        data += chunk + (index if indexed else b"")
    data += _record(15, struct.pack("<I", 0))
    summary = heads + chunk_index if indexed else b""
    end = _record(2, struct.pack("<QQI", len(data) if indexed else 0, 0, 0)) + b"\x89MCAP0\r\n"
    path.write_bytes(data + summary + end)
    return path


def _record(operation: int, content: bytes) -> bytes:
    return struct.pack("<BQ", operation, len(content)) + content


def _text(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()
