"""Messages about tracks: pixels, ids, labels, lost tracks, the label image and vision_msgs."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rvm_perception.msg", reason="the messages are not built")

from std_msgs.msg import Header  # noqa: E402

from rvm_core.preprocess import Preprocess  # noqa: E402
from rvm_core.tracking.base import BoxTracks, MaskTracks, PointTracks, Status, Tracks  # noqa: E402
from rvm_perception.conversions import image_to_labels  # noqa: E402
from rvm_perception.track_messages import TrackMessages, answers_message, vision_messages  # noqa: E402
from rvm_perception.track_queries import Answer, Answers, Item, Kind  # noqa: E402
from rvm_perception.track_session import Track, TrackState  # noqa: E402

FRAME_MAP = Preprocess(height=64, width=128, policy="letterbox").map(96, 192)
"""A grid of 4x8 cells of 24x24 source pixels."""

LABELS = {5: "corner", 8: "cup", 300: "floor"}


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def state(*lost: Track) -> TrackState:
    soft = np.zeros((1, 4, 8), np.float32)
    soft[0, :, :4] = 1
    kinds = {5: Kind.POINT, 6: Kind.POINT, 8: Kind.BOX, 300: Kind.MASK}
    return TrackState(
        stamps=(1,),
        frame_map=FRAME_MAP,
        live={id: Track(id=id, kind=kind, label=LABELS.get(id, "")) for id, kind in kinds.items()},
        tracks=Tracks(
            points=PointTracks(
                ids=np.array([5, 6], np.uint64),
                xy=np.array([[1.5, 0.5], [9.0, -1.0]], np.float32),
                status=np.array([Status.VISIBLE, Status.OCCLUDED], np.uint8),
                confidence=floats(0.9, 0.2),
            ),
            boxes=BoxTracks(
                ids=np.array([8], np.uint64),
                xyxy=np.array([[1.0, 1.0, 9.0, 3.0]], np.float32),
                status=np.array([Status.VISIBLE], np.uint8),
                confidence=floats(0.75),
            ),
            masks=MaskTracks(
                ids=np.array([300], np.uint64),
                soft=soft,
                status=np.array([Status.VISIBLE], np.uint8),
                confidence=floats(0.5),
            ),
        ),
        lost=lost,
        reported=frozenset(Kind),
    )


HEADER = Header(frame_id="optical")
IDENTITY = {
    "camera": "left",
    "model": "tiny",
    "weights_hash": "ab",
    "tracker": "label_propagation",
    "epoch": 3,
    "index": 7,
}


def messages(*lost: Track) -> TrackMessages:
    return TrackMessages(state(*lost), HEADER, IDENTITY)


def check_common(message: Any) -> None:
    assert message.header == HEADER
    assert {name: getattr(message, name) for name in IDENTITY} == IDENTITY
    assert (message.image_width, message.image_height) == (192, 96)


def test_points_are_in_pixels_within_the_image() -> None:
    message = messages(Track(id=2, kind=Kind.POINT, label="old"), Track(id=3, kind=Kind.BOX, label="")).points()
    check_common(message)
    assert list(message.ids) == [5, 6, 2]
    assert message.labels == ["corner", "", "old"]
    assert list(message.status) == [message.VISIBLE, message.OCCLUDED, message.LOST]
    np.testing.assert_array_equal(message.x, floats(36, 192, np.nan))
    np.testing.assert_array_equal(message.y, floats(12, 0, np.nan))
    np.testing.assert_array_equal(message.confidence, floats(0.9, 0.2, 0))


def test_boxes_are_in_pixels_within_the_image() -> None:
    message = messages(Track(id=3, kind=Kind.BOX, label="")).boxes()
    check_common(message)
    assert list(message.ids) == [8, 3] and message.labels == ["cup", ""]
    assert list(message.status) == [message.VISIBLE, message.LOST]
    corners = np.stack([message.x_min, message.y_min, message.x_max, message.y_max], axis=1)
    np.testing.assert_array_equal(corners, np.stack([floats(24, 24, 192, 72), floats(*[np.nan] * 4)]))


def test_the_mask_image_holds_ids() -> None:
    built = messages(Track(id=301, kind=Kind.MASK, label=""))
    message = built.masks()
    check_common(message)
    assert list(message.ids) == [300, 301] and message.labels == ["floor", ""]
    assert list(message.status) == [message.VISIBLE, message.LOST]
    image = built.mask_image()
    assert (image.height, image.width, image.encoding, image.header) == (96, 192, "mono16", HEADER)
    labels = image_to_labels(image)
    assert (labels[:, :95] == 300).all() and not labels[:, 97:].any()


def test_status_numbers_agree() -> None:
    from rvm_perception.msg import BoxTracks, MaskTracks, PointTracks

    for message in (PointTracks, BoxTracks, MaskTracks):
        assert {status.name: getattr(message, status.name) for status in Status} == {s.name: s.value for s in Status}


def test_answers_become_arrays() -> None:
    message = answers_message(
        Answers(
            stamp_ns=5_000_000_003,
            frame_id="optical",
            camera="left",
            request_id="r1",
            epoch=3,
            entries=(
                Answer(item=Item(kind=Kind.CLEAR), id=0),
                Answer(item=Item(kind=Kind.POINT, index=2), id=2**64 - 1),
                Answer(item=Item(kind=Kind.MASK, index=2**32 - 1), id=0, reason="no"),
            ),
        )
    )
    assert (message.header.stamp.sec, message.header.stamp.nanosec, message.header.frame_id) == (5, 3, "optical")
    assert (message.camera, message.request_id, message.epoch) == ("left", "r1", 3)
    assert list(message.kind) == [message.CLEAR, message.POINT, message.MASK]
    assert list(message.index) == [0, 2, message.WHOLE_PART]
    assert list(message.ids) == [0, 2**64 - 1, 0]
    assert list(message.accepted) == [True, True, False] and message.reason == ["", "", "no"]


class _Vision(ModuleType):
    """The part of vision_msgs.msg that is used, with its layout since ROS 2 Humble."""

    def Detection2DArray(self, header: Any) -> Any:
        return SimpleNamespace(header=header, detections=[])

    def Detection2D(self, header: Any, id: str) -> Any:
        centre = SimpleNamespace(position=SimpleNamespace(x=0.0, y=0.0), theta=0.0)
        box = SimpleNamespace(center=centre, size_x=0.0, size_y=0.0)
        return SimpleNamespace(header=header, id=id, results=[], bbox=box)

    def ObjectHypothesisWithPose(self) -> Any:
        return SimpleNamespace(hypothesis=SimpleNamespace(class_id="", score=0.0))


def check_detections(vision: ModuleType) -> None:
    array = messages(Track(id=3, kind=Kind.BOX, label="")).detections(vision)
    assert array.header == HEADER
    (detection,) = array.detections
    assert (detection.header, detection.id) == (HEADER, "8")
    box = detection.bbox
    assert (box.center.position.x, box.center.position.y, box.size_x, box.size_y) == (108.0, 48.0, 168.0, 48.0)
    (result,) = detection.results
    assert (result.hypothesis.class_id, result.hypothesis.score) == ("cup", 0.75)


def test_detections_with_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vision_msgs", ModuleType("vision_msgs"))
    monkeypatch.setitem(sys.modules, "vision_msgs.msg", _Vision("vision_msgs.msg"))
    vision = vision_messages()
    assert vision is not None
    check_detections(vision)


def test_detections_with_vision_msgs() -> None:
    check_detections(pytest.importorskip("vision_msgs.msg", reason="vision_msgs comes with a ROS installation only"))


def test_without_vision_msgs_there_are_no_detections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vision_msgs.msg", None)
    assert vision_messages() is None
