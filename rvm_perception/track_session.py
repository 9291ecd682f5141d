"""Tracking of one camera: which queries are taken in which frame, and the tracks as part of the stream's state.

Plain Python, shared by the live node and by offline replay.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from rvm_core.config import PATCH_SIZE
from rvm_core.preprocess import FrameMap
from rvm_core.tracking import TrackingConfig, create_tracker
from rvm_core.tracking.base import Query, QueryError, Tracker, Tracks
from rvm_perception.parameters import NodeParameters
from rvm_perception.stream import FrameKey, FrameRejected
from rvm_perception.track_ids import MAX_MASK_ID, IdLedger
from rvm_perception.track_queries import TRACKED, Answer, Answers, Item, Kind, Request, item_query

_MAXIMA = {Kind.POINT: "max_points", Kind.BOX: "max_boxes", Kind.MASK: "max_masks"}
"""The parameter that bounds how many tracks of each kind there are."""

MAX_WAITING = 64
"""So many requests of a camera may wait for their frame; more are refused."""


@dataclass(frozen=True, kw_only=True)
class Track:
    """What is known of a track beside its position."""

    id: int
    kind: Kind
    label: str


@dataclass(frozen=True, kw_only=True)
class TrackState:
    """Everything that tracking carries from frame to frame. A value: nothing in it is ever changed."""

    epoch: int = 0
    stamps: tuple[int, ...] = ()
    """Of the frames at which a query may be added, nanoseconds, the newest last; empty before the first frame."""
    frame_id: str = ""
    frame_map: FrameMap | None = None
    tracker: Any = None
    """The tracker's own state."""
    live: Mapping[int, Track] = field(default_factory=dict)
    """Tracks by id; those added after the newest frame are in `tracks` from the next one on."""
    tracks: Tracks = field(default_factory=Tracks)
    """Where the tracks are in the newest frame, in grid coordinates."""
    lost: tuple[Track, ...] = ()
    """Tracks that ended with the reset right before the newest frame."""
    reported: frozenset[Kind] = frozenset()
    """Kinds of which there is something to say in the newest frame: tracks, or that there are none any more."""


