"""Tracks of points and boxes by recurrent readouts: a state a track, one step a frame."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rvm_core.recurrent_readout import RecurrentReadout, TrackState
from rvm_core.tracking.base import BoxQuery, BoxTracks, PointQuery, PointTracks, Query, Status, Tracks
from rvm_core.tracking.queries import check_queries

VISIBLE_FROM = 0.5
"""Confidence over which a track counts as visible."""

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class RecurrentTracks:
    """The tracks of one readout."""

    ids: tuple[int, ...] = ()
    """P ids."""
    state: TrackState | None = None
    """(1, P, ...); None where there are no tracks."""


@dataclass(frozen=True, kw_only=True)
class RecurrentTrackerState:
    """What a `RecurrentTracker` knows of one video."""

    frames: tuple[Tensor, ...] = ()
    """Tokens (1, N+1, D) of the remembered frames, the newest last."""
    points: RecurrentTracks
    boxes: RecurrentTracks


class RecurrentTracker:
    """Follows points and boxes with recurrent readouts; obeys `rvm_core.tracking.base.Tracker`.

    Confidence is the probability that the track is visible times that of its position being certain, and a track is
    visible over 0.5. Each step costs the same; a query `age` frames back costs that many when it is added.

    Args:
        grid: (h, w) of the features.
        points, boxes: trained readouts of these kinds, in eval mode; None where a kind is not followed. One at least.
        memory: frames kept for queries that come late.
    """

    name = "recurrent_readout"

    def __init__(
        self,
        *,
        grid: tuple[int, int],
        points: RecurrentReadout | None = None,
        boxes: RecurrentReadout | None = None,
        memory: int = 16,
    ) -> None:
        given = {"points": points, "boxes": boxes}
        readouts = {kind: readout for kind, readout in given.items() if readout}
        if not readouts:
            raise ValueError("expected a readout of points, one of boxes or both")
        for kind, readout in readouts.items():
            if readout.config.kind != kind:
                raise ValueError(f"expected a readout of {kind}, got one of {readout.config.kind}")
        if memory < 1:
            raise ValueError(f"expected a memory of one frame or more, got {memory}")
        self._grid, self._points, self._boxes, self._memory = grid, points, boxes, memory
        rows, columns = grid
        self._scale = np.array([columns, rows], np.float32)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the features it takes."""
        return self._grid

    def init_state(self) -> RecurrentTrackerState:
        """The state before the first frame."""
        return RecurrentTrackerState(points=RecurrentTracks(), boxes=RecurrentTracks())

    def remembered(self, state: RecurrentTrackerState) -> int:
        """How many of the newest frames a query may be added at."""
        return len(state.frames)

    @torch.no_grad()
    def add(self, queries: Sequence[Query], state: RecurrentTrackerState, *, age: int = 0) -> RecurrentTrackerState:
        """Starts tracks; see `Tracker.add`."""
        check_queries(
            queries,
            kinds=[kind for readout, kind in ((self._points, PointQuery), (self._boxes, BoxQuery)) if readout],
            grid=self._grid,
            in_use=state.points.ids + state.boxes.ids,
            age=age,
            remembered=self.remembered(state),
        )
        frames = state.frames[len(state.frames) - 1 - age :]
        points = [query for query in queries if isinstance(query, PointQuery)]
        boxes = [query for query in queries if isinstance(query, BoxQuery)]
        if self._points and points:
            places = np.array([[query.x, query.y] for query in points], np.float32) / self._scale
            begun = self._begin(self._points, frames, [query.id for query in points], places)
            state = replace(state, points=_joined(state.points, begun))
        if self._boxes and boxes:
            corners = [[[query.x_min, query.y_min], [query.x_max, query.y_max]] for query in boxes]
            places = (np.array(corners, np.float32) / self._scale).reshape(-1, 4)
            begun = self._begin(self._boxes, frames, [query.id for query in boxes], places)
            state = replace(state, boxes=_joined(state.boxes, begun))
        return state

    def remove(self, ids: Collection[int], state: RecurrentTrackerState) -> RecurrentTrackerState:
        """Ends tracks; see `Tracker.remove`."""
        return replace(state, points=_without(ids, state.points), boxes=_without(ids, state.boxes))

    @torch.no_grad()
    def step(self, tokens: Tensor, state: RecurrentTrackerState) -> tuple[Tracks, RecurrentTrackerState]:
        """The next frame; see `Tracker.step`. Raises `ValueError` for tokens that are not those of the grid."""
        rows, columns = self._grid
        if tokens.ndim != 2 or tokens.shape[0] != rows * columns + 1:
            raise ValueError(f"expected tokens ({rows * columns + 1}, width), got {tuple(tokens.shape)}")
        frame = tokens.unsqueeze(0)
        state = replace(state, frames=(*state.frames, frame)[-self._memory :])
        points, boxes = PointTracks(), BoxTracks()
        if self._points and state.points.state:
            places, confidence, carried = self._step(self._points, frame, state.points.state)
            state = replace(state, points=replace(state.points, state=carried))
            points = PointTracks(
                ids=np.array(state.points.ids, np.uint64),
                xy=places * self._scale,
                status=_status(confidence),
                confidence=confidence,
            )
        if self._boxes and state.boxes.state:
            places, confidence, carried = self._step(self._boxes, frame, state.boxes.state)
            state = replace(state, boxes=replace(state.boxes, state=carried))
            boxes = BoxTracks(
                ids=np.array(state.boxes.ids, np.uint64),
                xyxy=(places.reshape(-1, 2, 2) * self._scale).reshape(-1, 4),
                status=_status(confidence),
                confidence=confidence,
            )
        return Tracks(points=points, boxes=boxes), state

    def _begin(
        self, readout: RecurrentReadout, frames: Sequence[Tensor], ids: Sequence[int], places: Float32Array
    ) -> RecurrentTracks:
        """Tracks that begin in the first of the frames and have gone on to the last."""
        queries = torch.from_numpy(places).unsqueeze(0).to(frames[0].device)
        state = readout.start(frames[0], queries, self._grid)
        for frame in frames[1:]:
            _, state = readout(frame, state, self._grid)
        return RecurrentTracks(ids=tuple(ids), state=state)

    def _step(
        self, readout: RecurrentReadout, frame: Tensor, state: TrackState
    ) -> tuple[Float32Array, Float32Array, TrackState]:
        output, state = readout(frame, state, self._grid)
        return output.positions[0].float().cpu().numpy(), output.confidence[0, :, 0].float().cpu().numpy(), state


def _joined(tracks: RecurrentTracks, others: RecurrentTracks) -> RecurrentTracks:
    if not tracks.state or not others.state:
        return tracks if tracks.state else others
    joined = (torch.cat(both, dim=1) for both in zip(tracks.state, others.state, strict=True))
    return RecurrentTracks(ids=tracks.ids + others.ids, state=TrackState(*joined))


def _without(ids: Collection[int], tracks: RecurrentTracks) -> RecurrentTracks:
    kept = [i for i, id in enumerate(tracks.ids) if id not in ids]
    if not kept or not tracks.state:
        return RecurrentTracks()
    return RecurrentTracks(
        ids=tuple(tracks.ids[i] for i in kept), state=TrackState(*(part[:, kept] for part in tracks.state))
    )


def _status(confidence: Float32Array) -> npt.NDArray[np.uint8]:
    return np.where(confidence > VISIBLE_FROM, Status.VISIBLE, Status.OCCLUDED).astype(np.uint8)
