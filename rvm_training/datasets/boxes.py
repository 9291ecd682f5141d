"""Videos with boxes in each frame, in a format that is easily written; there are converters from Waymo Open and MOT.

    FOLDER/SEQUENCE/boxes.json
    FOLDER/SEQUENCE/...                the images, wherever boxes.json says

boxes.json:

    {"format": "rvm-boxes", "version": 1, "rate": 10.0,
     "frames": [{"image": "frames/000000.jpg",
                 "boxes": [{"id": "7", "label": "vehicle", "xyxy": [x_min, y_min, x_max, y_max]}, ...]}, ...]}

rate: frames per second. Images are JPEG or PNG, their paths relative to boxes.json and not out of its folder. Boxes are
in pixels, x right and y down, and cover [x_min, x_max] x [y_min, y_max] of an image that covers [0, width] x
[0, height]. An id, a text, is the same object's in all frames; a frame where the object is not seen does not name it.
The label is optional.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rvm_training.datasets.images import require_folder
from rvm_training.evaluation.benchmark import DatasetError

FORMAT = "rvm-boxes"
VERSION = 1

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class BoxVideo:
    """A video and the true boxes of its objects."""

    rate: float
    """Frames per second."""
    frames: tuple[Path, ...]
    """T image files."""
    ids: tuple[str, ...]
    """Of the objects, in the order of their first frames."""
    boxes: Float64Array
    """(T, B, 4): x_min, y_min, x_max, y_max in pixels; NaN where an object is not seen."""


class BoxFolder:
    """A folder of sequences. Raises `DatasetError` for a folder without any."""

    def __init__(self, folder: Path) -> None:
        self.folder = require_folder(folder, "sequences with boxes.json")
        self.ids = sorted(path.parent.name for path in folder.glob("*/boxes.json"))
        """Of the sequences, in order."""
        if not self.ids:
            raise DatasetError(
                f"looked for SEQUENCE/boxes.json in {folder}: there is none; `rvm convert-data mot` and `rvm "
                "convert-data waymo` write such folders"
            )

    def files(self, id: str) -> list[Path]:
        """All files of a sequence: the boxes, then the frames."""
        return [self.folder / id / "boxes.json", *self.read(id).frames]

    def read(self, id: str) -> BoxVideo:
        """Raises `DatasetError` for a file that is not as the format has it, and for images that are missing."""
        return read_boxes(self.folder / id / "boxes.json")


def read_boxes(path: Path) -> BoxVideo:
    """One boxes.json. Raises `DatasetError` if it is not as the format has it or images are missing."""
    try:
        video = _parse(json.loads(path.read_text(encoding="utf-8")), path.parent)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"there is no {error}" if isinstance(error, KeyError) else error
        raise DatasetError(f"{path} is not as the format {FORMAT} has it: {what}") from error
    missing = [frame for frame in video.frames if not frame.is_file()]
    if missing:
        raise DatasetError(
            f"{path} names {len(video.frames)} images, {len(missing)} of them are missing; the first is {missing[0]}"
        )
    return video


def _parse(data: Any, folder: Path) -> BoxVideo:
    if (data["format"], data["version"]) != (FORMAT, VERSION):
        raise ValueError(f"expected format {FORMAT} version {VERSION}, got {data['format']} {data['version']}")
    rate = float(data["rate"])
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"expected a rate above 0, got {rate}")
    if not data["frames"]:
        raise ValueError("it has no frames")
    frames, boxes = [], []
    for number, frame in enumerate(data["frames"]):
        frames.append(_image(frame["image"], folder))
        by_id = {str(box["id"]): _box(box["xyxy"], number) for box in frame["boxes"]}
        if len(by_id) != len(frame["boxes"]):
            raise ValueError(f"frame {number} has an id twice")
        boxes.append(by_id)
    ids = list(dict.fromkeys(id for by_id in boxes for id in by_id))
    table = np.full((len(frames), len(ids), 4), np.nan)
    for number, by_id in enumerate(boxes):
        for id, box in by_id.items():
            table[number, ids.index(id)] = box
    return BoxVideo(rate=rate, frames=tuple(frames), ids=tuple(ids), boxes=table)


def _image(name: Any, folder: Path) -> Path:
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"expected the path of an image in the folder, got {name!r}")
    return folder / name


def _box(corners: Any, number: int) -> tuple[float, ...]:
    box = tuple(map(float, corners))
    if len(box) != 4 or not all(map(math.isfinite, box)) or not (box[0] < box[2] and box[1] < box[3]):
        raise ValueError(f"frame {number}: expected a box x_min, y_min, x_max, y_max with an area, got {corners}")
    return box
