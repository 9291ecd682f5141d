"""Several trackers as one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from rvm_core.tracking.base import (
    BoxQuery,
    BoxTracks,
    MaskQuery,
    MaskTracks,
    PointQuery,
    PointTracks,
    Query,
    QueryError,
    Tracker,
    Tracks,
)
from rvm_core.tracking.combined import CombinedState, CombinedTracker
from rvm_core.tracking.feature_tracker import FeatureTracker

GRID = (4, 5)
POINT = PointQuery(id=1, x=1, y=2)
BOX = BoxQuery(id=2, x_min=1, y_min=1, x_max=3, y_max=3)
MASK = MaskQuery(id=3, mask=np.ones(GRID, np.float32))
FRAME = torch.randn(21, 8, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Notes:
    """The state of a `Clerk`: what it was asked."""

    frames: int = 0
    queries: tuple[tuple[Query, int], ...] = ()
    removed: tuple[int, ...] = ()


class Clerk:
    """A tracker that notes what it is asked, and says the ids of all queries, whatever their kind."""

    def __init__(self, name: str, grid: tuple[int, int] = GRID, memory: int = 5) -> None:
        self._name, self._grid, self._memory = name, grid, memory

    @property
    def name(self) -> str:
        return self._name

    @property
    def grid(self) -> tuple[int, int]:
        return self._grid

    def init_state(self) -> Notes:
        return Notes()

    def remembered(self, state: Notes) -> int:
        return min(state.frames, self._memory)

    def add(self, queries: Sequence[Query], state: Notes, *, age: int = 0) -> Notes:
        if age >= self.remembered(state):
            raise QueryError(f"{self._name} does not remember")
        return replace(state, queries=(*state.queries, *((query, age) for query in queries)))

    def remove(self, ids: Collection[int], state: Notes) -> Notes:
        return replace(state, removed=(*state.removed, *ids))

    def step(self, tokens: Tensor, state: Notes) -> tuple[Tracks, Notes]:
        ids = np.array([query.id for query, _ in state.queries], np.uint64)
        confidence = np.full(len(ids), float(tokens.sum()), np.float32)
        tracks = Tracks(
            points=PointTracks(ids=ids, confidence=confidence),
            boxes=BoxTracks(ids=ids, confidence=confidence),
            masks=MaskTracks(ids=ids, confidence=confidence),
        )
        return tracks, replace(state, frames=state.frames + 1)


def stepped(tracker: Tracker[CombinedState], frames: int = 1) -> CombinedState:
    state = tracker.init_state()
    for _ in range(frames):
        _, state = tracker.step(FRAME, state)
    return state


def test_each_kind_goes_to_its_tracker() -> None:
    tracker: Tracker[CombinedState]
    tracker = CombinedTracker(points=Clerk("a"), boxes=Clerk("b"), masks=Clerk("c"))
    assert (tracker.name, tracker.grid) == ("a+b+c", GRID)
    state = tracker.add([MASK, POINT, BOX, replace(POINT, id=4)], stepped(tracker, 3), age=2)
    assert [[(query.id, age) for query, age in part.queries] for part in state] == [
        [(1, 2), (4, 2)],
        [(2, 2)],
        [(3, 2)],
    ]
    tracks, state = tracker.step(FRAME, state)
    assert [said.ids.tolist() for said in (tracks.points, tracks.boxes, tracks.masks)] == [[1, 4], [2], [3]]
    assert {float(said.confidence[0]) for said in (tracks.points, tracks.boxes, tracks.masks)} == {float(FRAME.sum())}
    assert [part.frames for part in state] == [4, 4, 4]


def test_one_tracker_for_several_kinds_is_stepped_once() -> None:
    shared = Clerk("shared")
    tracker = CombinedTracker(points=Clerk("own"), boxes=shared, masks=shared)
    assert tracker.name == "own+shared"
    state = tracker.add([BOX, MASK], stepped(tracker))
    assert [len(part.queries) for part in state] == [0, 2]
    tracks, state = tracker.step(FRAME, state)
    assert [part.frames for part in state] == [2, 2]
    assert [said.ids.tolist() for said in (tracks.points, tracks.boxes, tracks.masks)] == [[], [2, 3], [2, 3]]


def test_trackers_of_one_name_are_named_once() -> None:
    assert CombinedTracker(points=Clerk("a"), boxes=Clerk("a"), masks=Clerk("b")).name == "a+b"


def test_all_trackers_are_told_what_to_remove() -> None:
    tracker = CombinedTracker(points=Clerk("a"), boxes=Clerk("b"), masks=Clerk("b"))
    assert [part.removed for part in tracker.remove([7, 8], stepped(tracker))] == [(7, 8)] * 3


def test_shortest_memory_counts() -> None:
    tracker = CombinedTracker(points=Clerk("a", memory=3), boxes=Clerk("b"), masks=Clerk("b"))
    assert tracker.remembered(tracker.init_state()) == 0
    assert tracker.remembered(stepped(tracker, 9)) == 3


def test_all_queries_are_added_or_none() -> None:
    tracker = CombinedTracker(points=Clerk("long"), boxes=Clerk("short", memory=1), masks=Clerk("long"))
    state = stepped(tracker, 4)
    with pytest.raises(QueryError, match="short does not remember"):
        tracker.add([POINT, BOX], state, age=2)
    assert all(part.queries == () for part in state)


def test_grids_must_be_equal() -> None:
    with pytest.raises(ValueError, match=r"expected trackers of one grid, got \[\(4, 5\), \(5, 4\)\]"):
        CombinedTracker(points=Clerk("a"), boxes=Clerk("b", grid=(5, 4)), masks=Clerk("a"))


def test_says_what_its_parts_say() -> None:
    """With the trackers that there are: the tracks are those of each alone."""
    parts = {"points": FeatureTracker(GRID), "boxes": FeatureTracker(GRID), "masks": FeatureTracker(GRID)}
    tracker = CombinedTracker(**parts)
    state = tracker.add([POINT, BOX, MASK], stepped(tracker))
    tracks, state = tracker.step(FRAME + 0.1, state)
    queries: list[Query] = [POINT, BOX, MASK]
    for query, (name, part) in zip(queries, parts.items(), strict=True):
        _, alone = part.step(FRAME, part.init_state())
        expected, _ = part.step(FRAME + 0.1, part.add([query], alone))
        for key, value in vars(getattr(expected, name)).items():
            np.testing.assert_array_equal(getattr(getattr(tracks, name), key), value)
    tracks, _ = tracker.step(FRAME, tracker.remove([1, 3], state))
    assert [said.ids.tolist() for said in (tracks.points, tracks.boxes, tracks.masks)] == [[], [2], []]
