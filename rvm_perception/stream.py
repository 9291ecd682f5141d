"""Rules of one camera's stream: which frames are stepped, when the state is reset, and the ledger of both.

Plain Python, shared by the live node and by offline replay. Every received frame ends as processed or as rejected for
exactly one reason, so that received = processed + rejected + those that wait or are being stepped.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

Policy = Literal["reset", "continue"]
"""What a change of the camera does: start a new epoch, or go on with the state."""

SUPERSEDED = "superseded"
"""Rejection reason of a frame that a newer one replaced before it was its turn."""

LATE_TOLERANCE_NS = 1_000_000_000
"""Default: a stamp less than this behind the last one is a late frame; more is a jump of the clock."""

LATE_LIMIT = 3
"""Default: so many late frames in a row are a jump of the clock too."""

FAILURES = ("engine", "not_finite", "out_of_memory", "tracking")
"""Rejection reasons that say nothing about the frame, but that the step failed."""

_CLOCK_RESETS = ("backward", "clock_jump", "gap")
_UNSTABLE_RESETS, _UNSTABLE_FRAMES = 3, 20
"""So many resets by the clock within so many processed frames: the stamps are not those of one clock."""

_SAVED = (
    "_requested", "_requests", "_last", "_last_sequence", "_out_of_order", "_old_loop_ns", "_state", "_index",
    "_clock_resets", "epoch", "received", "processed", "rejected", "resets", "failures_in_a_row",
)  # fmt: skip

T = TypeVar("T")


class FrameRejected(Exception):
    """A frame that is not stepped. `reason` is a short name, the same for every frame rejected for this reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class StreamRules:
    """When a stream is reset. The node's parameters of the same names say what each means."""

    max_gap: float = 2.0
    late_tolerance: float = LATE_TOLERANCE_NS / 1e9
    late_limit: int = LATE_LIMIT
    max_failures: int = 3
    on_backward: Policy = "reset"
    on_clock_jump: Policy = "reset"
    on_resolution: Policy = "reset"
    on_frame_id: Policy = "reset"


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
    request: int
    """Number of the newest reset that was requested before: this one and those before it are done with the step."""


@dataclass(frozen=True, kw_only=True)
class Waiting(Generic[T]):
    """The newest message of a camera and its number among those received."""

    message: T
    sequence: int


