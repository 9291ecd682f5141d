"""Several trackers as one: each kind of query goes to the tracker that follows it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from rvm_core.tracking.base import BoxQuery, MaskQuery, PointQuery, Query, Tracker, Tracks

CombinedState = tuple[Any, ...]
"""The state of each tracker."""


class CombinedTracker:
    """Obeys `Tracker`; all kinds of queries are followed, each by the tracker that is named for it.

    Ids must be new among the tracks of one kind at least; who calls keeps them apart among all.
    """

    def __init__(self, *, points: Tracker[Any], boxes: Tracker[Any], masks: Tracker[Any]) -> None:
        """All are trackers of one grid, and may be one and the same. Raises `ValueError` for different grids."""
        chosen: Mapping[type[Query], Tracker[Any]] = {PointQuery: points, BoxQuery: boxes, MaskQuery: masks}
        self._trackers = tuple({id(tracker): tracker for tracker in chosen.values()}.values())
        grids = {tracker.grid for tracker in self._trackers}
        if len(grids) > 1:
            raise ValueError(f"expected trackers of one grid, got {sorted(grids)}")
        self._place = {kind: self._trackers.index(tracker) for kind, tracker in chosen.items()}

    @property
    def name(self) -> str:
        """The names of the trackers, each once."""
        return "+".join(dict.fromkeys(tracker.name for tracker in self._trackers))

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the features it takes."""
        return self._trackers[0].grid

    def init_state(self) -> CombinedState:
        """The state before the first frame."""
        return tuple(tracker.init_state() for tracker in self._trackers)

    def remembered(self, state: CombinedState) -> int:
        """How many of the newest frames a query of any kind may be added at."""
        return min(tracker.remembered(part) for tracker, part in zip(self._trackers, state, strict=True))

    def add(self, queries: Sequence[Query], state: CombinedState, *, age: int = 0) -> CombinedState:
        """See `Tracker.add`."""
        parts = []
        for number, (tracker, part) in enumerate(zip(self._trackers, state, strict=True)):
            own = [query for query in queries if self._place[type(query)] == number]
            parts.append(tracker.add(own, part, age=age) if own else part)
        return tuple(parts)

    def remove(self, ids: Collection[int], state: CombinedState) -> CombinedState:
        """See `Tracker.remove`."""
        return tuple(tracker.remove(ids, part) for tracker, part in zip(self._trackers, state, strict=True))

    def step(self, tokens: Tensor, state: CombinedState) -> tuple[Tracks, CombinedState]:
        """See `Tracker.step`."""
        results = [tracker.step(tokens, part) for tracker, part in zip(self._trackers, state, strict=True)]
        tracks = Tracks(
            points=results[self._place[PointQuery]][0].points,
            boxes=results[self._place[BoxQuery]][0].boxes,
            masks=results[self._place[MaskQuery]][0].masks,
        )
        return tracks, tuple(part for _, part in results)
