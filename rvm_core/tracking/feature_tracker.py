"""Training-free tracking by features alone: points by matching, boxes and masks by label propagation.

Shapes: N = h * w cells of the grid, D width of the features.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from rvm_core.tracking.base import (
    BoxQuery,
    BoxTracks,
    MaskQuery,
    MaskTracks,
    PointQuery,
    Query,
    Status,
    Tracks,
)
from rvm_core.tracking.matching import FrameKeys
from rvm_core.tracking.points import PointMatcher, Points
from rvm_core.tracking.propagation import LabelPropagator, LabelTrack, TrackingConfig
from rvm_core.tracking.queries import check_queries
from rvm_core.tracking.segments import Segment, box_coverage, step_segments


@dataclass(frozen=True)
class SegmentGroup:
    """Boxes and masks that were given in one frame; segment i has label i of the track."""

    track: LabelTrack
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class FeatureState:
    """Everything remembered of one video."""

    memory: tuple[FrameKeys, ...] = ()
    """The last frames, newest first."""
    points: Points = field(default_factory=Points.none)
    groups: tuple[SegmentGroup, ...] = ()

    @property
    def ids(self) -> set[int]:
        """Of all tracks."""
        return {int(i) for i in self.points.ids} | {s.id for group in self.groups for s in group.segments}


class FeatureTracker:
    """A `Tracker` that needs no training. It remembers n_context frames and the first frame of each query."""

    name = "label_propagation"

    def __init__(self, grid: tuple[int, int], config: TrackingConfig | None = None) -> None:
        """`grid` is (h, w)."""
        self._grid = grid
        self._config = config or TrackingConfig()
        self._propagator = LabelPropagator(grid, self._config)
        self._matcher = PointMatcher(grid)
        self._nothing = self._tracks(FeatureState())

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the features it takes."""
        return self._grid

    def init_state(self) -> FeatureState:
        """The state before the first frame."""
        return FeatureState()

    def remembered(self, state: FeatureState) -> int:
        """How many of the newest frames a query may be added at."""
        return len(state.memory)

    @torch.no_grad()
    def add(self, queries: Sequence[Query], state: FeatureState, *, age: int = 0) -> FeatureState:
        """See `Tracker.add`."""
        check_queries(
            queries,
            kinds=(PointQuery, BoxQuery, MaskQuery),
            grid=self._grid,
            in_use=state.ids,
            age=age,
            remembered=self.remembered(state),
        )
        # A state of their own, which catches up with the newest frame, and is then joined to the other.
        start = state.memory[age]
        added = FeatureState(
            points=self._start_points([q for q in queries if isinstance(q, PointQuery)], start),
            groups=self._start_segments([q for q in queries if not isinstance(q, PointQuery)], start),
        )
        for newer in range(age - 1, -1, -1):
            added = self._advance(replace(added, memory=state.memory[newer + 1 :]), state.memory[newer])
        return replace(state, points=state.points.joined(added.points), groups=(*state.groups, *added.groups))

    def remove(self, ids: Collection[int], state: FeatureState) -> FeatureState:
        """See `Tracker.remove`."""
        groups = []
        for group in state.groups:
            kept = [index for index, segment in enumerate(group.segments) if segment.id not in ids]
            if len(kept) == len(group.segments):
                groups.append(group)
            elif kept:
                groups.append(SegmentGroup(group.track.keep(kept), tuple(group.segments[index] for index in kept)))
        return replace(state, points=state.points.without(ids), groups=tuple(groups))

    @torch.no_grad()
    def step(self, tokens: Tensor, state: FeatureState) -> tuple[Tracks, FeatureState]:
        """See `Tracker.step`. Raises `ValueError` for tokens of another grid."""
        cells = self._grid[0] * self._grid[1]
        if tokens.ndim != 2 or len(tokens) != cells + 1:
            raise ValueError(f"expected tokens ({cells + 1}, D) for a grid {self._grid}, got {tuple(tokens.shape)}")
        # What all cells of a frame have in common tells nothing of which is which, and changes from frame to frame.
        keys = FrameKeys.of(tokens[1:] - tokens[1:].mean(0))
        stepped = self._advance(state, keys)
        stepped = replace(stepped, memory=(keys, *state.memory[: self._config.n_context - 1]))
        return self._tracks(stepped) if stepped.ids else self._nothing, stepped

    def _advance(self, state: FeatureState, keys: FrameKeys) -> FeatureState:
        """Everything tracked, in the next frame; the memory stays as it is."""
        tracks = self._propagator.step(keys, state.memory, [group.track for group in state.groups])
        groups = []
        for group, track in zip(state.groups, tracks, strict=True):
            groups.append(SegmentGroup(track, step_segments(group.segments, self._planes(track.newest))))
        return replace(state, points=self._matcher.step(state.points, keys), groups=tuple(groups))

    def _planes(self, labels: Tensor) -> np.ndarray:
        return labels.T.reshape(-1, *self._grid).cpu().numpy()

    def _start_points(self, queries: Sequence[PointQuery], keys: FrameKeys) -> Points:
        xy = np.array([(q.x, q.y) for q in queries], np.float32)
        return self._matcher.add([q.id for q in queries], xy, keys) if queries else Points.none()

    def _start_segments(self, queries: Sequence[BoxQuery | MaskQuery], keys: FrameKeys) -> tuple[SegmentGroup, ...]:
        if not queries:
            return ()
        segments = []
        for query in queries:
            if isinstance(query, BoxQuery):
                box = (query.x_min, query.y_min, query.x_max, query.y_max)
                segments.append(Segment.start(query.id, box_coverage(box, self._grid), box))
            else:
                segments.append(Segment.start(query.id, query.mask.astype(np.float32), None))
        labels = torch.from_numpy(np.stack([segment.soft.ravel() for segment in segments], axis=1))
        return (SegmentGroup(self._propagator.start(keys, labels.to(keys.exact.device)), tuple(segments)),)

    def _tracks(self, state: FeatureState) -> Tracks:
        segments = [segment for group in state.groups for segment in group.segments]
        boxes = [segment for segment in segments if segment.is_box]
        masks = [segment for segment in segments if not segment.is_box]
        return Tracks(
            points=state.points.tracks(),
            boxes=BoxTracks(
                ids=np.array([s.id for s in boxes], np.uint64),
                xyxy=np.array([s.box for s in boxes], np.float32).reshape(-1, 4),
                status=_status(boxes),
                confidence=np.array([s.confidence for s in boxes], np.float32),
            ),
            masks=MaskTracks(
                ids=np.array([s.id for s in masks], np.uint64),
                soft=np.array([s.soft for s in masks], np.float32).reshape(-1, *self._grid),
                status=_status(masks),
                confidence=np.array([s.confidence for s in masks], np.float32),
            ),
        )


def _status(segments: Sequence[Segment]) -> np.ndarray:
    return np.array([Status.VISIBLE if segment.seen else Status.OCCLUDED for segment in segments], np.uint8)