class Stream(Generic[T]):
    """Mailbox, state and ledger of one camera.

    `offer` is called where messages arrive, everything else by the one thread that steps the engine; `request_reset`,
    `clock_jumped`, `rules` and the ledger may be used from anywhere.

    Args:
        rules: when the state is reset; may be replaced at any time.
        epoch: number of the first epoch.
        state: what `state` is before the first frame. No step goes on from it.
    """

    def __init__(self, rules: StreamRules, *, epoch: int = 0, state: Any = None) -> None:
        self.rules = rules
        self._lock = threading.Lock()
        self._waiting: Waiting[T] | None = None
        self._taken = 0
        self._requested: str | None = None
        self._requests = 0
        self._last: FrameKey | None = None
        self._last_sequence = 0
        self._out_of_order = 0
        self._old_loop_ns: int | None = None
        self._state = state
        self._index = 0
        self._clock_resets: deque[tuple[int, str]] = deque(maxlen=_UNSTABLE_RESETS)
        self.epoch = epoch
        self.received = 0
        self.processed = 0
        self.rejected: Counter[str] = Counter()
        self.resets: Counter[str] = Counter()
        self.failures_in_a_row = 0
        """Steps that failed since the last one that was committed."""

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
            self._taken += waiting is not None
            return waiting

    def request_reset(self, reason: str) -> None:
        """The next frame that is not being stepped yet starts a new epoch, unless it is the first of all."""
        with self._lock:
            self._request(reason)

    def clock_jumped(self, now_ns: int, back_ns: int) -> None:
        """The clock was set back by `back_ns` to `now_ns`, as when a recording starts again.

        Frames of the time before may still come; their stamps tell them. `back_ns` of 0: the clock is another one, and
        no stamp tells anything.
        """
        with self._lock:
            if self.rules.on_clock_jump == "continue":
                return
            self._request("clock_jump")
            self._old_loop_ns = now_ns + back_ns // 2 if back_ns > 0 else None

    @property
    def state(self) -> Any:
        """The state after the last committed frame, also while a reset is due; that given at first before any frame."""
        return self._state

    @property
    def goes_on(self) -> bool:
        """Whether there is a state that the next frame may go on from: a frame was committed and no reset requested."""
        return self._last is not None and self._requested is None

    @property
    def unstable_clock(self) -> str:
        """Why the stamps cannot be those of one clock; empty while they can."""
        with self._lock:
            resets = list(self._clock_resets)
            frames = self.processed - resets[0][0] if resets else 0
        if len(resets) < _UNSTABLE_RESETS or frames > _UNSTABLE_FRAMES:
            return ""
        reasons = ", ".join(sorted({reason for _, reason in resets}))
        return f"{_UNSTABLE_RESETS} resets by stamps ({reasons}) within {frames} frames"

    def amend(self, state: Any) -> None:
        """Replaces the state between two frames, for what is asked of it meanwhile; epoch and index go on."""
        self._state = state

    def plan(self, key: FrameKey, sequence: int) -> Step:
        """Decides how to step a frame that was taken.

        Raises `FrameRejected` ("duplicate", "late", "old_loop"), which the caller passes to `reject`.
        """
        with self._lock:
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
                request=self._requests,
            )

    def commit(self, step: Step, state: Any) -> None:
        """Takes a planned step: `state` is the one after it."""
        with self._lock:
            if step.reset_reason is not None:
                self.resets[step.reset_reason] += 1
                if step.reset_reason in _CLOCK_RESETS:
                    self._clock_resets.append((self.processed, step.reset_reason))
            if step.request == self._requests:
                self._requested = None
                if self._old_loop_ns is not None and step.key.stamp_ns >= self._old_loop_ns:
                    self._old_loop_ns = None
            self.epoch = step.epoch
            self._state = state
            self._index = step.index + 1
            self._last = step.key
            self._last_sequence = step.sequence
            self._out_of_order = 0
            self.failures_in_a_row = 0
            self.processed += 1
            self._taken -= 1

    def reject(self, reason: str) -> None:
        """Writes a taken frame off; state and epoch stay as they are.

        After `max_failures` failed steps in a row the next frame starts a new epoch: what fails may be the state.
        """
        with self._lock:
            self.rejected[reason] += 1
            self._taken -= 1
            self._out_of_order += reason in ("late", "old_loop")
            if reason in FAILURES:
                self.failures_in_a_row += 1
                if self.failures_in_a_row % self.rules.max_failures == 0:
                    self._request("failures")

    def ledger(self) -> dict[str, int]:
        """Counts since the stream was made: received = processed + dropped + rejected + waiting; and resets.

        dropped: superseded; rejected: for all other reasons; waiting: for its turn, or for the end of its step.
        """
        with self._lock:
            dropped = self.rejected[SUPERSEDED]
            return {
                "received": self.received,
                "processed": self.processed,
                "dropped": dropped,
                "rejected": self.rejected.total() - dropped,
                "waiting": self._taken + (self._waiting is not None),
                "resets": self.resets.total(),
            }

    def reasons(self) -> tuple[dict[str, int], dict[str, int]]:
        """How many frames were rejected and how often the state was reset, by reason."""
        with self._lock:
            return dict(sorted(self.rejected.items())), dict(sorted(self.resets.items()))

    def save(self) -> dict[str, Any]:
        """All that the next frames depend on, and the ledger, for `restore`. Between two frames only."""
        values = {name: getattr(self, name) for name in _SAVED}
        return values | {"_clock_resets": list(self._clock_resets)}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Goes on from where `save` was called, at a stream of the same arguments."""
        for name in _SAVED:
            setattr(self, name, saved[name])
        self._clock_resets = deque(map(tuple, saved["_clock_resets"]), maxlen=_UNSTABLE_RESETS)

    def _request(self, reason: str) -> None:
        # Without effect while there is nothing to reset; but a first frame may be in its step.
        if self._last is not None or self._taken:
            self._requested = reason
            self._requests += 1

    def _reset_reason(self, key: FrameKey) -> str | None:
        last = self._last
        self._check_loop(key)
        if last is None:
            return None
        if self._requested is not None:
            return self._requested
        changed = (key.height, key.width) != (last.height, last.width)
        if changed and self.rules.on_resolution == "reset":
            return "resolution"
        if key.frame_id != last.frame_id and self.rules.on_frame_id == "reset":
            return "frame_id"
        step_ns = key.stamp_ns - last.stamp_ns
        if step_ns == 0:
            raise FrameRejected("duplicate", f"stamp {key.stamp_ns} ns was processed before")
        if step_ns < 0:
            return self._backward_reason(-step_ns)
        if self.rules.max_gap and step_ns > self.rules.max_gap * 1e9:
            return "gap"
        return None

    def _backward_reason(self, back_ns: int) -> str | None:
        if back_ns < self.rules.late_tolerance * 1e9 and self._out_of_order + 1 < self.rules.late_limit:
            raise FrameRejected("late", f"stamp lies {back_ns / 1e6:.1f} ms before the last one processed")
        return "backward" if self.rules.on_backward == "reset" else None

    def _check_loop(self, key: FrameKey) -> None:
        """Raises `FrameRejected` for a frame of the time before the clock was set back."""
        if self._old_loop_ns is None or key.stamp_ns < self._old_loop_ns:
            return
        near_ns = max(self.rules.max_gap, self.rules.late_tolerance) * 1e9
        last_ns = self._old_loop_ns if self._last is None else self._last.stamp_ns
        if last_ns < self._old_loop_ns and key.stamp_ns - last_ns <= near_ns:
            return  # the new time has come this far
        if self._out_of_order + 1 < self.rules.late_limit:
            raise FrameRejected("old_loop", f"stamp {key.stamp_ns} ns is of the time before the clock was set back")
