"""The rules of a stream: ledger, epochs and resets, over fixed cases and over arbitrary sequences of stamps."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rvm_perception.stream import SUPERSEDED, FrameKey, FrameRejected, Stream

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
    assert run(Stream(max_gap=1.0), [key(0), key(40), key(80)]) == [(0, 0, None), (0, 1, None), (0, 2, None)]


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
    assert run(Stream(max_gap=1.0), [key(0), second])[1] == outcome


def test_max_gap_of_zero_never_resets() -> None:
    assert run(Stream(max_gap=0.0), [key(0), key(1e9)])[1] == (0, 1, None)


def test_several_late_frames_in_a_row_are_a_jump_of_the_clock() -> None:
    outcomes = run(Stream(max_gap=1.0), [key(500), key(100), key(140), key(180), key(220)])
    assert [reason for _, _, reason in outcomes] == [None, "late", "late", "backward", None]


def test_requested_reset_takes_effect_once_and_only_with_a_commit() -> None:
    stream: Stream[FrameKey] = Stream(max_gap=1.0)
    run(stream, [key(0)])
    stream.request_reset("service")
    assert stream.plan(key(40), 2).reset_reason == "service"
    assert stream.epoch == 0
    assert run(stream, [key(40), key(80)]) == [(1, 0, "service"), (1, 1, None)]
    assert stream.resets == {"service": 1}


def test_a_reset_before_the_first_frame_has_no_effect() -> None:
    stream: Stream[FrameKey] = Stream(max_gap=1.0)
    stream.request_reset("service")
    assert run(stream, [key(0), key(40)]) == [(0, 0, None), (0, 1, None)]


def test_first_epoch_is_the_one_given() -> None:
    assert run(Stream(max_gap=1.0, epoch=7), [key(0), key(-5000)]) == [(7, 0, None), (8, 0, "backward")]


def test_newest_frame_wins_and_skipped_tells_how_many_were_left_out() -> None:
    stream: Stream[FrameKey] = Stream(max_gap=1.0)
    run(stream, [key(0)])
    for stamp in (40, 80, 120):
        stream.offer(key(stamp))
    waiting = stream.take()
    assert waiting is not None and waiting.message == key(120)
    assert stream.plan(waiting.message, waiting.sequence).skipped == 2
    assert stream.rejected == {SUPERSEDED: 2}
    assert stream.take() is None


def test_a_step_that_is_not_committed_changes_nothing() -> None:
    stream: Stream[FrameKey] = Stream(max_gap=1.0)
    run(stream, [key(0), key(40)])
    before = stream.plan(key(80), 3)
    stream.plan(key(5000), 3)
    stream.reject("engine")
    assert stream.plan(key(80), 3) == before


def test_an_amended_state_is_stepped_on_from() -> None:
    stream: Stream[FrameKey] = Stream(max_gap=1.0)
    run(stream, [key(0)])
    stream.amend("amended")
    step = stream.plan(key(40), 2)
    assert (step.state, step.epoch, step.index) == ("amended", 0, 1)
    assert stream.state == "amended"


def test_a_state_given_at_first_is_kept_but_never_stepped_from() -> None:
    stream: Stream[FrameKey] = Stream(max_gap=1.0, epoch=3, state="of before")
    assert stream.state == "of before" and stream.plan(key(0), 1).state is None
    run(stream, [key(0)])
    assert stream.state == (0,)


def test_a_state_goes_on_between_its_first_frame_and_a_reset() -> None:
    stream: Stream[FrameKey] = Stream(max_gap=1.0)
    assert not stream.goes_on
    run(stream, [key(0)])
    assert stream.goes_on
    stream.request_reset("service")
    assert not stream.goes_on
    run(stream, [key(40)])
    assert stream.goes_on


STAMPS = st.lists(st.one_of(st.integers(-3000, 3000), st.sampled_from([0, 40, 80, 120, 999, 1000, 1001])), max_size=40)


@given(stamps=STAMPS, reset_before=st.sets(st.integers(0, 39)), waits=st.sets(st.integers(0, 39)))
def test_any_sequence_keeps_the_ledger_and_the_epochs(
    stamps: list[int], reset_before: set[int], waits: set[int]
) -> None:
    stream: Stream[FrameKey] = Stream(max_gap=1.0)
    accepted: list[int] = []
    epochs: list[int] = []
    skipped = 0
    for i, stamp in enumerate(stamps):
        if i in reset_before:
            stream.request_reset("service")
        stream.offer(key(stamp))
        if i in waits:
            continue
        waiting = stream.take()
        assert waiting is not None
        try:
            step = stream.plan(waiting.message, waiting.sequence)
        except FrameRejected as error:
            stream.reject(error.reason)
            continue
        accepted = accepted if step.state is not None else []
        assert step.state is None or step.state == tuple(accepted), "the state is that of the accepted frames alone"
        assert step.index == len(accepted)
        accepted = [*accepted, waiting.message.stamp_ns]
        stream.commit(step, tuple(accepted))
        epochs.append(step.epoch)
        skipped += step.skipped
    ledger = stream.ledger()
    assert ledger["received"] == len(stamps)
    assert ledger["received"] == ledger["processed"] + ledger["dropped"] + ledger["rejected"] + stream.has_frame
    assert epochs == sorted(epochs)
    assert ledger["resets"] == (epochs[-1] if epochs else 0)
    assert skipped <= ledger["dropped"] + ledger["rejected"]


@given(stamps=STAMPS, at=st.integers(0, 40), reset=st.booleans())
def test_a_stream_goes_on_from_what_was_saved(stamps: list[int], at: int, reset: bool) -> None:
    whole: Stream[FrameKey] = Stream(max_gap=1.0)
    keys = [key(stamp) for stamp in stamps]
    expected = run(whole, keys[:at])
    if reset:
        whole.request_reset("service")
    again: Stream[FrameKey] = Stream(max_gap=1.0)
    again.restore(whole.save())
    assert run(again, keys[at:]) == run(whole, keys[at:])
    assert again.ledger() == whole.ledger() and again.state == whole.state
    assert len(expected) == min(at, len(stamps))
