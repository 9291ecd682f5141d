"""A frame as one transaction over engine and tracks: committed whole or not at all, without ROS."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rvm_perception.parameters import NodeParameters
from rvm_perception.processor import FrameProcessor, ModelIdentity, Result
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

    def init_state(self) -> torch.Tensor:
        return torch.zeros(1)

    def step(self, frames: np.ndarray, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.fails:
            raise RuntimeError("the engine is broken")
        features = torch.full((1, 33, 4), float("nan") if self.not_finite else float(state) + 1)
        return features, state + 1


class Camera:
    """One camera's stream and session, fed with messages."""

    def __init__(self) -> None:
        self.engine, self.tracker = CountingEngine(), ScriptedTracker()
        engine: Any = self.engine
        self.processor = FrameProcessor(PARAMETERS, engine, ModelIdentity(name="tiny", weights_hash="0"))
        self.stream: Stream[Any] = Stream(StreamRules(max_gap=1.0))
        self.session = TrackSession(camera="camera", tracker=self.tracker, parameters=PARAMETERS, ids=IdLedger())

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
