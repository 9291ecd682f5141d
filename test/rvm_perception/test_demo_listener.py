"""What the demo asks the node for, and what it makes of the messages. The rest runs in the tests of the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed")

from rvm_core.tracking.base import Status
from rvm_perception.demo_clip import DemoClip
from rvm_perception.demo_listener import Listener, queries_message
from rvm_perception.msg import BoxTracks, FeatureMap, PointTracks, QueryAnswers
from rvm_perception.track_arguments import Given

CLIP = DemoClip(
    video=Path("a.mp4"),
    rate=10.0,
    frames=30,
    size=(48, 72),
    points=[Given((1, 2), "a"), Given((3.5, 4), "")],
    boxes=[Given((5, 6, 7, 8), "b")],
    query_frame=3,
)


class Publisher:
    def __init__(self) -> None:
        self.messages: list[Any] = []

    def publish(self, message: Any) -> None:
        self.messages.append(message)


@pytest.fixture
def listener() -> Listener:
    """One that is not connected."""
    listener = Listener("/rvm", "/camera/image_raw", 0, CLIP)
    listener._queries = Publisher()
    return listener


def with_stamp(message: Any, stamp_ms: int) -> Any:
    message.header.stamp.sec, milliseconds = divmod(stamp_ms, 1000)
    message.header.stamp.nanosec = milliseconds * 10**6
    return message


def features(stamp_ms: int) -> FeatureMap:
    message = FeatureMap(rows=1, cols=1, channels=1, dtype=FeatureMap.FLOAT32)
    message.data.frombytes(np.zeros(1, "<f4").tobytes())
    return with_stamp(message, stamp_ms)


def test_queries_are_those_of_the_clip_in_the_frame_of_the_header() -> None:
    message = queries_message(CLIP, with_stamp(FeatureMap(), 4321).header)
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (4, 321 * 10**6)
    assert list(message.point_x) == [1, 3.5] and list(message.point_y) == [2, 4]
    assert message.point_labels == ["a", ""] and message.box_labels == ["b"]
    assert [
        list(corner) for corner in (message.box_x_min, message.box_y_min, message.box_x_max, message.box_y_max)
    ] == [
        [5],
        [6],
        [7],
        [8],
    ]
    assert not message.point_ids and not message.box_ids and not message.mask.data


@pytest.mark.parametrize(
    ("stamps", "asked"),
    [
        ([5000, 5100, 5200, 5300, 5400], 5300),
        ([5000, 5260], 5260),  # a frame that came late is taken for the next one
        ([5000, 5100, 5900, 6000], 5900),  # frames that the node dropped
        ([5000, 5240], None),
    ],
)
def test_tracks_are_asked_for_once_in_the_clips_frame_or_after_it(
    listener: Listener, stamps: list[int], asked: int | None
) -> None:
    for stamp in stamps:
        listener._on_features(features(stamp))
    sent = [m.header.stamp.sec * 1000 + m.header.stamp.nanosec // 10**6 for m in listener._queries.messages]
    assert sent == ([] if asked is None else [asked])
    assert len(listener.features) == len(stamps)


def test_points_and_boxes_of_a_frame_come_together(listener: Listener) -> None:
    points = PointTracks(ids=[1, 2], labels=["a", ""], status=[1, 3], x=[1.5, np.nan], y=[2.5, np.nan])
    points.confidence = [0.75, 0.0]
    boxes = BoxTracks(ids=[3], labels=["b"], status=[2], x_min=[1.0], y_min=[2.0], x_max=[3.0], y_max=[4.0])
    boxes.confidence = [0.5]
    listener._on_points(with_stamp(points, 70))
    listener._on_boxes(with_stamp(boxes, 70))
    listener._on_boxes(with_stamp(BoxTracks(), 110))
    assert sorted(listener.tracks) == [70 * 10**6, 110 * 10**6]
    received = listener.tracks[70 * 10**6]
    assert received.labels == {1: "a", 3: "b"}
    assert received.tracks.points.ids.tolist() == [1, 2] and received.tracks.boxes.ids.tolist() == [3]
    np.testing.assert_array_equal(received.tracks.points.xy, [[1.5, 2.5], [np.nan, np.nan]])
    np.testing.assert_array_equal(received.tracks.boxes.xyxy, [[1, 2, 3, 4]])
    assert received.tracks.points.status.tolist() == [Status.VISIBLE, Status.LOST]
    assert received.tracks.boxes.confidence.dtype == np.float32
    assert not len(listener.tracks[110 * 10**6].tracks.boxes.ids)


def test_answers_to_others_are_passed_over(listener: Listener) -> None:
    answers = QueryAnswers(
        request_id="demo",
        kind=[QueryAnswers.POINT, QueryAnswers.BOX],
        index=[0, 0],
        ids=[1, 0],
        accepted=[True, False],
        reason=["", "why"],
    )
    listener._on_answers(answers)
    answers.request_id = "planner"
    listener._on_answers(answers)
    assert [(answer.kind, answer.id, answer.reason) for answer in listener.answers] == [
        ("point", 1, ""),
        ("box", 0, "why"),
    ]
