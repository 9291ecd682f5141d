"""Rules of one camera's stream: which frames are stepped, when the state is reset, and the ledger of both.

Plain Python, shared by the live node and by offline replay. Every received frame ends as processed or as rejected for
exactly one reason, so that received = processed + rejected + the one that may wait.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

SUPERSEDED = "superseded"
"""Rejection reason of a frame that a newer one replaced before it was its turn."""

LATE_TOLERANCE_NS = 1_000_000_000
"""A stamp less than this behind the last one is a late frame; more is a jump of the clock."""

LATE_LIMIT = 3
"""So many late frames in a row are a jump of the clock too."""

_SAVED = (
    "_requested_reset", "_last", "_last_sequence", "_late_in_a_row", "_state", "_index",
    "epoch", "received", "processed", "rejected", "resets",
)  # fmt: skip

T = TypeVar("T")


class FrameRejected(Exception):
    """A frame that is not stepped. `reason` is a short name, the same for every frame rejected for this reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class FrameKey:
    """What of a frame decides whether the state may go on from it."""

    stamp_ns: int
    frame_id: str
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step that may be taken: nothing of the stream changes before `Stream.commit`."""

    key: FrameKey
    sequence: int
    state: Any
    """State to step from; None stands for the initial one."""
    epoch: int
    index: int
    skipped: int
    reset_reason: str | None


@dataclass(frozen=True, kw_only=True)
class Waiting(Generic[T]):
    """The newest message of a camera and its number among those received."""

    message: T
    sequence: int


class Stream(Generic[T]):
    """Mailbox, state and ledger of one camera.

    `offer` is called where messages arrive, everything else by the one thread that steps the engine; `request_reset`
    and the ledger may be used from anywhere.

    Args:
        max_gap: seconds between two stamps above which the state is reset; 0: never.
        epoch: number of the first epoch.
        state: what `state` is before the first frame. No step goes on from it.
    """

    def __init__(self, *, max_gap: float, epoch: int = 0, state: Any = None) -> None:
        self._max_gap_ns = int(max_gap * 1e9)
        self._lock = threading.Lock()
        self._waiting: Waiting[T] | None = None
        self._requested_reset: str | None = None
        self._last: FrameKey | None = None
        self._last_sequence = 0
        self._late_in_a_row = 0
        self._state = state
        self._index = 0
        self.epoch = epoch
        self.received = 0
        self.processed = 0
        self.rejected: Counter[str] = Counter()
        self.resets: Counter[str] = Counter()

    def offer(self, message: T) -> None:
        """Stores a message; one that still waits there is superseded."""
        with self._lock:
            self.received += 1
            if self._waiting is not None:
                self.rejected[SUPERSEDED] += 1
            self._waiting = Waiting(message=message, sequence=self.received)

    @property
    def has_frame(self) -> bool:
        """Whether a message waits."""
        return self._waiting is not None

    def take(self) -> Waiting[T] | None:
        """The waiting message, which the caller must now commit or reject; None if there is none."""
        with self._lock:
            waiting, self._waiting = self._waiting, None
            return waiting

    def request_reset(self, reason: str) -> None:
        """The next frame starts a new epoch; without effect before the first frame, which starts one anyway."""
        with self._lock:
            if self._last is not None:
                self._requested_reset = reason

    @property
    def state(self) -> Any:
        """The state after the last committed frame, also while a reset is due; that given at first before any frame."""
        return self._state

    @property
    def goes_on(self) -> bool:
        """Whether there is a state that the next frame may go on from: a frame was committed and no reset requested."""
        return self._last is not None and self._requested_reset is None

    def amend(self, state: Any) -> None:
        """Replaces the state between two frames, for what is asked of it meanwhile; epoch and index go on."""
        self._state = state

    def plan(self, key: FrameKey, sequence: int) -> Step:
        """Decides how to step a frame that was taken.

        Raises `FrameRejected` ("duplicate", "late"), which the caller passes to `reject`.
        """
        reason = self._reset_reason(key)
        fresh = self._last is None or reason is not None
        return Step(
            key=key,
            sequence=sequence,
            state=None if fresh else self._state,
            epoch=self.epoch + (reason is not None),
            index=0 if fresh else self._index,
            skipped=sequence - self._last_sequence - 1,
            reset_reason=reason,
        )

    def commit(self, step: Step, state: Any) -> None:
        """Takes a planned step: `state` is the one after it."""
        with self._lock:
            if step.reset_reason is not None:
                self.resets[step.reset_reason] += 1
                if self._requested_reset == step.reset_reason:
                    self._requested_reset = None
            self.epoch = step.epoch
            self._state = state
            self._index = step.index + 1
            self._last = step.key
            self._last_sequence = step.sequence
            self._late_in_a_row = 0
            self.processed += 1

    def reject(self, reason: str) -> None:
        """Writes a taken frame off; state and epoch stay as they are."""
        with self._lock:
            self.rejected[reason] += 1

    def ledger(self) -> dict[str, int]:
        """Counts since the stream was made: received, processed, dropped (superseded), rejected (all else), resets."""
        with self._lock:
            dropped = self.rejected[SUPERSEDED]
            return {
                "received": self.received,
                "processed": self.processed,
                "dropped": dropped,
                "rejected": self.rejected.total() - dropped,
                "resets": self.resets.total(),
            }

    def save(self) -> dict[str, Any]:
        """All that the next frames depend on, and the ledger, for `restore`. Between two frames only."""
        return {name: getattr(self, name) for name in _SAVED}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Goes on from where `save` was called, at a stream of the same arguments."""
        for name in _SAVED:
            setattr(self, name, saved[name])

    def _reset_reason(self, key: FrameKey) -> str | None:
        last = self._last
        if last is None:
            return None
        if self._requested_reset is not None:
            return self._requested_reset
        if (key.height, key.width) != (last.height, last.width):
            return "resolution"
        if key.frame_id != last.frame_id:
            return "frame_id"
        step_ns = key.stamp_ns - last.stamp_ns
        if step_ns == 0:
            raise FrameRejected("duplicate", f"stamp {key.stamp_ns} ns was processed before")
        if step_ns < 0:
            return self._backward_reason(-step_ns)
        if self._max_gap_ns and step_ns > self._max_gap_ns:
            return "gap"
        return None

    def _backward_reason(self, back_ns: int) -> str:
        self._late_in_a_row += 1
        if back_ns < LATE_TOLERANCE_NS and self._late_in_a_row < LATE_LIMIT:
            raise FrameRejected("late", f"stamp lies {back_ns / 1e6:.1f} ms before the last one processed")
        return "backward"
