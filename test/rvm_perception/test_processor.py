"""A frame as one transaction over engine and tracks: committed whole or not at all, without ROS."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rvm_perception.conversions import ImageError
from rvm_perception.parameters import NodeParameters
from rvm_perception.processor import CameraHistory, FrameProcessor, ModelIdentity, Result, rejection
from rvm_perception.stream import FrameRejected, Stream, StreamRules
from rvm_perception.track_ids import IdLedger
from rvm_perception.track_queries import Answers, read_request
from rvm_perception.track_session import TrackSession
from track_stand_ins import SPEED, ScriptedTracker, assert_identical, query_message

PARAMETERS = NodeParameters(height=64, width=128)


class CountingEngine:
    """Its state is the number of steps taken, and so are its features."""

    fails = False
    not_finite = False
    spoils_state = False

    def init_state(self) -> torch.Tensor:
        return torch.zeros(1)

    def step(self, frames: np.ndarray, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.fails:
            raise RuntimeError("the engine is broken")
        features = torch.full((1, 33, 4), float("nan") if self.not_finite else float(state) + 1)
        return features, state * float("inf") + 1 if self.spoils_state else state + 1


class Camera:
    """One camera's stream and session, fed with messages."""

    def __init__(self) -> None:
        self.engine, self.tracker = CountingEngine(), ScriptedTracker()
        engine: Any = self.engine
        identity = ModelIdentity(name="tiny", weights_hash="0", weights="tiny")
        self.processor = FrameProcessor(PARAMETERS, engine, identity)
        self.stream: Stream[Any] = Stream(StreamRules(max_gap=1.0))
        self.ids = IdLedger()
        self.session = TrackSession(camera="camera", tracker=self.tracker, parameters=PARAMETERS, ids=self.ids)

    def frame(self, index: int, *, is_stopped: bool = False) -> Result:
        stamp = SimpleNamespace(sec=1000, nanosec=index * 40_000_000)
        header = SimpleNamespace(stamp=stamp, frame_id="optical")
        data = bytes(96 * 192 * 3)
        self.stream.offer(
            SimpleNamespace(
                header=header, height=96, width=192, encoding="rgb8", is_bigendian=0, step=192 * 3, data=data
            )
        )
        waiting = self.stream.take()
        assert waiting is not None
        return self.processor.process(waiting, self.stream, self.session, is_stopped=lambda: is_stopped)

    def restart(self) -> None:
        """As in deactivate, cleanup, configure and activate: another stream and session, the same ids."""
        history = CameraHistory(epoch=self.stream.epoch, ids=self.ids)
        history.keep(self.stream)
        self.stream = Stream(StreamRules(max_gap=1.0), epoch=history.epoch, state=history.state)
        self.session = TrackSession(camera="camera", tracker=self.tracker, parameters=PARAMETERS, ids=self.ids)

    def ask(self, **fields: Any) -> list[Answers]:
        self.session.receive(read_request(query_message(**fields)))
        return self.processor.apply_queries(self.stream, self.session)


@pytest.fixture
def camera() -> Camera:
    camera = Camera()
    camera.frame(0)
    (answers,) = camera.ask(point_x=[24.0], point_y=[24.0])
    assert not answers.entries[0].reason
    return camera


def xy(result: Result) -> list[list[float]]:
    assert result.tracks is not None
    positions: list[list[float]] = result.tracks.tracks.points.xy.tolist()
    return positions


def test_a_query_between_two_frames_is_part_of_the_state(camera: Camera) -> None:
    assert camera.stream.epoch == 0 and camera.stream.state.engine == 1
    result = camera.frame(1)
    assert (result.step.index, camera.stream.state.engine) == (1, 2)
    assert xy(result) == [[1 + SPEED, 1.0]]
    assert result.tracking_ms > 0


@pytest.mark.parametrize("fault", ["engine raises", "engine not finite", "tracker raises", "tracker not finite"])
def test_a_rejected_frame_leaves_engine_and_tracks_as_they_were(camera: Camera, fault: str) -> None:
    camera.frame(1)
    before, kept = camera.stream.state, copy.deepcopy(camera.stream.state)
    camera.engine.fails = fault == "engine raises"
    camera.engine.not_finite = fault == "engine not finite"
    camera.tracker.breaks = fault == "tracker raises"
    camera.tracker.not_finite = fault == "tracker not finite"
    with pytest.raises((FrameRejected, RuntimeError)):
        camera.frame(2)
    assert camera.stream.state is before
    assert_identical(camera.stream.state, kept)
    camera.engine.fails = camera.engine.not_finite = camera.tracker.breaks = camera.tracker.not_finite = False
    result = camera.frame(2)
    assert camera.stream.state.engine == 3 and xy(result) == [[1 + 2 * SPEED, 1.0]]


