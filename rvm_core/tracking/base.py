"""What is tracked and what comes out: queries, tracks and the contract of every tracker.

Shapes: h rows and w columns of the grid of patches, N = h * w, D width; tokens are (N+1, D), [CLS] first.

All coordinates here are those of the grid: x is the column, y the row, a cell covers [c, c+1] x [r, r+1] and has its
centre at .5; the grid covers [0, w] x [0, h]. `FrameMap` takes them to pixels of the source image and back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
from torch import Tensor


class QueryError(ValueError):
    """A query that cannot be accepted; the message is the reason, for the one who asked."""


class Status(IntEnum):
    """How much of a track is seen in a frame. The numbers are those of the messages."""

    VISIBLE = 1
    """Position is measured."""
    OCCLUDED = 2
    """Not or hardly seen in this frame; the position is the best guess; it is looked for in every frame to come."""
    LOST = 3
    """Given up or ended by a reset; trackers never say this, the owner of their state does."""


@dataclass(frozen=True, kw_only=True)
class PointQuery:
    """A point to follow from one frame on."""

    id: int
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class BoxQuery:
    """A box to follow from one frame on."""

    id: int
    x_min: float
    y_min: float
    x_max: float
    y_max: float


@dataclass(frozen=True, kw_only=True)
class MaskQuery:
    """A segment to follow from one frame on."""

    id: int
    mask: np.ndarray
    """float32 (h, w): share of each cell that the segment covers, in [0, 1]."""


Query: TypeAlias = PointQuery | BoxQuery | MaskQuery


def _empty(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.zeros((0, *shape), dtype)


@dataclass(frozen=True, kw_only=True)
class PointTracks:
    """Every tracked point in one frame; entries i of all arrays belong together."""

    ids: np.ndarray = field(default_factory=lambda: _empty(dtype=np.uint64))
    """uint64 (P,)."""
    xy: np.ndarray = field(default_factory=lambda: _empty(2))
    """float32 (P, 2): x and y."""
    status: np.ndarray = field(default_factory=lambda: _empty(dtype=np.uint8))
    """uint8 (P,), of `Status`."""
    confidence: np.ndarray = field(default_factory=_empty)
    """float32 (P,): probability that the point is visible and within half a cell (8 px at 256 px)."""


@dataclass(frozen=True, kw_only=True)
class BoxTracks:
    """Every tracked box in one frame; entries i of all arrays belong together."""

    ids: np.ndarray = field(default_factory=lambda: _empty(dtype=np.uint64))
    """uint64 (B,)."""
    xyxy: np.ndarray = field(default_factory=lambda: _empty(4))
    """float32 (B, 4): x_min, y_min, x_max, y_max."""
    status: np.ndarray = field(default_factory=lambda: _empty(dtype=np.uint8))
    """uint8 (B,), of `Status`."""
    confidence: np.ndarray = field(default_factory=_empty)
    """float32 (B,): probability that the IoU with the true box is over 0.5."""


@dataclass(frozen=True, kw_only=True)
class MaskTracks:
    """Every tracked segment in one frame; entries i of all arrays belong together."""

    ids: np.ndarray = field(default_factory=lambda: _empty(dtype=np.uint64))
    """uint64 (M,)."""
    soft: np.ndarray = field(default_factory=lambda: _empty(0, 0))
    """float32 (M, h, w): how much each cell belongs to the segment, in [0, 1]; what no segment has is background."""
    status: np.ndarray = field(default_factory=lambda: _empty(dtype=np.uint8))
    """uint8 (M,), of `Status`."""
    confidence: np.ndarray = field(default_factory=_empty)
    """float32 (M,): probability that the IoU with the true segment is over 0.5."""


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """What a tracker says of one frame."""

    points: PointTracks = field(default_factory=PointTracks)
    boxes: BoxTracks = field(default_factory=BoxTracks)
    masks: MaskTracks = field(default_factory=MaskTracks)


State = TypeVar("State")


class Tracker(Protocol[State]):
    """Follows queries through the features of one video, frame by frame, at bounded memory.

    The state is a value: every method leaves the one it was given as it was and returns a new one, so that a frame that
    fails half-way changes nothing. A tracker may serve many videos, each with its own state.
    """

    @property
    def name(self) -> str:
        """How tracks are made, for messages and reports: "label_propagation" or the name of a head."""

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the features it takes."""

    def init_state(self) -> State:
        """The state before the first frame: nothing seen, nothing tracked."""

    def remembered(self, state: State) -> int:
        """How many of the newest frames a query may be added at."""

    def add(self, queries: Sequence[Query], state: State, *, age: int = 0) -> State:
        """Starts tracks at the frame `age` frames before the newest one; the tracks then catch up with the newest.

        All queries are added or none. Ids are the caller's and must be new to this state. Raises `QueryError` for a
        frame that is not remembered, a kind that this tracker does not follow, a position that is outside of the grid
        or not finite, an empty box or mask, and an id that is in use.
        """

    def remove(self, ids: Collection[int], state: State) -> State:
        """Ends the tracks with these ids; ids that are not tracked are passed over."""

    def step(self, tokens: Tensor, state: State) -> tuple[Tracks, State]:
        """Takes the features of the next frame, float32 (N+1, D), and says where each track is in it."""
