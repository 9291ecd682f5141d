"""Points, boxes and masks as they are given on a command line, and the queries they become."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rvm_core.preprocess import FrameMap
    from rvm_core.tracking.base import Query

_MOST_LABELS = 256
"""In a label image; one with more is taken for a photograph."""


class Given(NamedTuple):
    """A point or a box as it was given."""

    pixels: tuple[float, ...]
    """x and y, or x_min, y_min, x_max and y_max."""
    label: str


def parse_point(text: str) -> Given:
    """ "X,Y" or "X,Y,NAME". Raises `argparse.ArgumentTypeError` for anything else."""
    return _parse(text, 2, "X,Y or X,Y,NAME")


def parse_box(text: str) -> Given:
    """ "X1,Y1,X2,Y2" or with ",NAME" behind. Raises `argparse.ArgumentTypeError` for anything else."""
    given = _parse(text, 4, "X1,Y1,X2,Y2 or X1,Y1,X2,Y2,NAME")
    x_min, y_min, x_max, y_max = given.pixels
    if not (x_min < x_max and y_min < y_max):
        raise argparse.ArgumentTypeError(f"expected the upper left corner, then the lower right one, got {text!r}")
    return given


def _parse(text: str, numbers: int, form: str) -> Given:
    parts = text.split(",", numbers)
    try:
        pixels = tuple(float(part) for part in parts[:numbers])
    except ValueError:
        pixels = ()
    if len(pixels) != numbers or not all(map(math.isfinite, pixels)):
        raise argparse.ArgumentTypeError(f"expected {form}, in pixels, got {text!r}")
    return Given(pixels, parts[numbers].strip() if len(parts) > numbers else "")


def read_label_image(path: Path) -> npt.NDArray[np.uint16]:
    """A PNG or another image without loss as uint16 (H, W): grey values of 8 or 16 bits, or the numbers of a palette.

    Raises `ValueError`, which says what is wrong, for one that is no label image or has no label.
    """
    import cv2
    import numpy as np

    if not path.is_file():
        raise ValueError(f"no such mask: {path}")
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is not None and image.ndim == 3:
        image = _palette_numbers(path)
    if image is None or image.ndim != 2 or image.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"{path} is no label image: expected a PNG with one channel of 8 or 16 bits, or with a palette, whose "
            "values say which segment each pixel belongs to, 0 for none"
        )
    values = np.unique(image)
    if not values.any():
        raise ValueError(f"{path} has no label: every pixel is 0, which is background")
    if len(values) > _MOST_LABELS:
        raise ValueError(f"{path} is no label image: it has {len(values)} values, at most {_MOST_LABELS} are taken")
    return image.astype(np.uint16)


def _palette_numbers(path: Path) -> npt.NDArray[np.uint8] | None:
    """uint8 (H, W); None for an image without a palette. OpenCV gives only its colours."""
    import av

    try:
        with av.open(str(path)) as file:
            frame = next(file.decode(video=0))
            return frame.to_ndarray()[0] if frame.format.name == "pal8" else None
    except (av.FFmpegError, StopIteration):
        return None


def make_queries(
    points: Sequence[Given], boxes: Sequence[Given], mask: npt.NDArray[np.uint16] | None, frame_map: FrameMap
) -> tuple[list[Query], dict[int, str]]:
    """Queries in grid coordinates, and the names by id.

    A segment's id is its value in the mask; points, then boxes get the lowest numbers from 1 on that are left. Raises
    `QueryError` for the first that cannot be followed: outside of the image, empty, a mask of another size.
    """
    import numpy as np

    from rvm_core.tracking.pixels import box_query, mask_query, point_query

    values = [] if mask is None else [value for value in np.unique(mask).tolist() if value]
    ids = (id for id in count(1) if id not in values)
    labels: dict[int, str] = {}
    queries: list[Query] = []
    for given in points:
        labels[id := next(ids)] = given.label
        x, y = given.pixels
        queries.append(point_query(id, x, y, frame_map))
    for given in boxes:
        labels[id := next(ids)] = given.label
        x_min, y_min, x_max, y_max = given.pixels
        queries.append(box_query(id, x_min, y_min, x_max, y_max, frame_map))
    queries += [mask_query(value, mask == value, frame_map) for value in values]
    return queries, {id: label for id, label in labels.items() if label}
