"""Follows points, boxes and segments through a video file, and writes where they are: tables, label images, a film."""

from __future__ import annotations

import csv
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.draw_tracks import TrackTails, draw_tracks
from rvm_core.engines import Engine
from rvm_core.preprocess import FrameMap, Preprocess
from rvm_core.tracking.base import (
    BoxQuery,
    BoxTracks,
    MaskQuery,
    MaskTracks,
    PointQuery,
    PointTracks,
    Query,
    Status,
    Tracker,
    Tracks,
)
from rvm_core.tracking.pixels import PixelTracks, label_image, tracks_to_pixels
from rvm_perception.video import VideoError, read_frames, write_video

UInt8Array = npt.NDArray[np.uint8]
UInt16Array = npt.NDArray[np.uint16]

FIELDS = (
    "frame", "time_s", "kind", "id", "label", "status",
    "x", "y", "x_min", "y_min", "x_max", "y_max", "confidence",
)  # fmt: skip
"""Columns of tracks.csv: frame of the video from 0 and its time in seconds; x and y of points and x_min to y_max of
boxes in pixels, empty for the other kinds."""


@dataclass(frozen=True, kw_only=True)
class TrackPlan:
    """What is followed, from where on."""

    video: Path
    rate: float
    """Frames per second of the video."""
    queries: Sequence[Query]
    """In grid coordinates, with ids that differ."""
    labels: Mapping[int, str] = field(default_factory=dict)
    """Names of the tracks by id."""
    at: float = 0.0
    """Time of the frame in which the queries hold, seconds: the first frame that is not earlier."""
    seconds: float | None = None
    """How long they are followed; None: to the end."""

    @property
    def query_frame(self) -> int:
        """Number of the frame in which the queries hold."""
        # What is a frame's own time on paper may differ in the last digits.
        return max(0, int(np.ceil(self.at * self.rate - 1e-6)))

    @property
    def end_frame(self) -> int | None:
        """Number of the first frame that is not read any more, None for no end."""
        return None if self.seconds is None else self.query_frame + max(1, round(self.seconds * self.rate))


@dataclass(frozen=True, kw_only=True)
class TrackedFrame:
    """One frame and where the tracks are in it."""

    number: int
    image: UInt8Array
    """uint8 (H, W, 3) RGB."""
    tracks: PixelTracks
    """Empty before the frame of the queries."""
    segments: UInt16Array | None
    """Label image (H, W) whose values are the ids of the segments; None without segments."""
    engine_ms: float
    tracking_ms: float


def follow(plan: TrackPlan, engine: Engine, preprocess: Preprocess, tracker: Tracker[Any]) -> Iterator[TrackedFrame]:
    """Each frame of the video, from its start on, as the model carries its past along.

    In the frame of the queries the tracks are where the queries say. Raises `VideoError` if the video ends before, and
    what engine and tracker raise.
    """
    engine_state, tracks_state = engine.init_state(), tracker.init_state()
    has_masks = any(isinstance(query, MaskQuery) for query in plan.queries)
    number = -1
    for number, bgr in enumerate(read_frames(plan.video)):
        if number == plan.end_frame:
            return
        image = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
        frame_map = preprocess.map(*image.shape[:2])
        start = time.perf_counter()
        features, engine_state = engine.step(preprocess(image)[None], engine_state)
        tokens = features[0].cpu()
        stepped = time.perf_counter()
        if not tokens.isfinite().all():
            raise VideoError(f"frame {number} of {plan.video}: the engine returned NaN or infinite features")
        tracks, tracks_state = tracker.step(tokens, tracks_state)
        if number == plan.query_frame:
            tracks_state, tracks = tracker.add(plan.queries, tracks_state), as_tracks(plan.queries)
        tracked = time.perf_counter()
        yield TrackedFrame(
            number=number,
            image=image,
            tracks=tracks_to_pixels(tracks, frame_map),
            segments=_segments(tracks, frame_map) if has_masks and number >= plan.query_frame else None,
            engine_ms=(stepped - start) * 1e3,
            tracking_ms=(tracked - stepped) * 1e3,
        )
    if number < plan.query_frame:
        raise VideoError(
            f"{plan.video} ends after {number + 1} frames, {(number + 1) / plan.rate:.2f} s: nothing can be followed "
            f"from {plan.at:g} s on"
        )


