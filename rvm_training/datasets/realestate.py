"""RealEstate10K: files of cameras as they are distributed, and the frames of the videos beside them.

    FOLDER/test/ID.txt                 first the video's address, then a line for each frame: timestamp in microseconds,
                                       fx fy cx cy as shares of the image, two zeros, and the 3x4 matrix [R | t], row by
                                       row, that takes points of the world to the camera
    FOLDER/frames/test/ID/TIMESTAMP.jpg or .png

The dataset has no frames; whoever downloads the videos names them by their timestamps. Without a folder test/ the text
files are looked for in FOLDER itself, and the frames in FOLDER/frames/ID.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rvm_training.datasets.images import IMAGE_SUFFIXES, require_folder
from rvm_training.evaluation.benchmark import DatasetError

_NUMBERS = 19
_TOLERANCE = 1e-2
"""Of R R^T being the identity; the files have nine digits, and other matrices are no rotations at all."""

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CameraVideo:
    """A video and where its camera was."""

    frames: tuple[Path, ...]
    """T images."""
    cameras: Float64Array
    """(T, 3, 4): [R | t], from the world to the camera."""


class RealEstateFolder:
    """The videos of a split. Raises `DatasetError` for a folder without text files, or without frames of some."""

    def __init__(self, folder: Path, *, split: str = "test") -> None:
        require_folder(folder, f"RealEstate10K ({split}/ID.txt and frames/{split}/ID/TIMESTAMP.jpg)")
        split = split if (folder / split).is_dir() else ""
        self._texts, self._frames = folder / split, folder / "frames" / split
        self.ids = sorted(path.stem for path in self._texts.glob("*.txt"))
        if not self.ids:
            raise DatasetError(f"looked for files of cameras ID.txt in {self._texts}: there is none")
        missing = [id for id in self.ids if not (self._frames / id).is_dir()]
        if missing:
            raise DatasetError(
                f"looked for frames of {len(self.ids)} videos in {self._frames}/ID: {len(missing)} have none, the "
                f"first is {missing[0]}; the dataset has no frames, make them from the videos, named by timestamp"
            )

    def text(self, id: str) -> Path:
        """The file of a video's cameras."""
        return self._texts / f"{id}.txt"

    def read(self, id: str) -> CameraVideo:
        """Raises `DatasetError` for a file that is not as the dataset has it, and for frames that are missing."""
        timestamps, cameras = _read_cameras(self.text(id))
        files = {path.stem: path for path in (self._frames / id).iterdir() if path.suffix in IMAGE_SUFFIXES}
        missing = [stamp for stamp in timestamps if stamp not in files]
        if missing:
            raise DatasetError(
                f"looked for {len(timestamps)} frames TIMESTAMP.jpg in {self._frames / id}: {len(missing)} are "
                f"missing, the first is {missing[0]}.jpg"
            )
        return CameraVideo(frames=tuple(files[stamp] for stamp in timestamps), cameras=cameras)


def relative_pose(first: Float64Array, last: Float64Array) -> tuple[Float64Array, Float64Array]:
    """R (3, 3) and t (3,) that take points of the first camera to the last one, from their [R | t] of the world."""
    rotation = last[:, :3] @ first[:, :3].T
    return rotation, last[:, 3] - rotation @ first[:, 3]


def _read_cameras(path: Path) -> tuple[list[str], Float64Array]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    rows = [line.split() for line in lines if line.strip()]
    try:
        if not rows or any(len(row) != _NUMBERS for row in rows):
            raise ValueError(f"expected {_NUMBERS} numbers in each line after the first")
        stamps = [str(int(row[0])) for row in rows]
        cameras = np.array([[float(number) for number in row[7:]] for row in rows]).reshape(-1, 3, 4)
        rotations = cameras[:, :, :3]
        if (
            not np.isfinite(cameras).all()
            or np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max() > _TOLERANCE
        ):
            raise ValueError("expected rotations and translations, got matrices that are none")
    except ValueError as error:
        raise DatasetError(f"{path} is no file of cameras of RealEstate10K: {error}") from error
    return stamps, cameras
