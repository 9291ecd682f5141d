"""Reads what `rvm replay` wrote of one camera: its tables and its features, a row or a frame at a time."""

from __future__ import annotations

import csv
import zipfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rvm_core.tracking.base import Status

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]

FRAMES, TIMING = "frames.csv", "timing.csv"
PROCESSED = "processed"
"""Status of a processed frame in frames.csv."""
FEATURES = "features"
"""Name of the array in features.npz and features.zarr, (T, rows, cols, D)."""


class ResultsError(ValueError):
    """Files of a replay are missing or damaged, or a package is missing that reads them."""


@dataclass(frozen=True, kw_only=True)
class FrameTable:
    """The processed frames of a camera, T of them, in order."""

    frame: Int64Array
    """(T,) their numbers among all frames of the camera, rising."""
    stamp_ns: Int64Array
    """(T,)"""
    epoch: Int64Array
    """(T,)"""
    index: Int64Array
    """(T,) in the epoch."""
    reset: tuple[str, ...]
    """Why the state started anew before a frame; empty where it did not."""

    @property
    def seconds(self) -> FloatArray:
        """(T,) time since the first one's stamp."""
        return np.asarray((self.stamp_ns - self.stamp_ns[:1]) / 1e9, np.float64)

    @property
    def goes_on(self) -> npt.NDArray[np.bool_]:
        """(T,) whether a frame's state went on from that of the frame before."""
        known = np.zeros(len(self.epoch), bool)
        known[1:] = self.epoch[1:] == self.epoch[:-1]
        return known

    def resets(self) -> list[tuple[float, str]]:
        """Second and reason of each reset."""
        return [(at, reason) for at, reason in zip(self.seconds.tolist(), self.reset, strict=True) if reason]


@dataclass(frozen=True, kw_only=True)
class TrackHistory:
    """One track over the processed frames of its camera."""

    kind: str
    id: int
    label: str
    frames: npt.NDArray[np.intp]
    """(n,) places in the `FrameTable` of the frames in which it is told of, rising."""
    status: npt.NDArray[np.uint8]
    """(n,) of `rvm_core.tracking.Status`."""

    @property
    def name(self) -> str:
        return f"{self.kind} {self.id} {self.label}".rstrip()

    def count(self, status: Status) -> int:
        """In how many frames it had this status."""
        return int((self.status == status).sum())


def read_frames(path: Path) -> FrameTable:
    """The processed frames of a frames.csv. Raises `ResultsError`."""
    columns = ("status", "reset", "frame", "stamp_ns", "epoch", "index")
    resets, numbers = [], []
    with _explained(path):
        for status, reset, *values in _rows(path, columns):
            if status == PROCESSED:
                resets.append(reset)
                numbers.append([int(value) for value in values])
    frame, stamp_ns, epoch, index = np.array(numbers, np.int64).reshape(-1, 4).T
    return FrameTable(frame=frame, stamp_ns=stamp_ns, epoch=epoch, index=index, reset=tuple(resets))


def read_times(path: Path) -> dict[str, FloatArray]:
    """Milliseconds of each processed frame by name, such as "engine", from timing.csv; empty if there is none."""
    if not path.exists():
        return {}
    with _explained(path):
        names = [name for name in _header(path) if name.endswith("_ms")]
        values = [[float(value) for value in row] for row in _rows(path, names)]
    times = np.array(values, np.float64).reshape(-1, len(names)).T
    return {name.removesuffix("_ms"): row for name, row in zip(names, times, strict=True)}


@dataclass
class _Growing:
    """A track while its table is read."""

    label: str = ""
    frames: array[int] = field(default_factory=lambda: array("q"))
    status: array[int] = field(default_factory=lambda: array("B"))


def read_tracks(path: Path, frames: FrameTable) -> list[TrackHistory]:
    """The tracks of a table, such as point_tracks.csv, in the order of their coming. Raises `ResultsError`."""
    places = {key: i for i, key in enumerate(zip(frames.epoch.tolist(), frames.index.tolist(), strict=True))}
    statuses = {status.name.lower(): int(status) for status in Status}
    tracks: dict[int, _Growing] = {}
    with _explained(path):
        for epoch, index, id, label, status in _rows(path, ("epoch", "index", "id", "label", "status")):
            place = places.get((int(epoch), int(index)))
            if place is None or status not in statuses:
                raise ValueError(f"epoch {epoch}, index {index} with status {status!r} does not fit {FRAMES}")
            track = tracks.setdefault(int(id), _Growing())
            track.label = track.label or label
            track.frames.append(place)
            track.status.append(statuses[status])
    kind = path.name.partition("_")[0]
    return [
        TrackHistory(
            kind=kind, id=id, label=track.label,
            frames=np.array(track.frames, np.intp), status=np.array(track.status, np.uint8),
        )
        for id, track in tracks.items()
    ]  # fmt: skip


def read_features(path: Path) -> Iterator[Float32Array]:
    """Feature maps of a features.npz or features.zarr frame by frame, (rows, cols, D). Raises `ResultsError`."""
    with _explained(path):
        yield from _zarr_frames(path) if path.is_dir() else _npz_frames(path)


def _npz_frames(path: Path) -> Iterator[Float32Array]:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with zipfile.ZipFile(path) as archive, archive.open(f"{FEATURES}.npy") as member:
        version = np.lib.format.read_magic(member)
        if version not in readers:
            raise ValueError(f"version {version} of npy is not known")
        shape, is_fortran, dtype = readers[version](member)
        if len(shape) != 4 or is_fortran or dtype.kind != "f":
            raise ValueError(f"expected features (T, rows, cols, D) of floats, got {shape} of {dtype}")
        size = int(np.prod(shape[1:])) * dtype.itemsize
        for _ in range(shape[0]):
            yield np.frombuffer(member.read(size), dtype).reshape(shape[1:]).astype(np.float32)


def _zarr_frames(path: Path) -> Iterator[Float32Array]:
    try:
        import zarr
    except ImportError as error:
        raise ResultsError(_missing(path, "zarr")) from error
    features: Any = zarr.open_group(str(path), mode="r")[FEATURES]
    step = features.chunks[0]
    for start in range(0, features.shape[0], step):
        yield from np.asarray(features[start : start + step]).astype(np.float32)


def _header(path: Path) -> list[str]:
    """Names of the columns of a CSV file."""
    with open(path, newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Rows of a table as text, of these columns. Raises `ValueError` if it does not have them."""
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, columns)
        return
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        chosen = _places(next(rows, []), columns)
        for row in rows:
            yield tuple(row[i] for i in chosen)


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise ResultsError(_missing(path, "pyarrow")) from error
    with parquet.ParquetFile(path) as file:
        _places(file.schema_arrow.names, columns)
        for batch in file.iter_batches(columns=list(columns)):
            for row in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
                yield tuple("" if value is None else str(value) for value in row)


def _places(found: Sequence[str], columns: Sequence[str]) -> list[int]:
    if missing := [name for name in columns if name not in found]:
        raise ValueError(f"no column {', '.join(missing)}; it has {', '.join(found) or 'none'}")
    return [found.index(name) for name in columns]


def _missing(path: Path, package: str) -> str:
    return f"{path} is read with {package}, which is not installed: pip install 'rvm_perception[replay]'"


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What goes wrong while a file is read becomes a `ResultsError`."""
    try:
        yield
    except ResultsError:
        raise
    except (OSError, ValueError, KeyError, IndexError, EOFError, csv.Error, zipfile.BadZipFile) as error:
        raise ResultsError(f"{path} cannot be read: {error}") from error
