"""The rules of a stream: ledger, epochs and resets, over fixed cases and over arbitrary sequences of stamps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rvm_perception.stream import (
    FAILURES,
    SUPERSEDED,
    FrameKey,
    FrameRejected,
    Policy,
    Step,
    Stream,
    StreamRules,
)

MS = 1_000_000


def key(stamp_ms: float, *, frame_id: str = "camera", height: int = 48, width: int = 64) -> FrameKey:
    return FrameKey(stamp_ns=int(stamp_ms * MS), frame_id=frame_id, height=height, width=width)


def run(stream: Stream[FrameKey], keys: Iterable[FrameKey]) -> list[tuple[int, int, str | None]]:
    """Feeds each frame at once; the state is the tuple of stamps it was made from. Returns (epoch, index, reason)."""
    outcomes: list[tuple[int, int, str | None]] = []
    for frame in keys:
        stream.offer(frame)
        waiting = stream.take()
        assert waiting is not None
        try:
            step = stream.plan(waiting.message, waiting.sequence)
        except FrameRejected as error:
            stream.reject(error.reason)
            outcomes.append((-1, -1, error.reason))
            continue
        stream.commit(step, (*(step.state or ()), frame.stamp_ns))
        outcomes.append((step.epoch, step.index, step.reset_reason))
    return outcomes


def test_frames_in_order_continue_the_state() -> None:
    assert run(Stream(StreamRules(max_gap=1.0)), [key(0), key(40), key(80)]) == [
        (0, 0, None),
        (0, 1, None),
        (0, 2, None),
    ]


@pytest.mark.parametrize(
    ("second", "outcome"),
    [
        (key(0), (-1, -1, "duplicate")),
        (key(-40), (-1, -1, "late")),
        (key(-1000), (1, 0, "backward")),
        (key(1001), (1, 0, "gap")),
        (key(40, height=96), (1, 0, "resolution")),
        (key(40, frame_id="other"), (1, 0, "frame_id")),
        (key(1000), (0, 1, None)),
    ],
)
def test_second_frame(second: FrameKey, outcome: tuple[int, int, str | None]) -> None:
    assert run(Stream(StreamRules(max_gap=1.0)), [key(0), second])[1] == outcome


def test_max_gap_of_zero_never_resets() -> None:
    assert run(Stream(StreamRules(max_gap=0.0)), [key(0), key(1e9)])[1] == (0, 1, None)


def test_several_late_frames_in_a_row_are_a_jump_of_the_clock() -> None:
    outcomes = run(Stream(StreamRules(max_gap=1.0)), [key(500), key(100), key(140), key(180), key(220)])
    assert [reason for _, _, reason in outcomes] == [None, "late", "late", "backward", None]


def test_requested_reset_takes_effect_once_and_only_with_a_commit() -> None:
    stream: Stream[FrameKey] = Stream(StreamRules(max_gap=1.0))
    run(stream, [key(0)])
    stream.request_reset("service")
    assert stream.plan(key(40), 2).reset_reason == "service"
    assert stream.epoch == 0
    assert run(stream, [key(40), key(80)]) == [(1, 0, "service"), (1, 1, None)]
    assert stream.resets == {"service": 1}


def test_a_reset_before_the_first_frame_has_no_effect() -> None:
    stream: Stream[FrameKey] = Stream(StreamRules(max_gap=1.0))
    stream.request_reset("service")
    assert run(stream, [key(0), key(40)]) == [(0, 0, None), (0, 1, None)]


def test_first_epoch_is_the_one_given() -> None:
    assert run(Stream(StreamRules(max_gap=1.0), epoch=7), [key(0), key(-5000)]) == [(7, 0, None), (8, 0, "backward")]


def test_newest_frame_wins_and_skipped_tells_how_many_were_left_out() -> None:
    stream: Stream[FrameKey] = Stream(StreamRules(max_gap=1.0))
    run(stream, [key(0)])
    for stamp in (40, 80, 120):
        stream.offer(key(stamp))
    waiting = stream.take()
    assert waiting is not None and waiting.message == key(120)
    assert stream.plan(waiting.message, waiting.sequence).skipped == 2
    assert stream.rejected == {SUPERSEDED: 2}
    assert stream.take() is None


def test_a_step_that_is_not_committed_changes_nothing() -> None:
    stream: Stream[FrameKey] = Stream(StreamRules(max_gap=1.0))
    run(stream, [key(0), key(40)])
    before = stream.plan(key(80), 3)
    stream.plan(key(5000), 3)
    stream.reject("engine")
    assert stream.plan(key(80), 3) == before


def test_an_amended_state_is_stepped_on_from() -> None:
    stream: Stream[FrameKey] = Stream(StreamRules(max_gap=1.0))
    run(stream, [key(0)])
    stream.amend("amended")
    step = stream.plan(key(40), 2)
    assert (step.state, step.epoch, step.index) == ("amended", 0, 1)
    assert stream.state == "amended"


def test_a_state_given_at_first_is_kept_but_never_stepped_from() -> None:
    stream: Stream[FrameKey] = Stream(StreamRules(max_gap=1.0), epoch=3, state="of before")
    assert stream.state == "of before" and stream.plan(key(0), 1).state is None
    run(stream, [key(0)])
    assert stream.state == (0,)


def test_a_state_goes_on_between_its_first_frame_and_a_reset() -> None:
    stream: Stream[FrameKey] = Stream(StreamRules(max_gap=1.0))
    assert not stream.goes_on
    run(stream, [key(0)])
    assert stream.goes_on
    stream.request_reset("service")
    assert not stream.goes_on
    run(stream, [key(40)])
    assert stream.goes_on


CONTINUE = StreamRules(on_backward="continue", on_resolution="continue", on_frame_id="continue")


@pytest.mark.parametrize(
    "second", [key(-5000), key(40, height=96), key(40, frame_id="other")], ids=["backward", "resolution", "frame_id"]
)
def test_each_change_goes_on_where_a_parameter_says_so(second: FrameKey) -> None:
    assert run(Stream(CONTINUE), [key(0), second, replace(second, stamp_ns=second.stamp_ns + 1)]) == [
        (0, 0, None), (0, 1, None), (0, 2, None),
    ]  # fmt: skip


def test_what_is_late_is_a_parameter() -> None:
    strict = StreamRules(late_tolerance=0.1, late_limit=2)
    outcomes = run(Stream(strict), [key(1000), key(950), key(960), key(800), key(690)])
    assert [reason for _, _, reason in outcomes] == [None, "late", "backward", "backward", "backward"]


def test_a_recording_in_a_loop_resets_once_a_loop() -> None:
    stream: Stream[FrameKey] = Stream(StreamRules())
    for loop in range(3):
        outcomes = run(stream, [key(40 * i) for i in range(50)])
        assert outcomes[1:] == [(loop, i, None) for i in range(1, 50)]
    assert stream.resets == {"backward": 2} and not stream.unstable_clock


def test_a_loop_shorter_than_the_tolerance_is_seen_from_a_row_of_late_frames() -> None:
    stream: Stream[FrameKey] = Stream(StreamRules())
    run(stream, [key(40 * i) for i in (*range(20), *range(20))])
    assert stream.resets == {"backward": 1} and stream.rejected == {"late": 2}


def test_frames_of_the_time_before_a_jump_of_the_clock_are_dropped() -> None:
    stream: Stream[FrameKey] = Stream(StreamRules())
    run(stream, [key(10_000 + 40 * i) for i in range(5)])
    stream.offer(key(10_200))
    stream.clock_jumped(1_000 * MS, 9_200 * MS)
    waiting = stream.take()
    assert waiting is not None
    with pytest.raises(FrameRejected, match="before the clock was set back") as caught:
        stream.plan(waiting.message, waiting.sequence)
    stream.reject(caught.value.reason)
    assert run(stream, [key(1_000), key(1_040), key(10_240), key(1_080)]) == [
        (1, 0, "clock_jump"), (1, 1, None), (-1, -1, "old_loop"), (1, 2, None),
    ]  # fmt: skip
    assert stream.resets == {"clock_jump": 1}, "one reset, not one more for the stamps that went back"
    late = [key(1_080 + 1_000 * i) for i in range(1, 12)]
    assert all(reason is None for _, _, reason in run(stream, late)), "the new time may come as far as the old one"


def test_a_camera_that_does_not_follow_the_clock_is_not_kept_out() -> None:
    stream: Stream[FrameKey] = Stream(StreamRules())
    run(stream, [key(10_000)])
    stream.clock_jumped(0, 5_000 * MS)
    outcomes = run(stream, [key(10_040 + 40 * i) for i in range(5)])
    assert [reason for _, _, reason in outcomes] == ["old_loop", "old_loop", "clock_jump", None, None]


def test_a_jump_of_the_clock_without_effect_and_one_to_another_clock() -> None:
    going_on: Stream[FrameKey] = Stream(StreamRules(on_clock_jump="continue"))
    run(going_on, [key(10_000)])
    going_on.clock_jumped(0, 10_000 * MS)
    assert run(going_on, [key(10_040)]) == [(0, 1, None)]
    other: Stream[FrameKey] = Stream(StreamRules())
    run(other, [key(10_000)])
    other.clock_jumped(0, 0)
    assert run(other, [key(10_040)]) == [(1, 0, "clock_jump")]


def test_interleaved_clocks_are_told() -> None:
    stream: Stream[FrameKey] = Stream(StreamRules())
    assert stream.unstable_clock == ""
    run(stream, [key(start + 40 * i) for i in range(3) for start in (1_000_000, 5_000)])
    assert "3 resets by stamps (backward, gap) within" in stream.unstable_clock
    run(stream, [key(2_000_000 + 40 * i) for i in range(25)])
    assert stream.unstable_clock == "", "it is forgotten once the clock goes on"


def test_failures_in_a_row_reset_a_state_that_may_be_their_cause() -> None:
    stream: Stream[FrameKey] = Stream(StreamRules(max_failures=3))

    def fail(reason: str) -> None:
        stream.offer(key(40))
        assert stream.take() is not None
        stream.reject(reason)

    for reason in ("engine", "not_finite", "out_of_memory", "tracking"):
        fail(reason)
    assert stream.goes_on is False and stream.failures_in_a_row == 4
    assert run(stream, [key(0), key(40)]) == [(0, 0, None), (0, 1, None)], "there was no state to reset"
    assert stream.failures_in_a_row == 0
    for reason in ("engine", "not_finite", "corrupt", "engine"):
        fail(reason)
    assert run(stream, [key(80), key(120)]) == [(1, 0, "failures"), (1, 1, None)]


def test_a_reset_asked_for_during_a_step_takes_effect_after_it() -> None:
    stream: Stream[FrameKey] = Stream(StreamRules())
    for expected in (None, "service"):
        stream.offer(key(40 * stream.received))
        waiting = stream.take()
        assert waiting is not None
        step = stream.plan(waiting.message, waiting.sequence)
        stream.request_reset("service")
        stream.commit(step, ())
        assert step.reset_reason == expected
    assert run(stream, [key(500)]) == [(2, 0, "service")], "the second was asked for while the first was carried out"


def test_the_ledger_adds_up_while_a_frame_is_stepped() -> None:
    stream: Stream[FrameKey] = Stream(StreamRules())
    for stamp in (0, 40):
        stream.offer(key(stamp))
    assert stream.take() is not None
    stream.offer(key(80))
    ledger = stream.ledger()
    assert (ledger["received"], ledger["dropped"], ledger["waiting"]) == (3, 1, 2)
    stream.reject("corrupt")
    assert stream.ledger()["waiting"] == 1
    assert stream.reasons() == ({"corrupt": 1, "superseded": 1}, {})


FRAMES = st.builds(
    key,
    st.one_of(st.integers(-3000, 3000), st.sampled_from([0, 40, 80, 120, 999, 1000, 1001, 900_000])),
    frame_id=st.sampled_from(["camera", "camera", "camera", "other"]),
    height=st.sampled_from([48, 48, 48, 96]),
)
EVENTS = st.one_of(
    FRAMES,
    FRAMES,
    FRAMES,
    st.tuples(st.just("waits"), FRAMES),
    st.tuples(st.just("fails"), FRAMES, st.sampled_from(FAILURES)),
    st.tuples(st.just("corrupt"), FRAMES),
    st.just(("reset",)),
    st.tuples(st.just("jump"), st.integers(-3000, 3000), st.integers(0, 5000)),
)
POLICIES: st.SearchStrategy[Policy] = st.sampled_from(["reset", "continue"])
RULES = st.builds(
    StreamRules,
    max_gap=st.sampled_from([0.0, 1.0]),
    late_tolerance=st.sampled_from([0.0, 0.5, 1.0]),
    late_limit=st.integers(1, 4),
    max_failures=st.integers(1, 4),
    on_backward=POLICIES,
    on_clock_jump=POLICIES,
    on_resolution=POLICIES,
    on_frame_id=POLICIES,
)


class Recorder:
    """Plays events to a stream, whose state is the tuple of the stamps that it was made from."""

    def __init__(self, rules: StreamRules) -> None:
        self.stream: Stream[FrameKey] = Stream(rules)
        self.offered = 0
        self.steps: list[Step] = []

    def play(self, event: Any) -> None:
        if isinstance(event, FrameKey):
            self._step(event)
        elif event[0] == "reset":
            self.stream.request_reset("service")
        elif event[0] == "jump":
            self.stream.clock_jumped(event[1] * MS, event[2] * MS)
        elif event[0] == "waits":
            self._offer(event[1])
        elif event[0] == "corrupt":
            self._offer(event[1])
            assert self.stream.take() is not None
            self.stream.reject("corrupt")
        else:
            self._step(event[1], fails=event[2])

    def _offer(self, frame: FrameKey) -> None:
        self.stream.offer(frame)
        self.offered += 1

    def _step(self, frame: FrameKey, fails: str = "") -> None:
        self._offer(frame)
        waiting = self.stream.take()
        assert waiting is not None and waiting.message == frame, "the newest wins"
        before = (self.stream.state, self.stream.epoch)
        try:
            step = self.stream.plan(frame, waiting.sequence)
            if fails:
                raise FrameRejected(fails, "")
        except FrameRejected as error:
            self.stream.reject(error.reason)
            assert (self.stream.state, self.stream.epoch) == before, "a rejected frame changes neither"
        else:
            self.stream.commit(step, (*(step.state or ()), frame.stamp_ns))
            self.steps.append(step)


@given(rules=RULES, events=st.lists(EVENTS, max_size=50))
def test_any_sequence_keeps_the_ledger_and_the_epochs(rules: StreamRules, events: list[Any]) -> None:
    recorder = Recorder(rules)
    stream = recorder.stream
    for event in events:
        recorder.play(event)
        ledger = stream.ledger()
        parts = [ledger[name] for name in ("processed", "dropped", "rejected", "waiting")]
        assert ledger["received"] == recorder.offered == sum(parts)
    epochs = [step.epoch for step in recorder.steps]
    assert epochs == sorted(epochs)
    assert [step.index for step in recorder.steps] == [epochs[:i].count(epoch) for i, epoch in enumerate(epochs)]
    assert ledger["resets"] == (epochs[-1] if epochs else 0) if events else True
    assert ledger["processed"] == len(epochs) if events else True
    assert sum(step.skipped for step in recorder.steps) <= ledger["dropped"] + ledger["rejected"] if events else True


@given(rules=RULES, events=st.lists(EVENTS, max_size=50))
def test_the_state_is_that_of_the_accepted_frames_alone(rules: StreamRules, events: list[Any]) -> None:
    recorder = Recorder(rules)
    for event in events:
        recorder.play(event)
    # A stream that is given nothing but these, and told where to start anew, has no reason to refuse any of them.
    allowing = replace(CONTINUE, max_gap=0.0, late_tolerance=0.0)
    clean = Recorder(allowing)
    for step in recorder.steps:
        if step.reset_reason is not None:
            clean.stream.request_reset(step.reset_reason)
        clean.play(step.key)
    assert clean.stream.state == recorder.stream.state
    assert [(step.epoch, step.index) for step in clean.steps] == [(step.epoch, step.index) for step in recorder.steps]
    assert clean.stream.rejected == {} and clean.stream.resets == recorder.stream.resets


@given(rules=RULES, events=st.lists(EVENTS, max_size=50), at=st.integers(0, 50))
def test_a_stream_goes_on_from_what_was_saved(rules: StreamRules, events: list[Any], at: int) -> None:
    whole = Recorder(rules)
    for event in events[:at]:
        whole.play(event)
    if whole.stream.has_frame:  # as is never so between two frames of a recording
        assert whole.stream.take() is not None
        whole.stream.reject("corrupt")
    again = Recorder(rules)
    again.stream.restore(whole.stream.save())
    again.steps = list(whole.steps)
    for event in events[at:]:
        whole.play(event)
        again.play(event)
    assert again.steps == whole.steps and again.stream.state == whole.stream.state
    assert again.stream.ledger() == whole.stream.ledger() and again.stream.reasons() == whole.stream.reasons()
    assert again.stream.unstable_clock == whole.stream.unstable_clock
