"""Heads chained from window to window: what they say, that seams do not show, and the contract of trackers."""

from collections import Counter
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from readout_data import load_reference
from rvm_core.heads import BoxHead, PointHead
from rvm_core.readout import AttentionReadout, KeyValues
from rvm_core.tracking.base import BoxQuery, MaskQuery, PointQuery, QueryError, Status, Tracker, Tracks
from rvm_core.tracking.window_tracker import WindowState, WindowTracker
from rvm_core.tracking.windows import HeadWindows, TrackWindows, no_tracks

GRID = (4, 4)
FRAMES, STRIDE = 16, 8
EXACT = 1e-4
"""Between two float32 ways to the same position, in cells."""


@pytest.fixture(scope="module")
def tracker() -> WindowTracker:
    """With the reference heads, which are random."""
    contract: Tracker[WindowState]
    points = PointHead.from_release(load_reference("tracking_head_points").params)
    boxes = BoxHead.from_release(load_reference("tracking_head_boxes").params)
    contract = tracker = WindowTracker(grid=GRID, point_head=points, box_head=boxes, corner_order="xyxy")
    assert contract.name == "window_heads"
    return tracker


@pytest.fixture(scope="module")
def video() -> Tensor:
    """40 frames of random features."""
    return torch.randn(40, 17, 40, generator=torch.Generator().manual_seed(0))


def run(tracker: WindowTracker, state: WindowState, frames: Iterable[Tensor]) -> tuple[list[Tracks], WindowState]:
    tracks = []
    for frame in frames:
        said, state = tracker.step(frame, state)
        tracks.append(said)
    return tracks, state


def started(tracker: WindowTracker, video: Tensor, frames: int = 1) -> WindowState:
    return run(tracker, tracker.init_state(), video[:frames])[1]


POINTS = (PointQuery(id=5, x=1.2, y=3.1), PointQuery(id=3, x=0.4, y=2.0))
BOX = BoxQuery(id=9, x_min=0.5, y_min=1.0, x_max=2.5, y_max=3.5)


def test_first_window_is_what_the_heads_say(tracker: WindowTracker, video: Tensor) -> None:
    """Before the first seam: the head on the frames so far, with the newest in place of those to come."""
    state = tracker.add([*POINTS, BOX], started(tracker, video))
    points = PointHead.from_release(load_reference("tracking_head_points").params)
    boxes = BoxHead.from_release(load_reference("tracking_head_boxes").params)
    queries = torch.tensor([[[1.2, 3.1], [0.4, 2.0]]]) / 4
    box = torch.tensor([[[0.5, 1.0, 2.5, 3.5]]]) / 4
    tracks, _ = run(tracker, state, video[1:STRIDE])
    for t, said in enumerate(tracks, start=1):
        window = torch.cat((video[: t + 1], video[t].expand(FRAMES - t - 1, -1, -1)))[None]
        with torch.no_grad():
            output, corners = points(window, queries), boxes(window, box)[0, t].reshape(2, 2)
        assert said.points.ids.tolist() == [5, 3]
        assert np.allclose(said.points.xy, output.positions[0, t] * 4, atol=EXACT)
        assert np.allclose(said.points.confidence, output.confidence[0, t, :, 0], atol=EXACT)
        visible = output.visible[0, t, :, 0].tolist()
        assert said.points.status.tolist() == [Status.VISIBLE if seen else Status.OCCLUDED for seen in visible]
        assert said.boxes.ids.tolist() == [9]
        expected = torch.cat((corners.amin(0), corners.amax(0))) * 4
        assert np.allclose(said.boxes.xyxy[0], expected, atol=EXACT)


def test_types_are_those_of_the_contract(tracker: WindowTracker, video: Tensor) -> None:
    state = tracker.add([*POINTS, BOX], started(tracker, video))
    (tracks,), _ = run(tracker, state, video[1:2])
    points, boxes = tracks.points, tracks.boxes
    for said in (points, boxes):
        assert (said.ids.dtype, said.status.dtype, said.confidence.dtype) == (np.uint64, np.uint8, np.float32)
        assert ((said.confidence >= 0) & (said.confidence <= 1)).all()
    assert (points.xy.dtype, points.xy.shape) == (np.float32, (2, 2))
    assert (boxes.xyxy.dtype, boxes.xyxy.shape) == (np.float32, (1, 4))
    assert (boxes.xyxy[:, :2] <= boxes.xyxy[:, 2:]).all()
    assert len(tracks.masks.ids) == 0
    assert tracker.grid == GRID


