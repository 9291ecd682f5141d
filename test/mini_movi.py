"""A miniature MOVi-E in the layout of TensorFlow Datasets, of a scene so plain that everything in it is known.

A camera 5 m above the floor looks straight down and moves along x; a square of 1.6 m, flat and 1 m above the floor,
moves along y and turns about the vertical. The files are written by hand, so that they test the reader's own ideas.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import cv2
import google_crc32c
import numpy as np
import numpy.typing as npt

FRAMES, SIZE = 6, 64
CAMERA_HEIGHT, OBJECT_HEIGHT, HALF = 5.0, 1.0, 0.8
FOCAL, SENSOR = 35.0, 32.0
SCALE = FOCAL / SENSOR * SIZE
"""Pixels a unit of x / z."""

Float64Array = npt.NDArray[np.float64]


def camera_x(t: int) -> float:
    return 0.05 * t


def object_pose(t: int) -> tuple[float, Float64Array]:
    """Angle about z, and the middle."""
    return 0.1 * t, np.array([0.2, 0.15 * t - 0.3, OBJECT_HEIGHT])


def to_image(world: Float64Array, t: int) -> Float64Array:
    """(x, y) in pixels of a place in the world."""
    depth = CAMERA_HEIGHT - world[2]
    return np.array([SIZE / 2 + SCALE * (world[0] - camera_x(t)) / depth, SIZE / 2 - SCALE * world[1] / depth])


def to_world(x: float, y: float, height: float, t: int) -> Float64Array:
    """The place at this height that a place of the image shows."""
    depth = CAMERA_HEIGHT - height
    return np.array([camera_x(t) + (x - SIZE / 2) / SCALE * depth, -(y - SIZE / 2) / SCALE * depth, height])


def in_object(world: Float64Array, t: int) -> Float64Array:
    """A place of the world as the object has it."""
    angle, middle = object_pose(t)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return rotation.T @ (world - middle)


def label_image(t: int) -> npt.NDArray[np.uint8]:
    places = [[to_world(x + 0.5, y + 0.5, OBJECT_HEIGHT, t) for x in range(SIZE)] for y in range(SIZE)]
    inside = [[bool(np.all(np.abs(in_object(place, t)[:2]) < HALF)) for place in row] for row in places]
    return np.array(inside, np.uint8)


def write_movi(folder: Path, *, train: int = 3, validation: int = 2) -> Path:
    """FOLDER/movi_e/64x64/1.0.0 with two splits, the first in two shards. Returns FOLDER/movi_e/64x64."""
    version = folder / "movi_e" / f"{SIZE}x{SIZE}" / "1.0.0"
    version.mkdir(parents=True)
    splits = {"train": [train - 1, 1], "validation": [validation]}
    for split, lengths in splits.items():
        for shard, length in enumerate(lengths):
            name = f"movi_e-{split}.tfrecord-{shard:05d}-of-{len(lengths):05d}"
            (version / name).write_bytes(b"".join(record(example(seed=shard + i)) for i in range(length)))
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {
        "name": "movi_e",
        "version": "1.0.0",
        "fileFormat": "tfrecord",
        "splits": [
            {"name": name, "shardLengths": [str(length) for length in lengths], "filepathTemplate": template}
            for name, lengths in splits.items()
        ],
    }
    (version / "dataset_info.json").write_text(json.dumps(info))
    (version / "features.json").write_text("{}")
    return version.parent


def example(*, seed: int = 0, leave_out: str = "") -> bytes:
    """A tf.Example of the scene; the seed decides what things look like."""
    rng = np.random.default_rng(seed)
    floor = cv2.GaussianBlur(rng.integers(0, 256, (SIZE, 2 * SIZE, 3)).astype(np.uint8), (0, 0), 2)
    labels = [label_image(t) for t in range(FRAMES)]
    video = [np.where(label[..., None] > 0, np.uint8(200), floor[:, t : t + SIZE]) for t, label in enumerate(labels)]
    boxes, seen = [], []
    for t, label in enumerate(labels):
        rows, columns = np.nonzero(label)
        if len(rows):
            seen.append(t)
            boxes += [rows.min() / SIZE, columns.min() / SIZE, (rows.max() + 1) / SIZE, (columns.max() + 1) / SIZE]
    poses = [object_pose(t) for t in range(FRAMES)]
    features: dict[str, Any] = {
        "video": [_png(frame[..., ::-1]) for frame in video],
        "segmentations": [_png(label) for label in labels],
        "depth": [_png(_distance(label)) for label in labels],
        "metadata/depth_range": np.array([2.0, 12.0]),
        "metadata/num_frames": np.array([FRAMES]),
        "metadata/video_name": [b"7"],
        "camera/focal_length": np.array([FOCAL]),
        "camera/sensor_width": np.array([SENSOR]),
        "camera/positions": np.array([[camera_x(t), 0.0, CAMERA_HEIGHT] for t in range(FRAMES)]),
        "camera/quaternions": np.array([[1.0, 0, 0, 0]] * FRAMES),
        "instances/positions": np.array([middle for _, middle in poses]),
        "instances/quaternions": np.array([[np.cos(a / 2), 0, 0, np.sin(a / 2)] for a, _ in poses]),
        "instances/bboxes/ragged_flat_values": np.array(boxes, np.float64),
        "instances/bboxes/ragged_row_lengths_0": np.array([len(seen)]),
        "instances/bbox_frames/ragged_flat_values": np.array(seen),
        "instances/bbox_frames/ragged_row_lengths_0": np.array([len(seen)]),
    }
    return encode_example({key: value for key, value in features.items() if key != leave_out})


def _distance(label: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """Distance from the camera's centre, of 2 to 12 m in 16 bits."""
    side = (np.arange(SIZE) + 0.5 - SIZE / 2) / SCALE
    rays = np.sqrt(1 + side[None] ** 2 + side[:, None] ** 2)
    depth = np.where(label > 0, CAMERA_HEIGHT - OBJECT_HEIGHT, CAMERA_HEIGHT) * rays
    return np.round((depth - 2) / 10 * 65535).astype(np.uint16)


def _png(image: npt.NDArray[Any]) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


# TFRecord and tf.Example


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _crc(length) + data + _crc(data)


def _crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    rotated = (crc >> 15) | ((crc << 17) & 0xFFFFFFFF)
    return struct.pack("<I", (rotated + 0xA282EAD8) % 2**32)


def encode_example(features: dict[str, Any]) -> bytes:
    entries = b""
    for key, value in features.items():
        if isinstance(value, list):
            kind, payload = 1, b"".join(_field(1, item) for item in value)
        elif value.dtype.kind == "f":
            kind, payload = 2, _field(1, value.astype("<f4").tobytes())
        else:
            kind, payload = 3, _field(1, b"".join(_varint(int(number)) for number in value.ravel()))
        entries += _field(1, _field(1, key.encode()) + _field(2, _field(kind, payload)))
    return _field(1, entries)


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(number: int) -> bytes:
    data = b""
    while number > 127:
        data += bytes([number & 127 | 128])
        number >>= 7
    return data + bytes([number])
