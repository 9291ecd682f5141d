"""The results of one camera, made from the messages of replay.mcap: features as arrays and tracks as tables."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from rvm_core.tracking.base import Status
from rvm_core.visualize import PCAColors, fit_pca
from rvm_perception.bag_reader import Bag, decode
from rvm_perception.bag_types import MissingPackageError
from rvm_perception.feature_map import feature_map_to_numpy
from rvm_perception.replay_plan import CameraPlan, ReplayPlan

BoolArray = npt.NDArray[np.bool_]

FeatureFormat = Literal["auto", "npz", "zarr", "none"]
TableFormat = Literal["csv", "parquet"]

NPZ_BYTES = 1 << 30
"""`auto` writes features of more bytes than this as zarr, which is read piece by piece."""

_CHUNK_BYTES = 8 << 20
_SAMPLED_FRAMES = 64
"""So many frames decide about the colours of the film."""
TRACK_FIELDS: dict[str, tuple[str, ...]] = {
    "point_tracks": ("x", "y"),
    "box_tracks": ("x_min", "y_min", "x_max", "y_max"),
    "mask_tracks": (),
}
_COMMON_FIELDS = ("stamp_ns", "epoch", "index", "id", "label", "status", "confidence")


@dataclass(kw_only=True)
class FrameMessages:
    """What was stored of one frame, by the short names of topics: features, point_tracks and so on."""

    time_ns: int
    messages: dict[str, Any] = field(default_factory=dict)

    @property
    def features(self) -> Any:
        return self.messages["features"]


def frames_of(bag: Bag, plan: ReplayPlan, camera: CameraPlan, names: Sequence[str] = ()) -> Iterator[FrameMessages]:
    """The stored messages of a camera, frame by frame; `names`: only these and the features."""
    chosen = {
        topic: name for name, (topic, _) in plan.outputs(camera).items() if not names or name in ("features", *names)
    }
    frame: FrameMessages | None = None
    for raw in bag.messages(list(chosen)):
        if frame is None or raw.received_ns != frame.time_ns:
            if frame is not None:
                yield frame
            frame = FrameMessages(time_ns=raw.received_ns)
        frame.messages[chosen[raw.topic]] = decode(raw)
    if frame is not None:
        yield frame


# Features.


class FeatureSink(Protocol):
    """Where the features of a camera go, frame by frame."""

    def add(self, patches: np.ndarray, entry: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


def write_features(
    frames: Iterator[FrameMessages], folder: Path, count: int, chosen: FeatureFormat
) -> tuple[str, PCAColors | None]:
    """Writes features.npz or features.zarr. Returns its name, empty for none, and colours for a film of them.

    Both hold, for each of the T processed frames: features (T, rows, cols, D), cls (T, D), stamp_ns, epoch, index (T,),
    grid_to_image (T, 2, 3) and image_size (T, 2), height and width. count: T.
    """
    sampled: list[np.ndarray] = []
    valid: BoolArray | None = None
    every = max(1, -(-count // _SAMPLED_FRAMES))
    name, sink = "", None
    for number, frame in enumerate(frames):
        message = frame.features
        patches = feature_map_to_numpy(message)
        if number == 0:
            valid = valid_cells(message)
            name = _format(chosen, count * patches.nbytes)
            sink = _SINKS[name](folder / name, patches, count) if name else None
        if number % every == 0:
            sampled.append(np.array(patches, np.float32))
        if sink is not None:
            sink.add(patches, _entry(message))
    if sink is not None:
        sink.close()
    return name, fit_pca(np.stack(sampled), valid) if sampled else None


def _format(chosen: FeatureFormat, size: int) -> str:
    if chosen == "auto":
        chosen = "npz" if size <= NPZ_BYTES else "zarr"
    return "" if chosen == "none" else f"features.{chosen}"


def _entry(message: Any) -> dict[str, Any]:
    return {
        "cls": np.asarray(message.cls, np.float32),
        "stamp_ns": np.int64(stamp_of(message)),
        "epoch": np.int64(message.epoch),
        "index": np.int64(message.index),
        "grid_to_image": np.asarray(message.grid_to_image, np.float64).reshape(2, 3),
        "image_size": np.array([message.image_height, message.image_width], np.int64),
    }


class _Npz:
    """One .npz, written as the frames come; the small arrays follow at the end."""

    def __init__(self, path: Path, patches: np.ndarray, count: int) -> None:
        self._file = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self._member = self._file.open(_zip_entry("features"), "w", force_zip64=True)
        header = {"descr": patches.dtype.str, "fortran_order": False, "shape": (count, *patches.shape)}
        np.lib.format.write_array_header_1_0(self._member, header)
        self._entries: list[Mapping[str, Any]] = []

    def add(self, patches: np.ndarray, entry: Mapping[str, Any]) -> None:
        self._member.write(np.ascontiguousarray(patches).tobytes())
        self._entries.append(entry)

    def close(self) -> None:
        self._member.close()
        for name in self._entries[0]:
            with self._file.open(_zip_entry(name), "w", force_zip64=True) as member:
                array = np.stack([entry[name] for entry in self._entries])
                np.lib.format.write_array(member, array, allow_pickle=False)
        self._file.close()


def _zip_entry(name: str) -> zipfile.ZipInfo:
    """With a fixed date, so that equal contents are equal files."""
    return zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))


class _Zarr:
    """A group of zarr, written chunk by chunk."""

    def __init__(self, path: Path, patches: np.ndarray, count: int) -> None:
        try:
            import zarr
        except ImportError:
            raise MissingPackageError(
                "long features are written with zarr, which is not installed: pip install 'rvm_perception[replay]', "
                "or choose --features npz"
            ) from None
        self._group = zarr.open_group(str(path), mode="w")
        self._count, self._at = count, 0
        self._rows = max(1, min(count, _CHUNK_BYTES // max(1, patches.nbytes)))
        self._arrays: dict[str, Any] = {}
        self._waiting: list[dict[str, Any]] = []

    def add(self, patches: np.ndarray, entry: Mapping[str, Any]) -> None:
        self._waiting.append({"features": patches, **entry})
        if len(self._waiting) == self._rows:
            self._flush()

    def close(self) -> None:
        self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        end = self._at + len(self._waiting)
        for name in self._waiting[0]:
            values = np.stack([entry[name] for entry in self._waiting])
            if name not in self._arrays:
                shape = (self._count, *values.shape[1:])
                chunks = (self._rows, *values.shape[1:])
                self._arrays[name] = self._group.create_array(
                    name, shape=shape, dtype=values.dtype, chunks=chunks, compressors=None
                )
            self._arrays[name][self._at : end] = values
        self._at = end
        self._waiting = []


_SINKS: dict[str, Callable[[Path, np.ndarray, int], FeatureSink]] = {"features.npz": _Npz, "features.zarr": _Zarr}


# Tables of tracks.


def write_tracks(frames: Iterator[FrameMessages], folder: Path, kind: TableFormat) -> tuple[str, ...]:
    """Writes a table for each kind of tracks that there is: a row for each track and frame. Returns their names.

    Columns: stamp_ns, epoch, index, id, label, status (visible, occluded or lost), confidence and, in pixels, x and y
    of points, x_min to y_max of boxes.
    """
    tables: dict[str, Any] = {}
    with ExitStack() as files:
        for frame in frames:
            for name, fields in TRACK_FIELDS.items():
                if (message := frame.messages.get(name)) is None:
                    continue
                if name not in tables:
                    columns = (*_COMMON_FIELDS, *fields)
                    tables[name] = (_CsvTable if kind == "csv" else _ParquetTable)(folder / f"{name}.{kind}", columns)
                    files.callback(tables[name].close)
                tables[name].add(_rows(message, fields))
    return tuple(f"{name}.{kind}" for name in tables)


def _rows(message: Any, fields: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    stamp, epoch, index = stamp_of(message), int(message.epoch), int(message.index)
    columns = [getattr(message, name).tolist() for name in ("confidence", *fields)]
    statuses = [Status(status).name.lower() for status in message.status.tolist()]
    for id, label, status, *values in zip(message.ids.tolist(), message.labels, statuses, *columns, strict=True):
        yield (stamp, epoch, index, id, label, status, *values)


class _CsvTable:
    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._file = open(path, "w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(columns)

    def add(self, rows: Iterator[tuple[Any, ...]]) -> None:
        for row in rows:
            self._writer.writerow([f"{value:.9g}" if isinstance(value, float) else value for value in row])

    def close(self) -> None:
        self._file.close()


class _ParquetTable:
    _BATCH = 16_384

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as parquet
        except ImportError:
            raise MissingPackageError(
                "parquet is written with pyarrow, which is not installed: pip install 'rvm_perception[replay]', or "
                "choose --tracks csv"
            ) from None
        kinds = {"stamp_ns": pa.int64(), "epoch": pa.int64(), "index": pa.int64(), "id": pa.uint64()}
        kinds |= {"label": pa.string(), "status": pa.string()}
        self._schema = pa.schema([(name, kinds.get(name, pa.float32())) for name in columns])
        self._writer = parquet.ParquetWriter(path, self._schema)
        self._table = pa.table
        self._rows: list[tuple[Any, ...]] = []

    def add(self, rows: Iterator[tuple[Any, ...]]) -> None:
        self._rows += rows
        if len(self._rows) >= self._BATCH:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            columns = dict(zip(self._schema.names, map(list, zip(*self._rows, strict=True)), strict=True))
            self._writer.write_table(self._table(columns, schema=self._schema))
        self._rows = []


def stamp_of(message: Any) -> int:
    """Of the header, nanoseconds."""
    return int(message.header.stamp.sec) * 1_000_000_000 + int(message.header.stamp.nanosec)


def valid_cells(message: Any) -> BoolArray:
    """Mask (rows, cols) of a FeatureMap, true where the cell's centre lies in the image."""
    rows, cols = np.mgrid[: message.rows, : message.cols] + 0.5
    affine = np.asarray(message.grid_to_image, np.float64).reshape(2, 3)
    x, y = np.moveaxis(np.stack([cols, rows, np.ones_like(rows)], axis=-1) @ affine.T, -1, 0)
    inside = (x >= 0) & (x < message.image_width) & (y >= 0) & (y < message.image_height)
    return inside if inside.any() else np.ones_like(inside)
