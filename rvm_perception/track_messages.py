"""Messages about tracks: where they are in one frame, and the answers to queries."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rvm_core.tracking.base import Status
from rvm_core.tracking.pixels import label_image, tracks_to_pixels
from rvm_perception.conversions import labels_to_image
from rvm_perception.track_queries import Answers, Kind
from rvm_perception.track_session import TrackState

if TYPE_CHECKING:
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from rvm_perception.msg import BoxTracks, MaskTracks, PointTracks, QueryAnswers


def vision_messages() -> ModuleType | None:
    """vision_msgs.msg where it is installed; None where it is not, as it is no part of a ROS base installation."""
    try:
        return import_module("vision_msgs.msg")
    except ImportError:
        return None


class TrackMessages:
    """Builds the messages of one frame. Positions are in source pixels, held within the image.

    Args:
        state: after the frame; it has seen at least one.
        header: of the source image.
        identity: the fields camera, model, weights_hash, tracker, epoch and index of the messages.
    """

    def __init__(self, state: TrackState, header: Header, identity: dict[str, Any]) -> None:
        assert state.frame_map is not None
        self._state = state
        self._header = header
        self._frame_map = state.frame_map
        self._size = np.array([state.frame_map.source_width, state.frame_map.source_height], np.float32)
        self._common = {
            "header": header,
            **identity,
            "image_width": state.frame_map.source_width,
            "image_height": state.frame_map.source_height,
        }
        self.pixels = tracks_to_pixels(state.tracks, state.frame_map)
        """Where the tracks are, without those lost; positions may lie outside of the image."""

    def points(self) -> PointTracks:
        from rvm_perception.msg import PointTracks

        tracks = self.pixels.points
        message = PointTracks(**self._common)
        count = self._fill(message, Kind.POINT, tracks)
        columns = np.clip(tracks.xy, 0, self._size).T
        _fill_positions((message.x, message.y), columns, count)
        return message

    def boxes(self) -> BoxTracks:
        from rvm_perception.msg import BoxTracks

        tracks = self.pixels.boxes
        message = BoxTracks(**self._common)
        count = self._fill(message, Kind.BOX, tracks)
        columns = np.clip(tracks.xyxy, 0, np.tile(self._size, 2)).T
        _fill_positions((message.x_min, message.y_min, message.x_max, message.y_max), columns, count)
        return message

    def masks(self) -> MaskTracks:
        from rvm_perception.msg import MaskTracks

        message = MaskTracks(**self._common)
        self._fill(message, Kind.MASK, self.pixels.masks)
        return message

    def mask_image(self) -> Image:
        """The segments as a label image of the source image's size, mono16; the value of a pixel is the id."""
        return labels_to_image(self.segments, self._header)

    @cached_property
    def segments(self) -> npt.NDArray[np.uint16]:
        """Label image (H, W), uint16: the id of the segment that a pixel of the source image belongs to, or 0."""
        return label_image(self.pixels.masks, self._frame_map, self.pixels.masks.ids.tolist())

    @property
    def reported(self) -> frozenset[Kind]:
        """Kinds of which there is something to say."""
        return self._state.reported

    @property
    def labels(self) -> dict[int, str]:
        """Labels by id, without empty ones."""
        return {track.id: track.label for track in self._state.live.values() if track.label}

    def detections(self, vision: ModuleType) -> Any:
        """The boxes that are not lost as a vision_msgs/Detection2DArray, with the label as the class."""
        boxes = self.pixels.boxes
        array = vision.Detection2DArray(header=self._header)
        corners = np.clip(boxes.xyxy, 0, np.tile(self._size, 2)).tolist()
        for id, box, confidence in zip(boxes.ids.tolist(), corners, boxes.confidence.tolist(), strict=True):
            detection = vision.Detection2D(header=self._header, id=str(id))
            x_min, y_min, x_max, y_max = box
            centre = detection.bbox.center.position
            centre.x, centre.y = (x_min + x_max) / 2, (y_min + y_max) / 2
            detection.bbox.size_x, detection.bbox.size_y = x_max - x_min, y_max - y_min
            result = vision.ObjectHypothesisWithPose()
            result.hypothesis.class_id, result.hypothesis.score = self._label(id), confidence
            detection.results.append(result)
            array.detections.append(detection)
        return array

    def _fill(self, message: Any, kind: Kind, tracks: Any) -> int:
        """The fields that all kinds have: first the tracks, then those lost. Returns how many are lost."""
        lost = [track for track in self._state.lost if track.kind == kind]
        count = len(lost)
        lost_ids = np.array([track.id for track in lost], np.uint64)
        _append(message.ids, np.concatenate([tracks.ids.astype(np.uint64), lost_ids]))
        message.labels = [self._label(id) for id in tracks.ids.tolist()] + [track.label for track in lost]
        _append(message.status, np.concatenate([tracks.status, np.full(count, Status.LOST)]).astype(np.uint8))
        _append(message.confidence, np.concatenate([tracks.confidence, np.zeros(count)]).astype(np.float32))
        return count

    def _label(self, id: int) -> str:
        track = self._state.live.get(id)
        return track.label if track else ""


def answers_message(answers: Answers) -> QueryAnswers:
    """The answer to a request."""
    from rvm_perception.msg import QueryAnswers

    message = QueryAnswers(camera=answers.camera, request_id=answers.request_id, epoch=answers.epoch)
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(answers.stamp_ns, 1_000_000_000)
    message.header.frame_id = answers.frame_id
    message.kind = [int(answer.item.kind) for answer in answers]
    message.index = [answer.item.index for answer in answers]
    message.ids = [answer.id for answer in answers]
    message.accepted = [not answer.reason for answer in answers]
    message.reason = [answer.reason for answer in answers]
    return message


def _fill_positions(fields: Sequence[Any], columns: npt.NDArray[np.float32], lost: int) -> None:
    for field, column in zip(fields, columns, strict=True):
        _append(field, np.concatenate([column, np.full(lost, np.nan)]).astype(np.float32))


def _append(field: Any, values: npt.NDArray[Any]) -> None:
    """Fills an empty array field without rclpy looking at every entry."""
    field.frombytes(np.ascontiguousarray(values).tobytes())
