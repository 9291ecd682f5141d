"""Videos with tracked points, as `rvm convert-data tapvid` writes them.

    FOLDER/dataset.json               {"format": "rvm-tapvid", "version": 1, "name": "davis", "sources": [...],
                                       "videos": [{"id", "name", "frames", "height", "width", "points"}, ...]}
    FOLDER/videos/ID/points.npz       points float32 (P, T, 2): x and y as shares of the image; occluded bool (P, T)
    FOLDER/videos/ID/frames/00000.jpg or .png, one for each of T frames

JPEG frames are the very bytes of the dataset, PNG frames its exact pixels.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rvm_training.datasets.images import IMAGE_SUFFIXES, require_file, require_folder
from rvm_training.evaluation.benchmark import DatasetError

FORMAT = "rvm-tapvid"
VERSION = 1
NAMES = ("davis", "kinetics", "robotap", "perception_test", "rgb_stacking", "other")
"""The datasets there are; published values go by it."""

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class PointVideo:
    """A video and the true tracks of its points."""

    frames: tuple[Path, ...]
    """T image files."""
    points: Float64Array
    """(T, P, 2): x and y as shares of the image."""
    occluded: BoolArray
    """(T, P)."""


class TapVidFolder:
    """A converted dataset. Raises `DatasetError` for a folder that is none or not all of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = require_folder(folder, "a converted TAP-Vid dataset (of `rvm convert-data tapvid`)")
        self.name, entries = _manifest(folder)
        self._frames = {entry["id"]: int(entry["frames"]) for entry in entries}
        missing = [id for id in self._frames if not (self._path(id) / "points.npz").is_file()]
        if missing:
            shown = ", ".join(missing[:3])
            raise DatasetError(
                f"{folder} is not complete: looked for points.npz in videos/ID of {len(self._frames)} videos, "
                f"{len(missing)} have none ({shown}); convert the dataset again"
            )

    @property
    def ids(self) -> list[str]:
        """Of the videos, in order."""
        return list(self._frames)

    def files(self, id: str) -> list[Path]:
        """All files of a video: the annotation, then the frames."""
        return [self._path(id) / "points.npz", *self._frame_files(id)]

    def read(self, id: str) -> PointVideo:
        """Raises `DatasetError` for a video whose files do not fit together."""
        path = self._path(id) / "points.npz"
        frames = self._frame_files(id)
        try:
            with np.load(path, allow_pickle=False) as file:
                points, occluded = file["points"], file["occluded"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DatasetError(f"{path} cannot be read, expected points and occluded: {error}") from error
        shape = occluded.shape
        if occluded.dtype != bool or len(shape) != 2 or points.shape != (*shape, 2) or points.dtype.kind != "f":
            raise DatasetError(
                f"{path}: expected points float (P, T, 2) and occluded bool (P, T), got {points.dtype} {points.shape} "
                f"and {occluded.dtype} {shape}"
            )
        if shape[1] != len(frames):
            raise DatasetError(f"{path} has points of {shape[1]} frames, but there are {len(frames)} in frames/")
        return PointVideo(
            frames=tuple(frames), points=points.astype(np.float64).transpose(1, 0, 2), occluded=occluded.T
        )

    def _path(self, id: str) -> Path:
        return self.folder / "videos" / id

    def _frame_files(self, id: str) -> list[Path]:
        folder, count = self._path(id) / "frames", self._frames[id]
        found = sorted(path for path in folder.glob("*") if path.suffix in IMAGE_SUFFIXES)
        if [path.stem for path in found] != [f"{index:05d}" for index in range(count)]:
            raise DatasetError(f"looked for {count} frames, 00000 to {count - 1:05d}, in {folder}: found {len(found)}")
        return found


def _manifest(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    path = require_file(folder / "dataset.json", "the list of a converted TAP-Vid dataset")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if (data["format"], data["version"]) != (FORMAT, VERSION):
            raise ValueError(f"expected format {FORMAT} version {VERSION}, got {data['format']} {data['version']}")
        name, entries = str(data["name"]), list(data["videos"])
        for entry in entries:
            if not (isinstance(entry["id"], str) and entry["id"] == Path(entry["id"]).name and int(entry["frames"])):
                raise ValueError(f"a video with id {entry['id']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is no list of a converted TAP-Vid dataset: {error}") from error
    if not entries:
        raise DatasetError(f"{path} lists no video")
    return name, entries