def test_state_is_a_value(tracker: WindowTracker, video: Tensor) -> None:
    """A step from the same state gives the same again, whatever was done in between."""
    state = tracker.add([*POINTS, BOX], started(tracker, video, 3))
    first, _ = run(tracker, state, video[3:30])
    tracker.remove([5], tracker.add([PointQuery(id=99, x=1, y=1)], state, age=2))
    again, _ = run(tracker, state, video[3:30])
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.points.xy, other.points.xy)
        assert np.array_equal(one.boxes.xyxy, other.boxes.xyxy)


@pytest.mark.parametrize("age", [1, 7, 15])
def test_late_query_catches_up(tracker: WindowTracker, video: Tensor, age: int) -> None:
    """It starts where it would have, had it come in time; seams in between were read with less of the video then."""
    seen = 20
    late = tracker.add([*POINTS, BOX], started(tracker, video, seen), age=age)
    start = seen - 1 - age
    seams = [frame for frame in range(start + 1, seen) if frame % STRIDE == 0]
    in_time = tracker.add([*POINTS, BOX], started(tracker, video, start + 1))
    _, in_time = run(tracker, in_time, video[start + 1 : seen])
    assert np.array_equal(late.points.starts, in_time.points.starts)
    assert np.array_equal(late.boxes.starts, in_time.boxes.starts)
    if not seams:
        assert np.array_equal(late.points.queries, in_time.points.queries)
    tracks, _ = run(tracker, late, video[seen:40])
    assert all(np.isfinite(said.points.xy).all() and len(said.points.ids) == 2 for said in tracks)


def test_tracks_do_not_depend_on_others(tracker: WindowTracker, video: Tensor) -> None:
    """Queries from several start frames, some removed on the way, are each as if they were alone."""
    together = tracker.add(POINTS[:1], started(tracker, video, 2))
    _, together = run(tracker, together, video[2:5])
    together = tracker.add([POINTS[1], BOX], together)
    _, together = run(tracker, together, video[5:7])
    together = tracker.remove([3, 12345], together)
    tracks, _ = run(tracker, together, video[7:40])
    alone = tracker.add(POINTS[:1], started(tracker, video, 2))
    expected, _ = run(tracker, alone, video[2:40])
    for one, other in zip(tracks, expected[5:], strict=True):
        assert one.points.ids.tolist() == [5]
        assert np.allclose(one.points.xy, other.points.xy, atol=EXACT)
        assert one.boxes.ids.tolist() == [9]


def test_corner_order_is_the_heads(video: Tensor) -> None:
    """A head that was trained with y first gets and gives y first."""
    head = BoxHead.from_release(load_reference("tracking_head_boxes").params)
    x_first, y_first = (WindowTracker(grid=GRID, box_head=head, corner_order=order) for order in ("xyxy", "yxyx"))
    turned = BoxQuery(id=9, x_min=BOX.y_min, y_min=BOX.x_min, x_max=BOX.y_max, y_max=BOX.x_max)
    one, _ = run(x_first, x_first.add([BOX], started(x_first, video)), video[1:12])
    other, _ = run(y_first, y_first.add([turned], started(y_first, video)), video[1:12])
    for a, b in zip(one, other, strict=True):
        assert np.allclose(a.boxes.xyxy[:, [1, 0, 3, 2]], b.boxes.xyxy, atol=EXACT)


def test_what_is_refused(tracker: WindowTracker, video: Tensor) -> None:
    empty = tracker.init_state()
    assert tracker.remembered(empty) == 0
    with pytest.raises(QueryError, match="not remembered"):
        tracker.add(POINTS, empty)
    state = tracker.add(POINTS, started(tracker, video, 20))
    assert tracker.remembered(state) == FRAMES
    with pytest.raises(QueryError, match="id 5 is in use"):
        tracker.add(POINTS[:1], state)
    with pytest.raises(QueryError, match="masks cannot be followed here, only points and boxes"):
        tracker.add([MaskQuery(id=1, mask=np.ones(GRID, np.float32))], state)
    points_only = WindowTracker(
        grid=GRID, point_head=PointHead.from_release(load_reference("tracking_head_points").params)
    )
    with pytest.raises(QueryError, match="boxes cannot be followed here, only points"):
        points_only.add([BOX], started(points_only, video))
    with pytest.raises(ValueError, match=r"expected tokens \(17, width\), got \(16, 40\)"):
        tracker.step(video[0, 1:], state)
    with pytest.raises(ValueError, match="a point head, a box head or both"):
        WindowTracker(grid=GRID)


