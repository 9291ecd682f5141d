"""Makes a recording of videos, each as the images of a camera, with requests for tracks if wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from rvm_perception.bag_types import COMPRESSED_IMAGE, IMAGE, TRACK_QUERIES, own_types
from rvm_perception.bag_writer import Compression, Storage, bag_folder
from rvm_perception.conversions import rgb_to_compressed, rgb_to_image
from rvm_perception.video import read_frames, video_info

UInt8Array = npt.NDArray[np.uint8]
ImageForm = Literal["raw", "jpeg", "png"]

DEFAULT_RATE = 25.0
"""Frames per second of a video that does not say."""

RECEIPT_DELAY_NS = 2_000_000
"""From a frame's stamp to its receipt."""


@dataclass(frozen=True, kw_only=True)
class BagCamera:
    """A video that plays as a camera."""

    video: Path
    topic: str = "/camera/image_raw"
    """Base topic: compressed images go to <topic>/compressed."""
    frame_id: str = "camera_optical_frame"
    form: ImageForm = "raw"
    rate: float | None = None
    """Frames per second; None: the video's."""
    first: int = 0
    """Number of the first frame of the video."""
    frames: int | None = None
    """How many; None: to the end."""


@dataclass(frozen=True, kw_only=True)
class BagQuery:
    """A request for tracks."""

    received_ns: int
    """After the start of the recording."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Of TrackQueries, without `header`."""
    stamp_ns: int | None = None
    """Of the frame in which the positions hold, after the start; None: the newest frame."""


def make_bag(
    path: Path,
    cameras: Sequence[BagCamera],
    *,
    queries: Sequence[BagQuery] = (),
    storage: Storage = "mcap",
    compression: Compression = "none",
    start_ns: int = 1_000 * 10**9,
) -> int:
    """Writes a folder of rosbag2 whole or not at all. Returns the number of messages.

    start_ns: stamp of the first frames. Raises `VideoError` for a video that cannot be read, `FileExistsError` if there
    is something at `path`, `MissingPackageError` without rosbags, `ValueError` for a storage that does not exist.
    """
    if storage == "sqlite3" and compression == "chunk":
        raise ValueError("sqlite3 knows no compression of chunks: choose file or message, or mcap")
    sources = [_frames(camera, start_ns) for camera in cameras] + [_requests(queries, start_ns)]
    messages = merge(*sources, key=lambda message: message[0])
    # A video that cannot be read is found out before anything is written.
    first = next(messages, None)
    if first is None:
        raise ValueError("the videos have no frames in the part that was chosen")
    count = 0
    with bag_folder(path, storage=storage, compression=compression) as writer:
        for time_ns, topic, kind, message in chain([first], messages):
            writer.write(topic, kind, time_ns, own_types().serialize(message, kind))
            count += 1
    return count


def _frames(camera: BagCamera, start_ns: int) -> Iterator[tuple[int, str, str, Any]]:
    types = own_types()
    rate = camera.rate or video_info(camera.video).rate or DEFAULT_RATE
    last = None if camera.frames is None else camera.first + camera.frames
    for number, bgr in enumerate(islice(read_frames(camera.video), camera.first, last)):
        stamp_ns = start_ns + round(number * 1e9 / rate)
        header = make_header(stamp_ns, camera.frame_id)
        rgb = np.ascontiguousarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
        if camera.form == "raw":
            message: Any = rgb_to_image(rgb, header, message_type=types.message(IMAGE))
            topic, kind = camera.topic, IMAGE
        else:
            compressed = types.message(COMPRESSED_IMAGE)
            message = rgb_to_compressed(rgb, header, camera.form, message_type=compressed)
            topic, kind = f"{camera.topic}/compressed", COMPRESSED_IMAGE
        yield stamp_ns + RECEIPT_DELAY_NS, topic, kind, message


def _requests(queries: Sequence[BagQuery], start_ns: int) -> Iterator[tuple[int, str, str, Any]]:
    for query in sorted(queries, key=lambda query: query.received_ns):
        header = make_header(0 if query.stamp_ns is None else start_ns + query.stamp_ns, "")
        message = own_types().message(TRACK_QUERIES)(header=header, **query.fields)
        yield start_ns + query.received_ns, "/rvm/track_queries", TRACK_QUERIES, message


def make_header(stamp_ns: int, frame_id: str) -> Any:
    """A std_msgs/Header."""
    types = own_types()
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    stamp = types.message("builtin_interfaces/msg/Time")(sec=seconds, nanosec=nanoseconds)
    return types.message("std_msgs/msg/Header")(stamp=stamp, frame_id=frame_id)
