"""`rvm eval boxes`: boxes followed through videos by RVM's features, without training or by a trained head.

The rules of 4DS (arXiv 2412.15212) for Waymo Open: frames are taken at 5 a second, brought to 256x384 pixels and cut to
the 256x256 in the middle; of a video the first 16 count. Followed are the boxes of the first frame that cover more
than 0.5% of it, as far as they are in it, at most 25, the largest first. What is measured is the mean intersection over
union of all boxes and frames where the truth shows the object, without the first frame.

T frames, B boxes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.config import PATCH_SIZE
from rvm_core.tracking.base import BoxQuery, Tracker
from rvm_core.tracking.create import create_tracker
from rvm_training.datasets.boxes import BoxFolder, BoxVideo
from rvm_training.datasets.images import read_image
from rvm_training.evaluation.benchmark import (
    Advance,
    Aggregate,
    DatasetError,
    Metric,
    Picture,
    Row,
    Scores,
    UInt8Array,
    VideoResult,
)
from rvm_training.evaluation.features import Encoder
from rvm_training.evaluation.readouts import head_hash
from rvm_training.evaluators.drawing import box_picture
from rvm_training.evaluators.overlap import box_iou

RATE = 5.0
"""Frames per second."""
HEIGHT, WIDTH = 256, 384
SIZE = (256, 256)
"""Of the part in the middle."""
FRAMES = 16
SMALLEST = 0.005
"""Share of the first frame that a box must cover more of."""
MOST = 25

METRICS = (Metric(key="box_iou", title="mIoU", description="mean IoU of boxes without the first frame, %"),)

Float64Array = npt.NDArray[np.float64]


def create(args: argparse.Namespace, encoder: Encoder) -> BoxTracking:
    """See `rvm_training.evaluation.benchmark`; args has `data`, `head` and `frames`."""
    return BoxTracking(BoxFolder(args.data), encoder, head=args.head, frames=args.frames or FRAMES)


@dataclass(frozen=True, kw_only=True)
class BoxTask:
    """What is asked of a video."""

    frames: tuple[Path, ...]
    """T image files."""
    size: tuple[int, int]
    """(height, width) of the images."""
    boxes: Float64Array
    """(T, B, 4): true boxes in pixels of the part in the middle, cut to it; NaN where it shows nothing of them."""


class BoxTracking:
    """A `Benchmark`."""

    name = "boxes"
    metrics = METRICS
    image_size = SIZE
    published: Sequence[Row] = ()

    def __init__(self, dataset: BoxFolder, encoder: Encoder, *, head: Path | None = None, frames: int = FRAMES) -> None:
        self._dataset, self._encoder, self._frames, self._head = dataset, encoder, frames, head
        self._grid = SIZE[0] // PATCH_SIZE, SIZE[1] // PATCH_SIZE
        self._tracker: Tracker[Any] = create_tracker(self._grid, encoder.width, box_head=head)
        self._head_hash = head_hash(head) if head else None

    @property
    def title(self) -> str:
        """See `Benchmark`."""
        return (
            f"boxes of {self._dataset.folder.name}, rules of 4DS, {'a trained head' if self._head else 'no training'}"
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Benchmark`."""
        return {
            "tracker": self._tracker.name,
            "head": self._head_hash,
            "rate": RATE,
            "frames": self._frames,
            "resize": [HEIGHT, WIDTH],
            "smallest": SMALLEST,
            "most": MOST,
        }

    @property
    def deviations(self) -> Sequence[str]:
        """See `Benchmark`."""
        reasons = [] if self._head else ["published figures are of trained heads, this tracker is untrained"]
        if self._frames != FRAMES:
            reasons.append(f"{self._frames} frames of each video instead of {FRAMES}")
        return reasons

    def videos(self) -> Sequence[str]:
        """See `Benchmark`."""
        return self._dataset.ids

    def files(self, video: str) -> Sequence[Path]:
        """See `Benchmark`."""
        return self._dataset.files(video)

    def evaluate(self, video: str, *, pictures: bool, advance: Advance) -> VideoResult:
        """See `Benchmark`."""
        task = make_task(self._dataset.read(video), self._frames)
        if not task.boxes.shape[1]:
            return VideoResult(scores={"boxes": 0, "count": 0, "sum": 0.0}, summary={"box_iou": None})
        found = self._follow(task, advance)
        iou = box_iou(found, task.boxes)[1:]
        counted = iou[~np.isnan(iou)]
        mean = float(counted.mean()) if counted.size else None
        return VideoResult(
            scores={"boxes": task.boxes.shape[1], "count": int(counted.size), "sum": float(counted.sum())},
            summary={"box_iou": mean},
            pictures=[_picture(task, found)] if pictures else (),
        )

    def aggregate(self, results: Mapping[str, Scores]) -> Aggregate:
        """See `Benchmark`: the mean over videos of each video's mean."""
        means = [scores["sum"] / scores["count"] for scores in results.values() if scores["count"]]
        boxes = sum(scores["boxes"] for scores in results.values())
        notes = [f"{boxes} boxes in {len(means)} videos"]
        if len(means) < len(results):
            notes.append(
                f"{len(results) - len(means)} videos have no box to follow that is large enough, and do not count"
            )
        return Aggregate(rows=[Row(name="", values={"box_iou": float(np.mean(means)) if means else None})], notes=notes)

    def _follow(self, task: BoxTask, advance: Advance) -> Float64Array:
        """Boxes (T, B, 4) in pixels, those of the first frame as they were given."""
        found = np.broadcast_to(task.boxes[0], task.boxes.shape).copy()
        limits = np.array([SIZE[1], SIZE[0]] * 2)
        state = self._tracker.init_state()
        queries = [
            BoxQuery(id=id, x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max)
            for id, (x_min, y_min, x_max, y_max) in enumerate((task.boxes[0] / PATCH_SIZE).tolist())
        ]
        for t, tokens in enumerate(self._encoder.encode(_middles(task.frames), SIZE)):
            tracks, state = self._tracker.step(tokens.float().cpu(), state)
            if t == 0:
                state = self._tracker.add(queries, state)
            found[t, tracks.boxes.ids.astype(np.intp)] = np.clip(tracks.boxes.xyxy * PATCH_SIZE, 0, limits)
            advance((t + 1) / len(task.frames))
        return found