def make_tracker(parameters: NodeParameters, width: int) -> Tracker[Any] | None:
    """The tracker that the parameters ask for, for features of `width` channels; None with `tracking: none`.

    Raises `CheckpointError` for a head that cannot be loaded or does not fit.
    """
    if parameters.tracking == "none":
        return None
    return create_tracker(
        (parameters.height // PATCH_SIZE, parameters.width // PATCH_SIZE),
        width,
        config=TrackingConfig(n_context=parameters.track_context),
        point_head=parameters.point_head or None,
        box_head=parameters.box_head or None,
    )


class TrackSession:
    """Takes requests for one camera and steps its tracks. Used by the one thread that steps the engine.

    The tracks' state is passed in and returned. The session itself holds only what must not be taken back with a
    rejected frame: the ids used so far, the requests that wait, and counts.

    Args:
        camera: name of the camera, for the answers.
        parameters: may be replaced by others that differ in live parameters only.
        ids: those used before; it is added to, and outlives the session.
    """

    def __init__(self, *, camera: str, tracker: Tracker[Any], parameters: NodeParameters, ids: IdLedger) -> None:
        self._camera = camera
        self._tracker = tracker
        self.parameters = parameters
        self._ids = ids
        self._waiting: list[Request] = []
        self.tracker_name = tracker.name
        self.accepted = 0
        self.refused = 0

    @property
    def waiting(self) -> int:
        """How many requests wait for their frame."""
        return len(self._waiting)

    def step(
        self,
        tokens: np.ndarray,
        *,
        key: FrameKey,
        epoch: int,
        frame_map: FrameMap,
        before: TrackState | None,
        fresh: bool,
    ) -> TrackState:
        """The state after a frame with features `tokens`, float32 (N+1, D).

        `before` is the state after the frame before, whose tracks end if the frame is a `fresh` start. Raises
        `FrameRejected` ("tracking") if the tracker fails.
        """
        if before is None:
            before, fresh = TrackState(), True
        try:
            tracker_state = self._tracker.init_state() if fresh else before.tracker
            tracks, tracker_state = self._tracker.step(torch.from_numpy(tokens), tracker_state)
            remembered = max(1, self._tracker.remembered(tracker_state))
        except Exception as error:  # whatever a tracker raises is about this frame, like the engine's errors
            raise FrameRejected("tracking", f"{type(error).__name__}: {error}") from error
        _check_finite(tracks)
        lost = tuple(before.live.values()) if fresh else ()
        # Where the stamps went back and the state goes on, frames of before have no time any more.
        goes_on = not fresh and before.stamps and key.stamp_ns > before.stamps[-1]
        stamps = (*before.stamps, key.stamp_ns) if goes_on else (key.stamp_ns,)
        return TrackState(
            epoch=epoch,
            stamps=stamps[-remembered:],
            frame_id=key.frame_id,
            frame_map=frame_map,
            tracker=tracker_state,
            live={} if fresh else before.live,
            tracks=tracks,
            lost=lost,
            reported=_kinds(tracks) | _kinds(before.tracks) | {track.kind for track in lost},
        )

    def receive(self, request: Request) -> Answers | None:
        """Stores a request until `apply`. The answer, if there is no room for it."""
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(request)
            return None
        return self._counted(request.refused(f"{MAX_WAITING} requests wait already", camera=self._camera))

    def apply(self, state: TrackState | None) -> tuple[TrackState | None, list[Answers]]:
        """Carries out the stored requests whose frame has been processed, in the order in which they came.

        Without a frame to add tracks at (None or a state without stamps), all of them wait.
        """
        answers: list[Answers] = []
        if state is None or not state.stamps:
            return state, answers
        stored, self._waiting = self._waiting, []
        for request in stored:
            if request.frame_id and request.frame_id != state.frame_id:
                reason = f"frame_id {request.frame_id!r}, but images of {self._camera} have {state.frame_id!r}"
                answers.append(self._counted(request.refused(reason, camera=self._camera, epoch=state.epoch)))
                continue
            age, fault = self._find_frame(request, state)
            if age is None and not fault:
                self._waiting.append(request)
                continue
            if any(item.kind == Kind.CLEAR for item in request.items):
                answers += self.refuse_waiting("cleared by a later request", epoch=state.epoch)
            try:
                state, answer = self._carry_out(request, state, age or 0, fault)
            except Exception as error:  # a request at which the tracker fails changes nothing
                reason = f"failed with {type(error).__name__}: {error}"
                answer = request.refused(reason, camera=self._camera, epoch=state.epoch)
            answers.append(self._counted(answer))
        return state, answers

    def save(self) -> dict[str, Any]:
        """What of the session, beside the ids, later frames depend on, and its counts, for `restore`."""
        return {"waiting": list(self._waiting), "accepted": self.accepted, "refused": self.refused}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Goes on from where `save` was called, at a session of the same arguments."""
        self._waiting = list(saved["waiting"])
        self.accepted, self.refused = saved["accepted"], saved["refused"]

    def refuse_waiting(self, reason: str, *, epoch: int) -> list[Answers]:
        """Refuses all requests that wait."""
        waiting, self._waiting = self._waiting, []
        return [self._counted(request.refused(reason, camera=self._camera, epoch=epoch)) for request in waiting]

    def _find_frame(self, request: Request, state: TrackState) -> tuple[int | None, str]:
        """How many frames before the newest one a request holds, None if it must wait; and why it cannot be met."""
        if not request.adds or not request.stamp_ns:
            return 0, ""
        stamp, stamps = request.stamp_ns, state.stamps
        tolerance, wait = self.parameters.query_tolerance, self.parameters.query_wait
        if stamp > stamps[-1]:
            if stamp - stamps[-1] <= wait * 1e9:
                return None, ""
            return None, (
                f"stamp {_seconds(stamp)} is ahead of the newest frame, {_seconds(stamps[-1])}, by more than "
                f"query_wait, {wait:g} s"
            )
        after = bisect_left(stamps, stamp)
        nearest = min(range(max(0, after - 1), after + 1), key=lambda i: abs(stamps[i] - stamp))
        if abs(stamps[nearest] - stamp) <= tolerance * 1e9:
            return len(stamps) - 1 - nearest, ""
        if stamp < stamps[0]:
            return None, f"stamp {_seconds(stamp)} is older than the oldest remembered frame, {_seconds(stamps[0])}"
        return None, (
            f"no processed frame is within query_tolerance, {tolerance:g} s, of stamp {_seconds(stamp)}; "
            f"the nearest one is {_seconds(stamps[nearest])}"
        )

    def _carry_out(self, request: Request, state: TrackState, age: int, fault: str) -> tuple[TrackState, Answers]:
        state, entries = self._remove(request, state)
        adds = [item for item in request.items if item.kind in TRACKED]
        state, added = self._add(request, adds, state, age, fault)
        answers = request.answers([*entries, *added], camera=self._camera, epoch=state.epoch)
        if request.adds and not fault:
            answers = replace(answers, stamp_ns=state.stamps[-1 - age], frame_id=state.frame_id)
        return state, answers

    def _remove(self, request: Request, state: TrackState) -> tuple[TrackState, list[Answer]]:
        """Clears and removes."""
        live, entries = dict(state.live), []
        for item in request.items:
            if item.kind == Kind.CLEAR:
                live.clear()
                entries.append(Answer(item=item, id=0))
            elif item.kind == Kind.REMOVE:
                found = live.pop(item.id, None)
                entries.append(Answer(item=item, id=item.id, reason="" if found else f"no track has the id {item.id}"))
        ended = state.live.keys() - live.keys()
        if not ended:
            return state, entries
        return replace(state, tracker=self._tracker.remove(ended, state.tracker), live=live), entries

    def _add(
        self, request: Request, items: Sequence[Item], state: TrackState, age: int, fault: str
    ) -> tuple[TrackState, list[Answer]]:
        """Adds what can be added; one item that cannot be does not keep the others out."""
        queries, reasons = self._queries(request, items, state, fault)
        tracker_state, refusals = self._add_queries(list(queries.values()), state.tracker, age)
        live, entries = dict(state.live), []
        for item in items:
            query = queries.get(item)
            reason = reasons[item] if query is None else refusals.get(query.id, "")
            if query is not None and not reason:
                self._ids.add(query.id)
                live[query.id] = Track(id=query.id, kind=item.kind, label=item.label)
                entries.append(Answer(item=item, id=query.id))
            else:
                entries.append(Answer(item=item, id=item.id, reason=reason))
        return replace(state, tracker=tracker_state, live=live), entries

    def _queries(
        self, request: Request, items: Sequence[Item], state: TrackState, fault: str
    ) -> tuple[dict[Item, Query], dict[Item, str]]:
        """The query of each item as far as the tracker need not be asked, and why there is none."""
        queries: dict[Item, Query] = {}
        reasons: dict[Item, str] = {}
        counts = Counter(track.kind for track in state.live.values())
        # The caller's own ids come first: the node gives none that is asked for further down.
        reserved = {item.id for item in items}
        chosen: set[int] = set()
        for item in items:
            try:
                if item.fault or fault:
                    raise QueryError(item.fault or fault)
                maximum = _MAXIMA[item.kind]
                if counts[item.kind] >= getattr(self.parameters, maximum):
                    raise QueryError(f"{maximum}, {getattr(self.parameters, maximum)}, are followed already")
                id = self._id_of(item, state.live, reserved, chosen)
                assert state.frame_map is not None
                queries[item] = item_query(item, id, request, state.frame_map)
                chosen.add(id)
                counts[item.kind] += 1
            except QueryError as error:
                reasons[item] = str(error)
        return queries, reasons

    def _id_of(self, item: Item, live: Mapping[int, Track], reserved: set[int], chosen: set[int]) -> int:
        for_mask = item.kind == Kind.MASK
        if not item.id:
            given = self._ids.unused(for_mask=for_mask, taken=reserved | chosen)
            if given is None:
                raise QueryError("every id that the node may give is used")
            return given
        if item.id in live or item.id in chosen:
            raise QueryError(f"id {item.id} is in use")
        if item.id in self._ids:
            raise QueryError(f"id {item.id} was used before; ids are not used again")
        if for_mask and item.id > MAX_MASK_ID:
            raise QueryError(f"id {item.id} of a mask is above {MAX_MASK_ID}, the largest value of a mono16 pixel")
        return item.id

    def _add_queries(self, queries: Sequence[Query], state: Any, age: int) -> tuple[Any, dict[int, str]]:
        """The tracker's state with the queries, and by id why the tracker refused some."""
        if not queries:
            return state, {}
        after, reason = self._try_add(queries, state, age)
        if not reason:
            return after, {}
        if len(queries) == 1:
            return state, {queries[0].id: reason}
        alone = {query.id: self._try_add([query], state, age)[1] for query in queries}
        refusals = {id: reason for id, reason in alone.items() if reason}
        rest = [query for query in queries if query.id not in refusals]
        after, reason = self._try_add(rest, state, age) if rest else (state, "")
        if reason:
            return state, refusals | {query.id: reason for query in rest}
        return after, refusals

    def _try_add(self, queries: Sequence[Query], state: Any, age: int) -> tuple[Any, str]:
        try:
            return self._tracker.add(queries, state, age=age), ""
        except QueryError as error:
            return state, str(error)

    def _counted(self, answers: Answers) -> Answers:
        refused = sum(1 for answer in answers if answer.reason)
        self.refused += refused
        self.accepted += len(answers.entries) - refused
        return answers


def _kinds(tracks: Tracks) -> frozenset[Kind]:
    ids = {Kind.POINT: tracks.points.ids, Kind.BOX: tracks.boxes.ids, Kind.MASK: tracks.masks.ids}
    return frozenset(kind for kind in TRACKED if len(ids[kind]))


def _check_finite(tracks: Tracks) -> None:
    arrays = (tracks.points.xy, tracks.boxes.xyxy, tracks.masks.soft)
    confidences = (tracks.points.confidence, tracks.boxes.confidence, tracks.masks.confidence)
    if not all(np.isfinite(array).all() for array in (*arrays, *confidences)):
        raise FrameRejected("tracking", "the tracker returned NaN or infinite positions; the old state is kept")


def _seconds(stamp_ns: int) -> str:
    return f"{stamp_ns // 1_000_000_000}.{stamp_ns % 1_000_000_000:09d} s"
