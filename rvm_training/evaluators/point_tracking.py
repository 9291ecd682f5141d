"""`rvm eval tapvid`: points followed through TAP-Vid's videos by RVM's features, without training or by a trained head.

T frames, Q queries. Protocols, by name:

- first: each point is asked for in the first frame it is seen in, and followed forwards.
- strided: each point is asked for in every fifth frame it is seen in, and followed forwards and, through the video in
  reverse, backwards.
- 4ds: the protocol of 4DS (arXiv 2412.15212): every fourth frame, 16 in all, and the points that the first shows.

Videos are brought to 256x256 pixels, whatever their shape, as TAP-Vid does.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from rvm_core.config import PATCH_SIZE
from rvm_core.tracking.base import PointQuery, Status, Tracker
from rvm_core.tracking.create import create_tracker
from rvm_training.datasets.images import read_image, read_images
from rvm_training.datasets.tapvid import PointVideo, TapVidFolder
from rvm_training.evaluation.benchmark import (
    Advance,
    Aggregate,
    DatasetError,
    Metric,
    Picture,
    Row,
    Scores,
    VideoResult,
)
from rvm_training.evaluation.features import Encoder
from rvm_training.evaluation.readouts import head_hash
from rvm_training.evaluators.drawing import point_picture
from rvm_training.evaluators.tap_vid import (
    QueryMode,
    TapVidMetrics,
    first_queries,
    mean_metrics,
    strided_queries,
    tap_vid_metrics,
)

Protocol = Literal["first", "strided", "4ds"]
PROTOCOLS = get_args(Protocol)
FRAMES, STRIDE = 16, 4
"""Of 4ds."""
SIZE = (256, 256)

METRICS = (
    Metric(key="average_jaccard", title="AJ", description="Average Jaccard at 1, 2, 4, 8 and 16 pixels of 256, %"),
    Metric(key="position_accuracy", title="<d_avg", description="visible points whose position is right, %"),
    Metric(key="occlusion_accuracy", title="OA", description="frames where occluded or not is said as it is, %"),
)
_PERCEPTION_TEST = (
    ("RVM-L", 0.773, "arXiv 2512.13684"),
    ("RVM-H", 0.783, "arXiv 2512.13684"),
    ("TRecViT-B, readout of MooG", 0.783, "arXiv 2412.14294"),
)

IntArray = npt.NDArray[np.intp]
BoolArray = npt.NDArray[np.bool_]
Float64Array = npt.NDArray[np.float64]


def create(args: argparse.Namespace, encoder: Encoder) -> PointTracking:
    """See `rvm_training.evaluation.benchmark`; args has `data`, `protocol`, `head` and `size`."""
    return PointTracking(
        TapVidFolder(args.data), encoder, protocol=args.protocol, head=args.head, image_size=args.size or SIZE
    )


@dataclass(frozen=True, kw_only=True)
class PointTask:
    """What is asked of a video."""

    frames: tuple[Path, ...]
    """T image files."""
    starts: IntArray
    """(Q,): the frame of each query."""
    points: Float64Array
    """(T, Q, 2): true positions as shares of the image."""
    occluded: BoolArray
    """(T, Q)."""
    mode: QueryMode


class PointTracking:
    """A `Benchmark`."""

    name = "tapvid"
    metrics = METRICS

    def __init__(
        self,
        dataset: TapVidFolder,
        encoder: Encoder,
        *,
        protocol: Protocol = "first",
        head: Path | None = None,
        image_size: tuple[int, int] = SIZE,
    ) -> None:
        self._dataset, self._encoder, self._protocol, self._head = dataset, encoder, protocol, head
        self.image_size = image_size
        self._grid = image_size[0] // PATCH_SIZE, image_size[1] // PATCH_SIZE
        self._tracker: Tracker[Any] = create_tracker(self._grid, encoder.width, point_head=head)
        self._head_hash = head_hash(head) if head else None

    @property
    def title(self) -> str:
        """See `Benchmark`."""
        how = "a trained head" if self._head else "no training"
        return f"points of {self._dataset.name} (TAP-Vid), protocol {self._protocol}, {how}"

    @property
    def published(self) -> Sequence[Row]:
        """See `Benchmark`."""
        if (self._dataset.name, self._protocol) != ("perception_test", "4ds"):
            return ()
        return [Row(name=name, values={"average_jaccard": aj}, source=source) for name, aj, source in _PERCEPTION_TEST]

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Benchmark`."""
        return {
            "dataset": self._dataset.name,
            "protocol": self._protocol,
            "tracker": self._tracker.name,
            "head": self._head_hash,
            "resize": "stretch",
        }

    @property
    def deviations(self) -> Sequence[str]:
        """See `Benchmark`."""
        reasons = [] if self._head else ["published figures are of heads trained on Kubric, this tracker is untrained"]
        if self.image_size != SIZE:
            reasons.append("frames of {}x{} pixels instead of 256x256".format(*self.image_size))
        return reasons

    def videos(self) -> Sequence[str]:
        """See `Benchmark`."""
        return self._dataset.ids

    def files(self, video: str) -> Sequence[Path]:
        """See `Benchmark`."""
        return self._dataset.files(video)

    def evaluate(self, video: str, *, pictures: bool, advance: Advance) -> VideoResult:
        """See `Benchmark`."""
        task = make_task(self._dataset.read(video), self._protocol)
        xy, visible = self._follow(task, advance)
        metrics = tap_vid_metrics(
            query_frames=task.starts,
            points=task.points,
            occluded=task.occluded,
            predicted_points=xy,
            predicted_occluded=~visible,
            image_size=(1, 1),
            query_mode=task.mode,
        )
        scores = {key: _without_nan(value) for key, value in asdict(metrics).items()}
        return VideoResult(
            scores=scores | {"queries": len(task.starts)},
            summary={metric.key: scores[metric.key] for metric in METRICS},
            pictures=[self._picture(task, xy, visible)] if pictures and len(task.starts) else (),
        )

    def aggregate(self, results: Mapping[str, Scores]) -> Aggregate:
        """See `Benchmark`: the mean over videos."""
        asked = [scores for scores in results.values() if scores["queries"]]
        row = Row(name="", values={})
        if asked:
            mean = mean_metrics([_metrics(scores) for scores in asked])
            row = Row(name="", values={metric.key: _without_nan(getattr(mean, metric.key)) for metric in METRICS})
        notes = [f"{sum(scores['queries'] for scores in asked)} queries in {len(asked)} videos"]
        if len(asked) < len(results):
            notes.append(f"{len(results) - len(asked)} videos have no point to ask for, and do not count")
        return Aggregate(rows=[row], notes=notes)

    def _follow(self, task: PointTask, advance: Advance) -> tuple[Float64Array, BoolArray]:
        """Positions (T, Q, 2) as shares of the image and whether they are said to be visible (T, Q)."""
        places = task.points[task.starts, np.arange(len(task.starts))]
        if task.mode == "first":
            return self._pass(task.frames, task.starts, places, advance)
        last = len(task.frames) - 1
        xy, visible = self._pass(task.frames, task.starts, places, lambda share: advance(share / 2))
        back_xy, back_visible = self._pass(
            task.frames[::-1], last - task.starts, places, lambda share: advance((1 + share) / 2)
        )
        before = np.arange(len(task.frames))[:, None] < task.starts[None]
        return np.where(before[..., None], back_xy[::-1], xy), np.where(before, back_visible[::-1], visible)

    def _pass(
        self, frames: Sequence[Path], starts: IntArray, places: Float64Array, advance: Callable[[float], None]
    ) -> tuple[Float64Array, BoolArray]:
        """One way through the video; before its query a point is where the query is."""
        rows, columns = self._grid
        # The outermost points of a dataset may lie a little outside of the image.
        cells = np.clip(places, 0, 1) * (columns, rows)
        xy = np.broadcast_to(places, (len(frames), *places.shape)).copy()
        visible = np.ones(xy.shape[:2], bool)
        if not len(starts):
            return xy, visible
        state = self._tracker.init_state()
        for t, tokens in enumerate(self._encoder.encode(read_images(frames), self.image_size)):
            tracks, state = self._tracker.step(tokens.float().cpu(), state)
            index = tracks.points.ids.astype(np.intp)
            xy[t, index] = tracks.points.xy / (columns, rows)
            visible[t, index] = tracks.points.status == Status.VISIBLE
            queries = [
                PointQuery(id=int(id), x=float(cells[id, 0]), y=float(cells[id, 1]))
                for id in np.flatnonzero(starts == t)
            ]
            state = self._tracker.add(queries, state) if queries else state
            advance((t + 1) / len(frames))
        return xy, visible

    def _picture(self, task: PointTask, xy: Float64Array, visible: BoolArray) -> Picture:
        shown = np.unique(np.linspace(0, len(task.frames) - 1, 4).astype(int))
        images = [read_image(task.frames[t]) for t in shown]
        # A point is where its query is until it is asked for.
        asked = shown[:, None] >= task.starts[None]
        found = np.where(asked[..., None], xy[shown], np.nan)
        sheet = point_picture(images, found, visible[shown], task.points[shown], ~task.occluded[shown])
        frames = ", ".join(map(str, shown.tolist()))
        return Picture(
            name="points",
            image=sheet,
            caption=f"frames {frames}: disc tracked, ring said to be hidden, line to where the point is",
        )


