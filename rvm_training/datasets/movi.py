"""MOVi-E (and MOVi-A to F, which have the same fields) as TensorFlow Datasets stores it:

    FOLDER/dataset_info.json, features.json
    FOLDER/movi_e-train.tfrecord-00000-of-01024, ...

FOLDER is that of one version, such as movi_e/256x256/1.0.0, or one above it with a single version in it.

T frames, H W image, O objects. World: metres, z up. Camera here: x right, y down, z forward; [R | t] takes a point of
the world to the camera.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rvm_training.datasets.images import decode_image, require_folder
from rvm_training.datasets.tfrecord import Values, parse_example, read_record, record_offsets
from rvm_training.evaluation.benchmark import DatasetError

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

_INFO = "dataset_info.json"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_BLENDER_TO_OURS = np.diag([1.0, -1.0, -1.0])
"""Blender's camera has y up and looks along -z."""


@dataclass(frozen=True, kw_only=True)
class MoviVideo:
    """A video and everything that is true of it."""

    video: UInt8Array
    """(T, H, W, 3), RGB."""
    labels: UInt8Array
    """(T, H, W): number of the object, from 1; 0 is the background."""
    depth: Float32Array
    """(T, H, W): along the camera's axis, metres."""
    boxes: Float32Array
    """(T, O, 4): x_min, y_min, x_max, y_max around what is seen, shares of the image; NaN where nothing is seen."""
    object_to_world: Float64Array
    """(T, O, 3, 4): [R | t]."""
    world_to_camera: Float64Array
    """(T, 3, 4): [R | t]."""
    intrinsics: Float64Array
    """(3, 3): (x, y, 1) * depth = K @ point of the camera, pixels with centres at .5."""