# Seams, with a head whose windows disagree by an amount that is known.


class DriftingReadout:
    """Frames go by their number."""

    config = SimpleNamespace(frames=FRAMES)

    def project(self, features: Tensor) -> KeyValues:
        return KeyValues(features, features)

    def place(self, frames: list[KeyValues]) -> KeyValues:
        return KeyValues(torch.stack([frame.keys for frame in frames]), frames[0].keys)


class Drifting:
    """A point moves by `speed` a frame; each window has an error of its own, which grows to `error` at its end."""

    def __init__(self, speed: float, error: float) -> None:
        self.speed, self.error = speed, error
        self.reads: Counter[int] = Counter()

    def __call__(self, window: KeyValues, queries: Tensor, frame: int) -> tuple[Tensor, Tensor]:
        first, newest = int(window.values.flatten()[0]), int(window.keys.flatten()[-1])
        self.reads[newest] += 1
        sign = 1 if (first // STRIDE) % 2 else -1
        moved = queries + self.speed * frame + sign * self.error * frame / FRAMES
        return moved, torch.full(queries.shape[:2], 0.5 + sign * 0.4)


def drift(start: int, *, frames: int = 120) -> tuple[np.ndarray, np.ndarray, Drifting]:
    """Positions (T,) and confidences (T,) of one track that starts in frame `start`."""
    head = Drifting(0.01, 1.0)
    windows = HeadWindows(cast(AttentionReadout, DriftingReadout()), 1, head)
    part: TrackWindows = no_tracks(1)
    said: list[Any] = []
    for number in range(frames):
        reading, part = windows.step(torch.full((1, 1), float(number)), part, number)
        said += [reading] if part.ids else []
        if number == start:
            part = windows.add([1], np.zeros((1, 1), np.float32), part, number, 0)
    places = np.array([reading.places[0, 0] for reading in said])
    return places, np.array([reading.confidences[0] for reading in said]), head


@pytest.mark.parametrize("start", [0, 3, 7, 8])
def test_seams_do_not_show(start: int) -> None:
    """No step is longer than the windows' own motion and an eighth of what they disagree by.

    Windows that take over at once would jump by the error of half a window, five times as far.
    """
    places, confidences, head = drift(start)
    own_motion = head.speed + head.error / FRAMES
    disagreement = head.error * (FRAMES - 1 + STRIDE - 1) / FRAMES
    allowed = own_motion + disagreement / STRIDE
    assert np.abs(np.diff(places)).max() <= allowed + EXACT
    assert allowed < head.error / 2
    assert np.abs(np.diff(confidences)).max() <= 0.8 / STRIDE + EXACT
    assert places[-1] == pytest.approx(head.speed * len(places), abs=2 * head.error)


def test_position_goes_from_window_to_window_in_equal_parts() -> None:
    """Two windows that stay a constant apart: the position runs straight from one to the other."""

    class Apart(Drifting):
        def __call__(self, window: KeyValues, queries: Tensor, frame: int) -> tuple[Tensor, Tensor]:
            first = int(window.values.flatten()[0])
            return torch.full_like(queries, float(first // STRIDE)), torch.ones(queries.shape[:2])

    windows = HeadWindows(cast(AttentionReadout, DriftingReadout()), 1, Apart(0, 0))
    part, places = no_tracks(1), []
    for number in range(40):
        reading, part = windows.step(torch.full((1, 1), float(number)), part, number)
        places += reading.places[:, 0].tolist()
        if number == 0:
            part = windows.add([1], np.zeros((1, 1), np.float32), part, number, 0)
    expected = [max(0.0, number / STRIDE - 1) for number in range(1, 40)]
    assert places == pytest.approx(expected)


def test_cost_is_constant() -> None:
    """Two reads a frame from the second seam on, and never more."""
    _, _, head = drift(3)
    assert {head.reads[number] for number in range(4, 8)} == {1}
    assert {head.reads[number] for number in range(16, 120) if number % STRIDE} == {2}
    assert {head.reads[number] for number in range(16, 120) if number % STRIDE == 0} == {1}


def test_heads_of_an_odd_window_are_refused() -> None:
    readout = cast(AttentionReadout, SimpleNamespace(config=SimpleNamespace(frames=5)))
    with pytest.raises(ValueError, match="an even number of frames, got 5"):
        HeadWindows(readout, 2, Drifting(0, 0))