def as_tracks(queries: Sequence[Query]) -> Tracks:
    """The tracks in the frame of the queries: what was asked for, visible, with confidence 1."""
    points = [query for query in queries if isinstance(query, PointQuery)]
    boxes = [query for query in queries if isinstance(query, BoxQuery)]
    masks = [query for query in queries if isinstance(query, MaskQuery)]

    def given(queries: Sequence[Query]) -> dict[str, npt.NDArray[Any]]:
        return {
            "ids": np.array([query.id for query in queries], np.uint64),
            "status": np.full(len(queries), Status.VISIBLE, np.uint8),
            "confidence": np.ones(len(queries), np.float32),
        }

    xyxy = [(box.x_min, box.y_min, box.x_max, box.y_max) for box in boxes]
    soft = np.stack([mask.mask for mask in masks]) if masks else np.zeros((0, 0, 0), np.float32)
    return Tracks(
        points=PointTracks(xy=np.array([(p.x, p.y) for p in points], np.float32).reshape(-1, 2), **given(points)),
        boxes=BoxTracks(xyxy=np.array(xyxy, np.float32).reshape(-1, 4), **given(boxes)),
        masks=MaskTracks(soft=soft, **given(masks)),
    )


def _segments(tracks: Tracks, frame_map: FrameMap) -> UInt16Array:
    return label_image(tracks.masks, frame_map, tracks.masks.ids.tolist())


class TrackWriter:
    """Writes tracked frames into a folder as they come: tracks.csv, masks/ where there are segments, overlay.mp4.

    `visible` (frames by id), `engine_ms` and `tracking_ms` (one a frame) fill on the way.
    """

    def __init__(self, folder: Path, plan: TrackPlan) -> None:
        self._folder, self._plan = folder, plan
        self._tails = TrackTails(max(2, round(plan.rate)))
        self.frames = 0
        """From that of the queries on."""
        self.visible: Counter[int] = Counter()
        self.engine_ms: list[float] = []
        self.tracking_ms: list[float] = []

    def write(self, frames: Iterable[TrackedFrame]) -> None:
        """Writes every frame. What is in the folder when this raises is not complete."""
        with ExitStack() as files:
            table = csv.writer(self._table(files))
            table.writerow(FIELDS)
            pictures = (self._record(frame, table.writerow) for frame in frames)
            write_video(self._folder / "overlay.mp4", pictures, rate=self._plan.rate)

    def _table(self, files: ExitStack) -> IO[str]:
        return files.enter_context(open(self._folder / "tracks.csv", "w", newline="", encoding="utf-8"))

    def _record(self, frame: TrackedFrame, write_row: Callable[[Sequence[object]], object]) -> tuple[int, UInt8Array]:
        """Writes what is known of a frame, and returns its time in milliseconds and its picture."""
        self.engine_ms.append(frame.engine_ms)
        self.tracking_ms.append(frame.tracking_ms)
        self.frames += frame.number >= self._plan.query_frame
        for row in self._rows(frame):
            write_row(row)
        if frame.segments is not None:
            self._write_segments(frame.number, frame.segments)
        self._tails.update(frame.tracks)
        picture = draw_tracks(
            frame.image, frame.tracks, tails=self._tails, labels=self._plan.labels, segments=frame.segments
        )
        return round(frame.number * 1000 / self._plan.rate), picture

    def _rows(self, frame: TrackedFrame) -> Iterator[tuple[object, ...]]:
        time_s = f"{frame.number / self._plan.rate:.3f}"
        points, boxes, masks = frame.tracks.points, frame.tracks.boxes, frame.tracks.masks
        for kind, tracks in (("point", points), ("box", boxes), ("mask", masks)):
            entries = zip(tracks.ids.tolist(), tracks.status.tolist(), tracks.confidence.tolist(), strict=True)
            for i, (id, status, confidence) in enumerate(entries):
                self.visible[id] += status == Status.VISIBLE
                xy = _decimals(points.xy[i]) if kind == "point" else ("",) * 2
                xyxy = _decimals(boxes.xyxy[i]) if kind == "box" else ("",) * 4
                label, name = self._plan.labels.get(id, ""), Status(status).name.lower()
                yield (frame.number, time_s, kind, id, label, name, *xy, *xyxy, f"{confidence:.4f}")

    def _write_segments(self, number: int, segments: UInt16Array) -> None:
        """As 8 bits where all ids fit, so that everything can read it."""
        fits = max(query.id for query in self._plan.queries if isinstance(query, MaskQuery)) < 256
        folder = self._folder / "masks"
        folder.mkdir(exist_ok=True)
        encoded = cv2.imencode(".png", segments.astype(np.uint8) if fits else segments)[1]
        (folder / f"{number:06d}.png").write_bytes(encoded.tobytes())


def _decimals(pixels: npt.NDArray[np.floating]) -> tuple[str, ...]:
    return tuple(f"{value:.2f}" for value in pixels.tolist())


def kind_of(query: Query) -> str:
    """ "point", "box" or "mask"."""
    return {PointQuery: "point", BoxQuery: "box", MaskQuery: "mask"}[type(query)]