def make_task(video: PointVideo, protocol: Protocol) -> PointTask:
    """The queries of a protocol. Raises `DatasetError` for a video that is too short for it."""
    frames, points, occluded = video.frames, video.points, video.occluded
    if protocol == "4ds":
        needed = (FRAMES - 1) * STRIDE + 1
        if len(frames) < needed:
            raise DatasetError(f"protocol 4ds needs {needed} frames, the video has {len(frames)}")
        chosen = slice(0, needed, STRIDE)
        seen = ~occluded[0]
        frames, points, occluded = frames[chosen], points[chosen][:, seen], occluded[chosen][:, seen]
    starts, index = strided_queries(~occluded) if protocol == "strided" else first_queries(~occluded)
    return PointTask(
        frames=frames,
        starts=starts,
        points=points[:, index],
        occluded=occluded[:, index],
        mode="strided" if protocol == "strided" else "first",
    )


def _metrics(scores: Scores) -> TapVidMetrics:
    """What was kept of a video, as it was measured."""
    return TapVidMetrics(
        average_jaccard=_with_nan(scores["average_jaccard"]),
        position_accuracy=_with_nan(scores["position_accuracy"]),
        occlusion_accuracy=_with_nan(scores["occlusion_accuracy"]),
        jaccard=tuple(map(_with_nan, scores["jaccard"])),
        within=tuple(map(_with_nan, scores["within"])),
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if math.isnan(value) else value


def _with_nan(value: float | None) -> float:
    return math.nan if value is None else value
