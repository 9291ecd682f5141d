"""Tracks of points and boxes by trained heads over windows of the last frames; `windows.py` chains the windows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rvm_core.heads import BoxHead, PointHead
from rvm_core.readout import KeyValues
from rvm_core.tracking.base import BoxQuery, BoxTracks, PointQuery, PointTracks, Query, Status, Tracks
from rvm_core.tracking.queries import check_queries
from rvm_core.tracking.windows import HeadWindows, Reading, TrackWindows, no_tracks, without

CornerOrder = Literal["xyxy", "yxyx"]
"""In which order a box head was trained to say the corners of a box."""

VISIBLE_FROM = 0.5
"""Confidence over which a track counts as visible, as in the release."""

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class WindowState:
    """What a `WindowTracker` knows of one video."""

    newest: int = -1
    """Number of the newest frame, from 0; -1 before the first."""
    points: TrackWindows
    boxes: TrackWindows


class WindowTracker:
    """Follows points and boxes with trained heads; obeys `rvm_core.tracking.base.Tracker`.

    A point's confidence is the probability that it is visible times that of its position being certain, and it is
    visible over 0.5, as in the release. A box head says neither: a box's confidence is the overlap (IoU) of what the
    two windows say, 1 where there is one only; this measures agreement and is not calibrated.

    Args:
        point_head, box_head: trained heads in eval mode; None where a kind is not followed. One at least.
        grid: (h, w) of the features.
        corner_order: of the box head's training; the default is the release's.
    """

    name = "window_heads"

    def __init__(
        self,
        *,
        grid: tuple[int, int],
        point_head: PointHead | None = None,
        box_head: BoxHead | None = None,
        corner_order: CornerOrder = "yxyx",
    ) -> None:
        if point_head is None and box_head is None:
            raise ValueError("expected a point head, a box head or both")
        self._grid = grid
        self._points = HeadWindows(point_head.readout, 2, partial(_read_points, point_head)) if point_head else None
        self._boxes = HeadWindows(box_head.readout, 4, partial(_read_boxes, box_head)) if box_head else None
        rows, columns = grid
        self._point_scale = np.array([columns, rows], np.float32)
        self._box_scale = np.array([columns, rows] * 2, np.float32)
        self._corners = [0, 1, 2, 3] if corner_order == "xyxy" else [1, 0, 3, 2]

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the features it takes."""
        return self._grid

    def init_state(self) -> WindowState:
        """The state before the first frame."""
        return WindowState(points=no_tracks(2), boxes=no_tracks(4))

    def remembered(self, state: WindowState) -> int:
        """How many of the newest frames a query may be added at: those of a window, as far as they were seen."""
        return min(len(part.frames) for head, part in self._parts(state) if head)

    def add(self, queries: Sequence[Query], state: WindowState, *, age: int = 0) -> WindowState:
        """Starts tracks; see `Tracker.add`."""
        kinds = [kind for head, kind in ((self._points, PointQuery), (self._boxes, BoxQuery)) if head]
        check_queries(
            queries,
            kinds=kinds,
            grid=self._grid,
            in_use=state.points.ids + state.boxes.ids,
            age=age,
            remembered=self.remembered(state),
        )
        points = [query for query in queries if isinstance(query, PointQuery)]
        boxes = [query for query in queries if isinstance(query, BoxQuery)]
        if self._points and points:
            places = np.array([[query.x, query.y] for query in points], np.float32) / self._point_scale
            added = self._points.add([query.id for query in points], places, state.points, state.newest, age)
            state = replace(state, points=added)
        if self._boxes and boxes:
            corners = [[query.x_min, query.y_min, query.x_max, query.y_max] for query in boxes]
            places = (np.array(corners, np.float32) / self._box_scale)[:, self._corners]
            added = self._boxes.add([query.id for query in boxes], places, state.boxes, state.newest, age)
            state = replace(state, boxes=added)
        return state

    def remove(self, ids: Collection[int], state: WindowState) -> WindowState:
        """Ends tracks; see `Tracker.remove`."""
        return replace(state, points=without(ids, state.points), boxes=without(ids, state.boxes))

    def step(self, tokens: Tensor, state: WindowState) -> tuple[Tracks, WindowState]:
        """The next frame; see `Tracker.step`. Raises `ValueError` for tokens that are not those of the grid."""
        rows, columns = self._grid
        if tokens.ndim != 2 or tokens.shape[0] != rows * columns + 1:
            raise ValueError(f"expected tokens ({rows * columns + 1}, width), got {tuple(tokens.shape)}")
        newest = state.newest + 1
        points, boxes = PointTracks(), BoxTracks()
        if self._points:
            reading, part = self._points.step(tokens, state.points, newest)
            state = replace(state, points=part)
            points = self._point_tracks(reading, part)
        if self._boxes:
            reading, part = self._boxes.step(tokens, state.boxes, newest)
            state = replace(state, boxes=part)
            boxes = self._box_tracks(reading, part)
        return Tracks(points=points, boxes=boxes), replace(state, newest=newest)

    def _point_tracks(self, reading: Reading, part: TrackWindows) -> PointTracks:
        return PointTracks(
            ids=np.array(part.ids, np.uint64),
            xy=reading.places * self._point_scale,
            status=_status(reading.confidences),
            confidence=reading.confidences,
        )

    def _box_tracks(self, reading: Reading, part: TrackWindows) -> BoxTracks:
        corners = (reading.places[:, self._corners] * self._box_scale).reshape(-1, 2, 2)
        agreement = _overlaps(reading.by_window[:, 0], reading.by_window[:, 1])
        return BoxTracks(
            ids=np.array(part.ids, np.uint64),
            xyxy=np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1),
            status=_status(agreement),
            confidence=agreement,
        )

    def _parts(self, state: WindowState) -> list[tuple[HeadWindows | None, TrackWindows]]:
        return [(self._points, state.points), (self._boxes, state.boxes)]


def _read_points(head: PointHead, window: KeyValues, queries: Tensor, frame: int) -> tuple[Tensor, Tensor]:
    output = head.read(window, queries, frame)
    return output.positions, output.confidence.squeeze(-1)


def _read_boxes(head: BoxHead, window: KeyValues, queries: Tensor, frame: int) -> tuple[Tensor, Tensor]:
    boxes = head.read(window, queries, frame)
    return boxes, torch.ones_like(boxes[..., 0])


def _status(confidence: Float32Array) -> npt.NDArray[np.uint8]:
    return np.where(confidence > VISIBLE_FROM, Status.VISIBLE, Status.OCCLUDED).astype(np.uint8)


def _overlaps(boxes: Float32Array, others: Float32Array) -> Float32Array:
    """IoU of boxes (P, 4) given by opposite corners in any order of the axes: (P,)."""
    a, b = boxes.reshape(-1, 2, 2), others.reshape(-1, 2, 2)
    low = np.maximum(a.min(axis=1), b.min(axis=1))
    high = np.minimum(a.max(axis=1), b.max(axis=1))
    both = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = [np.prod(np.abs(corners[:, 1] - corners[:, 0]), axis=1) for corners in (a, b)]
    whole = areas[0] + areas[1] - both
    return np.where(whole > 0, both / np.where(whole > 0, whole, 1), 0).astype(np.float32)