class MoviFolder:
    """The videos of one split. Raises `DatasetError` for a folder that is none, or has no such split."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = _version_folder(folder), split
        info = _read_info(self.folder / _INFO)
        self._shards = _shards(self.folder, info, split)
        self._lengths = [length for _, length in self._shards]
        self._offsets: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return sum(self._lengths)

    def read(self, index: int) -> MoviVideo:
        """Video `index`, from 0. Raises `DatasetError` for one that is damaged or not as the dataset has it."""
        shard = 0
        while index >= self._lengths[shard]:
            index -= self._lengths[shard]
            shard += 1
        path = self._shards[shard][0]
        if shard not in self._offsets:
            self._offsets[shard] = record_offsets(path)
        if index >= len(self._offsets[shard]):
            raise DatasetError(f"{path} has {len(self._offsets[shard])} records, {_INFO} says {self._lengths[shard]}")
        return read_video(parse_example(read_record(path, self._offsets[shard][index])), str(path))


def read_video(example: dict[str, Values], name: str) -> MoviVideo:
    """The video of an example; `name` is for the error. Raises `DatasetError` for what is not as the dataset has it."""
    try:
        return _Reader(example, name).video
    except (KeyError, ValueError, IndexError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else error
        raise DatasetError(f"{name} is not as MOVi has it: {what}") from error


@dataclass(frozen=True)
class _Reader:
    example: dict[str, Values]
    name: str

    @cached_property
    def video(self) -> MoviVideo:
        frames = np.stack([decode_image(data, self.name) for data in self.example["video"].bytes])
        labels = self._images("segmentations", np.uint8)
        distance = self._images("depth", np.uint16).astype(np.float32)
        low, high = self.example["metadata/depth_range"].floats
        distance = np.float32(low) + distance / np.float32(65535) * np.float32(high - low)
        if not labels.shape == distance.shape == frames.shape[:3]:
            raise ValueError(f"video {frames.shape}, segmentations {labels.shape}, depth {distance.shape}")
        count, height, width = labels.shape
        intrinsics = self._intrinsics(height, width)
        return MoviVideo(
            video=frames,
            labels=labels,
            depth=distance / _ray_lengths(intrinsics, height, width),
            boxes=self._boxes(count),
            object_to_world=self._objects(count),
            world_to_camera=self._cameras(count),
            intrinsics=intrinsics,
        )

    def _images(self, key: str, dtype: type) -> npt.NDArray[Any]:
        images = []
        for data in self.example[key].bytes:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
            if image is None or image.ndim != 2 or image.dtype != dtype:
                raise ValueError(f"{key} is no PNG of one channel of {np.dtype(dtype).name}")
            images.append(image)
        return np.stack(images)

    def _intrinsics(self, height: int, width: int) -> Float64Array:
        (focal,), (sensor,) = self.example["camera/focal_length"].floats, self.example["camera/sensor_width"].floats
        # Pixels are square.
        scale = focal / sensor * width
        return np.array([[scale, 0, width / 2], [0, scale, height / 2], [0, 0, 1.0]])

    def _cameras(self, count: int) -> Float64Array:
        positions = self.example["camera/positions"].floats.reshape(count, 3)
        to_world = _rotations(self.example["camera/quaternions"].floats.reshape(count, 4))
        rotation = _BLENDER_TO_OURS @ to_world.transpose(0, 2, 1)
        return np.concatenate([rotation, -rotation @ positions[:, :, None]], axis=2)

    def _objects(self, count: int) -> Float64Array:
        positions = self.example["instances/positions"].floats.reshape(-1, count, 3)
        rotations = _rotations(self.example["instances/quaternions"].floats.reshape(-1, count, 4))
        return np.concatenate([rotations, positions[..., None]], axis=3).swapaxes(0, 1)

    def _boxes(self, count: int) -> Float32Array:
        frames = _ragged(self.example, "instances/bbox_frames", "ints")
        corners = _ragged(self.example, "instances/bboxes", "floats", width=4)
        boxes = np.full((count, len(frames), 4), np.nan, np.float32)
        for number, (seen, rows) in enumerate(zip(frames, corners, strict=True)):
            # The file has (y, x).
            boxes[seen, number] = rows.reshape(-1, 4)[:, [1, 0, 3, 2]]
        return boxes


def _ragged(example: dict[str, Values], key: str, kind: str, width: int = 1) -> list[npt.NDArray[Any]]:
    """Lists of different lengths, one an object: values and the lengths, in numbers of `width`."""
    values = getattr(example[f"{key}/ragged_flat_values"], kind)
    lengths = example[f"{key}/ragged_row_lengths_0"].ints
    if (lengths < 0).any() or lengths.sum() * width != len(values):
        raise ValueError(f"{key} has {len(values)} numbers for lists of {lengths.tolist()}")
    return np.split(values, np.cumsum(lengths)[:-1] * width) if len(lengths) else []


def _rotations(quaternions: Float64Array) -> Float64Array:
    """(..., 4): w, x, y, z, to matrices (..., 3, 3)."""
    w, x, y, z = np.moveaxis(quaternions / np.linalg.norm(quaternions, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    matrices = np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
    if not np.isfinite(matrices).all():
        raise ValueError("quaternions that are no rotations")
    return matrices


def _ray_lengths(intrinsics: Float64Array, height: int, width: int) -> Float32Array:
    """(H, W): how much longer the way to a pixel is than its depth along the axis."""
    x = (np.arange(width) + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (np.arange(height) + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1]
    return np.sqrt(1 + x[None] ** 2 + y[:, None] ** 2).astype(np.float32)


# The folder


def _version_folder(folder: Path) -> Path:
    require_folder(folder, f"MOVi of TensorFlow Datasets ({_INFO} and *.tfrecord-00000-of-00001)")
    if (folder / _INFO).is_file():
        return folder
    below = sorted(path.parent for path in folder.glob(f"*/{_INFO}")) or sorted(
        path.parent for path in folder.glob(f"*/*/{_INFO}")
    )
    if len(below) == 1:
        return below[0]
    found = f"it is in {', '.join(str(path.relative_to(folder)) for path in below)}: give one of them" if below else ""
    raise DatasetError(f"looked for {_INFO} of a dataset of TensorFlow Datasets in {folder}: {found or 'not there'}")


def _read_info(path: Path) -> dict[str, Any]:
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        info["name"], info["splits"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} cannot be read as the description of a dataset: {error}") from error
    return info


def _shards(folder: Path, info: dict[str, Any], split: str) -> list[tuple[Path, int]]:
    """Files and their numbers of records."""
    try:
        splits = {str(entry["name"]): entry for entry in info["splits"]}
        if split not in splits:
            raise DatasetError(f"{folder} has no split {split!r}; it has {', '.join(splits) or 'none'}")
        lengths = [int(length) for length in splits[split]["shardLengths"]]
        template = str(splits[split].get("filepathTemplate", _TEMPLATE))
        kind = str(info.get("fileFormat", "tfrecord"))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{folder / _INFO} does not say the files of the splits: {error!r}") from error
    if kind != "tfrecord" or min(lengths, default=0) < 0:
        raise DatasetError(f"{folder / _INFO}: expected files of the format tfrecord, got {kind}")
    shards = []
    for number, length in enumerate(lengths):
        filled = {
            "DATASET": str(info["name"]),
            "SPLIT": split,
            "FILEFORMAT": kind,
            "SHARD_X_OF_Y": f"{number:05d}-of-{len(lengths):05d}",
        }
        name = template
        for key, value in filled.items():
            name = name.replace(f"{{{key}}}", value)
        shards.append((folder / Path(name).name, length))
    missing = [path for path, _ in shards if not path.is_file()]
    if missing or not shards:
        first = f", the first is {missing[0].name}" if missing else ""
        raise DatasetError(
            f"looked for {len(shards)} files of the split {split} in {folder}: {len(missing)} are missing{first}"
        )
    return shards
