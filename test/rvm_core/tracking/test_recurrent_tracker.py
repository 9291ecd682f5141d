"""Recurrent readouts as a tracker."""

import numpy as np
import pytest
import torch
from torch import Tensor

from rvm_core.recurrent_readout import RecurrentReadout, RecurrentReadoutConfig
from rvm_core.tracking.base import BoxQuery, MaskQuery, PointQuery, QueryError, Status, Tracker
from rvm_core.tracking.recurrent_tracker import RecurrentTracker, RecurrentTrackerState

GRID = (4, 5)
EXACT = 1e-4
"""Between two float32 ways to the same position, in cells."""

POINTS = (PointQuery(id=5, x=1.2, y=3.1), PointQuery(id=3, x=4.4, y=2.0))
BOX = BoxQuery(id=9, x_min=0.5, y_min=1.0, x_max=2.5, y_max=3.5)


def make(kind: str) -> RecurrentReadout:
    config = RecurrentReadoutConfig(features=12, kind=kind, channels=16, num_heads=2)  # type: ignore[arg-type]
    return RecurrentReadout(config, seed=3).eval()


@pytest.fixture(scope="module")
def tracker() -> RecurrentTracker:
    contract: Tracker[RecurrentTrackerState]
    contract = tracker = RecurrentTracker(grid=GRID, points=make("points"), boxes=make("boxes"), memory=6)
    assert contract.name == "recurrent_readout"
    return tracker


@pytest.fixture(scope="module")
def video() -> Tensor:
    return torch.randn(20, 21, 12, generator=torch.Generator().manual_seed(0))


def seen(tracker: RecurrentTracker, frames: Tensor) -> RecurrentTrackerState:
    state = tracker.init_state()
    for frame in frames:
        _, state = tracker.step(frame, state)
    return state


def test_tracks_are_what_the_readouts_say(tracker: RecurrentTracker, video: Tensor) -> None:
    state = tracker.add([*POINTS, BOX], seen(tracker, video[:1]))
    points, boxes = make("points"), make("boxes")
    with torch.no_grad():
        of_points = points.start(video[:1], torch.tensor([[[1.2 / 5, 3.1 / 4], [4.4 / 5, 2.0 / 4]]]), GRID)
        of_boxes = boxes.start(video[:1], torch.tensor([[[0.5 / 5, 1.0 / 4, 2.5 / 5, 3.5 / 4]]]), GRID)
        for frame in video[1:]:
            tracks, state = tracker.step(frame, state)
            point, of_points = points(frame[None], of_points, GRID)
            box, of_boxes = boxes(frame[None], of_boxes, GRID)
            assert tracks.points.ids.tolist() == [5, 3]
            assert np.allclose(tracks.points.xy, point.positions[0] * torch.tensor([5, 4]), atol=EXACT)
            assert np.allclose(tracks.points.confidence, point.confidence[0, :, 0], atol=EXACT)
            wanted = [Status.VISIBLE if is_seen else Status.OCCLUDED for is_seen in point.visible[0, :, 0].tolist()]
            assert tracks.points.status.tolist() == wanted
            assert tracks.boxes.ids.tolist() == [9]
            assert np.allclose(tracks.boxes.xyxy, box.positions[0] * torch.tensor([5, 4, 5, 4]), atol=EXACT)
            assert np.allclose(tracks.boxes.confidence, box.confidence[0, :, 0], atol=EXACT)
            assert len(tracks.masks.ids) == 0


def test_types_are_those_of_the_contract(tracker: RecurrentTracker, video: Tensor) -> None:
    tracks, _ = tracker.step(video[1], tracker.add([*POINTS, BOX], seen(tracker, video[:1])))
    for said, places in ((tracks.points, tracks.points.xy), (tracks.boxes, tracks.boxes.xyxy)):
        assert (said.ids.dtype, said.status.dtype, said.confidence.dtype) == (np.uint64, np.uint8, np.float32)
        assert places.dtype == np.float32
        assert len(places) == len(said.ids)


@pytest.mark.parametrize("age", [0, 1, 5])
def test_late_query_is_as_one_in_time(tracker: RecurrentTracker, video: Tensor, age: int) -> None:
    late = tracker.add([*POINTS, BOX], seen(tracker, video[:10]), age=age)
    in_time = tracker.add([*POINTS, BOX], seen(tracker, video[: 10 - age]))
    for frame in video[10 - age : 10]:
        _, in_time = tracker.step(frame, in_time)
    one, _ = tracker.step(video[10], late)
    other, _ = tracker.step(video[10], in_time)
    assert np.allclose(one.points.xy, other.points.xy, atol=EXACT)
    assert np.allclose(one.boxes.xyxy, other.boxes.xyxy, atol=EXACT)


def test_state_is_a_value_and_tracks_are_alone(tracker: RecurrentTracker, video: Tensor) -> None:
    state = tracker.add(POINTS[:1], seen(tracker, video[:3]))
    expected, _ = tracker.step(video[3], state)
    more = tracker.add([POINTS[1], BOX], state, age=2)
    fewer = tracker.remove([3, 9, 12345], more)
    for other in (state, more, fewer):
        tracks, _ = tracker.step(video[3], other)
        assert np.allclose(tracks.points.xy[:1], expected.points.xy, atol=EXACT)
    assert tracker.step(video[3], more)[0].points.ids.tolist() == [5, 3]
    assert tracker.step(video[3], fewer)[0].points.ids.tolist() == [5]
    assert len(tracker.step(video[3], tracker.remove([5], fewer))[0].points.ids) == 0


def test_memory_is_bounded(tracker: RecurrentTracker, video: Tensor) -> None:
    state = tracker.add([*POINTS, BOX], seen(tracker, video))
    assert tracker.remembered(state) == len(state.frames) == 6
    with pytest.raises(QueryError, match="only the newest 6 are"):
        tracker.add([PointQuery(id=1, x=1, y=1)], state, age=6)


def test_what_is_refused(tracker: RecurrentTracker, video: Tensor) -> None:
    state = tracker.add(POINTS, seen(tracker, video[:1]))
    with pytest.raises(QueryError, match="id 5 is in use"):
        tracker.add(POINTS[:1], state)
    with pytest.raises(QueryError, match="masks cannot be followed here"):
        tracker.add([MaskQuery(id=1, mask=np.ones(GRID, np.float32))], state)
    with pytest.raises(ValueError, match=r"expected tokens \(21, width\), got \(20, 12\)"):
        tracker.step(video[0, 1:], state)
    with pytest.raises(ValueError, match="a readout of points, one of boxes or both"):
        RecurrentTracker(grid=GRID)
    with pytest.raises(ValueError, match="expected a readout of boxes, got one of points"):
        RecurrentTracker(grid=GRID, boxes=make("points"))
    with pytest.raises(ValueError, match="a memory of one frame or more, got 0"):
        RecurrentTracker(grid=GRID, points=make("points"), memory=0)