def test_queries_wait_while_a_reset_is_due(camera: Camera) -> None:
    camera.stream.request_reset("service")
    assert camera.ask(point_x=[48.0], point_y=[24.0]) == []
    result = camera.frame(1)
    assert result.tracks is not None and [track.id for track in result.tracks.lost] == [1]
    (answers,) = camera.processor.apply_queries(camera.stream, camera.session)
    assert (answers.epoch, answers.entries[0].id, answers.entries[0].reason) == (1, 2, "")
    assert xy(camera.frame(2)) == [[2 + SPEED, 1.0]]


def test_a_reset_whose_first_frame_fails_is_announced_with_the_next(camera: Camera) -> None:
    camera.stream.request_reset("service")
    camera.tracker.breaks = True
    with pytest.raises(FrameRejected):
        camera.frame(1)
    camera.tracker.breaks = False
    lost = [camera.frame(i).tracks.lost for i in (2, 3)]  # type: ignore[union-attr]
    assert [len(tracks) for tracks in lost] == [1, 0]


def test_a_frame_that_ends_after_the_node_was_stopped_is_not_committed(camera: Camera) -> None:
    before = camera.stream.state
    with pytest.raises(FrameRejected) as caught:
        camera.frame(1, is_stopped=True)
    assert caught.value.reason == "inactive" and camera.stream.state is before


def test_without_tracking_there_are_no_tracks() -> None:
    camera = Camera()
    camera.session = None  # type: ignore[assignment]
    result = camera.frame(0)
    assert result.tracks is None and camera.stream.state.tracks is None
    assert camera.frame(1).step.index == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("broken"), "engine"),
        (KeyError("broken"), "engine"),
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), "out_of_memory"),
        (FrameRejected("late", "too late"), "late"),
        (ImageError("corrupt", "half a JPEG"), "corrupt"),
    ],
)
def test_each_error_has_one_reason(error: Exception, reason: str) -> None:
    assert rejection(error)[0] == reason


def test_a_state_that_is_not_finite_is_not_committed_though_the_features_are(camera: Camera) -> None:
    before = camera.stream.state
    camera.engine.spoils_state = True
    with pytest.raises(FrameRejected, match="NaN or infinite"):
        camera.frame(1)
    assert camera.stream.state is before


EVENTS = st.one_of(
    st.tuples(st.just("frame"), st.integers(0, 60)),
    st.tuples(st.just("next")),
    st.tuples(st.just("next")),
    st.tuples(st.just("fails"), st.sampled_from(["fails", "not_finite", "spoils_state", "breaks"])),
    st.tuples(st.just("stopped")),
    st.tuples(st.just("ask"), st.integers(0, 4)),
    st.tuples(st.just("reset")),
    st.tuples(st.just("restart")),
)


@settings(deadline=None)
@given(events=st.lists(EVENTS, max_size=30))
def test_what_fails_leaves_no_trace_and_ids_never_return(events: list[tuple[Any, ...]]) -> None:
    """A camera to which all of it happens, and one that sees only what was accepted, end in the same state."""
    camera, clean = Camera(), Camera()
    clean.stream.rules = StreamRules(max_gap=0.0, late_tolerance=0.0, on_backward="continue")
    given_ids: list[int] = []
    places: list[tuple[int, int]] = []
    index = 0
    for event in events:
        kind = event[0]
        if kind in ("frame", "next", "stopped", "fails"):
            index = event[1] if kind == "frame" else index + 1
            place: Any = camera.tracker if event[1:] == ("breaks",) else camera.engine
            if kind == "fails":
                setattr(place, event[1], True)
            try:
                result = camera.frame(index, is_stopped=kind == "stopped")
            except (FrameRejected, RuntimeError) as error:
                camera.stream.reject(rejection(error)[0])
            else:
                assert kind in ("frame", "next")
                if result.step.reset_reason is not None:
                    clean.stream.request_reset(result.step.reset_reason)
                clean.frame(index)
                places.append((result.step.epoch, result.step.index))
            if kind == "fails":
                setattr(place, event[1], False)
        elif kind == "ask":
            for answers in camera.ask(point_x=[24.0], point_y=[24.0], point_ids=[event[1]]):
                accepted = [entry.id for entry in answers.entries if not entry.reason]
                given_ids += accepted
                if accepted:
                    clean.ask(point_x=[24.0] * len(accepted), point_y=[24.0] * len(accepted), point_ids=accepted)
        elif kind == "reset":
            camera.stream.request_reset("service")
        else:
            for each in (camera, clean):
                rules = each.stream.rules
                each.restart()
                each.stream.rules = rules
    assert len(given_ids) == len(set(given_ids)), "no id is given twice"
    assert places == sorted(set(places)), "epoch and index tell one frame, also after the node was configured anew"
    if not camera.session.waiting:
        assert_identical(camera.stream.state, clean.stream.state)
    ledger = camera.stream.ledger()
    assert ledger["received"] == ledger["processed"] + ledger["rejected"] and ledger["waiting"] == 0