def make_task(video: BoxVideo, frames: int) -> BoxTask:
    """The frames and boxes that count. Raises `DatasetError` for a video that has fewer than 5 frames a second."""
    if video.rate < RATE:
        raise DatasetError(f"expected a video of {RATE:g} frames a second or more, got {video.rate:g}")
    chosen = np.round(np.arange(frames) * video.rate / RATE).astype(int)
    chosen = chosen[chosen < len(video.frames)]
    if len(chosen) < 2:
        raise DatasetError(f"expected two frames or more at {RATE:g} a second, got {len(chosen)}")
    height, width = read_image(video.frames[0]).shape[:2]
    boxes = to_middle(video.boxes[chosen], (height, width))
    areas = (boxes[0, :, 2:] - boxes[0, :, :2]).prod(axis=-1)
    # What is not there is NaN, which is not over anything.
    large = np.flatnonzero(areas > SMALLEST * SIZE[0] * SIZE[1])
    kept = np.sort(large[np.argsort(-areas[large], kind="stable")][:MOST])
    return BoxTask(frames=tuple(video.frames[i] for i in chosen), size=(height, width), boxes=boxes[:, kept])


def to_middle(boxes: Float64Array, size: tuple[int, int]) -> Float64Array:
    """Boxes (..., 4) of an image of this (height, width) to pixels of the part in the middle, cut to it."""
    left, top = (WIDTH - SIZE[1]) / 2, (HEIGHT - SIZE[0]) / 2
    moved = boxes * ([WIDTH / size[1], HEIGHT / size[0]] * 2) - [left, top, left, top]
    cut = np.clip(moved, 0, [SIZE[1], SIZE[0]] * 2)
    seen = np.all(cut[..., :2] < cut[..., 2:], axis=-1, keepdims=True)
    return np.where(seen, cut, np.nan)


def _middles(frames: Sequence[Path]) -> Iterator[UInt8Array]:
    return (middle(read_image(path)) for path in frames)


def middle(image: UInt8Array) -> UInt8Array:
    """The image at 256x384, cut to the 256x256 in its middle."""
    shrinks = image.shape[0] >= HEIGHT and image.shape[1] >= WIDTH
    resized = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    left, top = (WIDTH - SIZE[1]) // 2, (HEIGHT - SIZE[0]) // 2
    return np.ascontiguousarray(resized[top : top + SIZE[0], left : left + SIZE[1]], np.uint8)


def _picture(task: BoxTask, found: Float64Array) -> Picture:
    shown = np.unique(np.linspace(0, len(task.frames) - 1, 4).astype(int))
    sheet = box_picture([middle(read_image(task.frames[t])) for t in shown], found[shown], task.boxes[shown])
    return Picture(name="boxes", image=sheet, caption=f"frames {', '.join(map(str, shown.tolist()))}; white: the truth")
