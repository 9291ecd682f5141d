"""The demo's own ROS node: asks for tracks, and collects feature maps, tracks and diagnostics in memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rvm_perception.feature_map import feature_map_to_numpy
from rvm_perception.spinning_node import SpinningNode

if TYPE_CHECKING:
    from builtin_interfaces.msg import Time
    from diagnostic_msgs.msg import DiagnosticArray
    from std_msgs.msg import Header

    from rvm_core.tracking.pixels import PixelTracks
    from rvm_perception.demo_clip import DemoClip
    from rvm_perception.msg import BoxTracks, FeatureMap, PointTracks, QueryAnswers, TrackQueries

_QUEUE_DEPTH = 50
_REQUEST = "demo"


@dataclass(frozen=True, kw_only=True)
class ReceivedFeatures:
    """One feature map and when it came."""

    stamp_ns: int
    """Stamp of the source image."""
    received_ns: int
    """This process's clock at reception."""
    skipped: int
    """Images that the node received but did not process since the map before."""
    model: str
    features: npt.NDArray[Any]
    """(rows, cols, channels)"""
    grid_to_image: npt.NDArray[np.float64]
    """(2, 3) affine from grid coordinates to pixels of the source image."""
    image_size: tuple[int, int]
    """Height and width of the source image, pixels."""

    @property
    def latency_ms(self) -> float:
        """From the stamp to the reception."""
        return (self.received_ns - self.stamp_ns) / 1e6

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """(rows, cols), true where the cell's centre lies in the image."""
        rows, cols, _ = self.features.shape
        col, row = np.meshgrid(np.arange(cols) + 0.5, np.arange(rows) + 0.5)
        x, y = np.tensordot(self.grid_to_image, np.stack([col, row, np.ones_like(col)]), axes=1)
        height, width = self.image_size
        inside: npt.NDArray[np.bool_] = (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
        return inside


@dataclass(kw_only=True)
class ReceivedTracks:
    """The tracks of one frame."""

    stamp_ns: int
    """Stamp of the source image."""
    tracks: PixelTracks
    """Points and boxes that have come so far."""
    labels: dict[int, str] = field(default_factory=dict)
    """Names by id."""


@dataclass(frozen=True, kw_only=True)
class QueryAnswer:
    """What the node said to one of the demo's queries."""

    kind: str
    """"point" or "box"."""
    id: int
    """0 if none was given."""
    reason: str
    """Why it was refused; "" if it was accepted."""


class Listener:
    """Talks with a node as long as its `with` block lasts.

    It has the clip's points and boxes followed, and subscribes to features, tracks and /diagnostics. `features`,
    `tracks` (by stamp), `answers`, `diagnostics` (name of the status -> keys and values, the newest of each) and
    `reports` (the number of arrays of diagnostics so far) fill from another thread.
    """

    def __init__(self, node: str, camera_topic: str, domain: int, clip: DemoClip) -> None:
        """node: its full name, "/rvm"."""
        self.features: list[ReceivedFeatures] = []
        self.tracks: dict[int, ReceivedTracks] = {}
        self.answers: list[QueryAnswer] = []
        self.diagnostics: dict[str, dict[str, str]] = {}
        self.reports = 0
        self._name, self._camera_topic, self._domain, self._clip = node, camera_topic, domain, clip
        self._asked = False

    def __enter__(self) -> Listener:
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.qos import QoSProfile, ReliabilityPolicy

        from rvm_perception.msg import BoxTracks, FeatureMap, PointTracks, QueryAnswers, TrackQueries

        self._spinning = SpinningNode("rvm_demo", self._domain)
        self._node = self._spinning.node
        qos = QoSProfile(depth=_QUEUE_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        listen = self._node.create_subscription
        self._subscription = listen(FeatureMap, f"{self._name}/features", self._on_features, qos)
        listen(PointTracks, f"{self._name}/point_tracks", self._on_points, qos)
        listen(BoxTracks, f"{self._name}/box_tracks", self._on_boxes, qos)
        listen(QueryAnswers, f"{self._name}/track_answers", self._on_answers, qos)
        self._queries = self._node.create_publisher(TrackQueries, f"{self._name}/track_queries", qos)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._spinning.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._spinning.stop()

    @property
    def is_connected(self) -> bool:
        """Whether somebody publishes features, takes queries, and subscribes to the camera's topic."""
        return bool(
            self._subscription.get_publisher_count()
            and self._queries.get_subscription_count()
            and self._node.count_subscribers(self._camera_topic)
        )

    def last_received_ns(self) -> int:
        """When the newest feature map came, on the clock of `time.time_ns`; 0 before the first."""
        return self.features[-1].received_ns if self.features else 0

    def _on_features(self, message: FeatureMap) -> None:
        received_ns = time.time_ns()
        self._ask(message.header)
        self.features.append(
            ReceivedFeatures(
                stamp_ns=_nanoseconds(message.header.stamp),
                received_ns=received_ns,
                skipped=message.skipped,
                model=message.model,
                features=feature_map_to_numpy(message),
                grid_to_image=np.asarray(message.grid_to_image, np.float64).reshape(2, 3),
                image_size=(message.image_height, message.image_width),
            )
        )

    def _ask(self, header: Header) -> None:
        """Asks for tracks once, in the clip's frame for it or the first one after it that the node has processed."""
        if self._asked:
            return
        stamp_ns = _nanoseconds(header.stamp)
        first_ns = self.features[0].stamp_ns if self.features else stamp_ns
        if round((stamp_ns - first_ns) / 1e9 * self._clip.rate) >= self._clip.query_frame:
            self._queries.publish(queries_message(self._clip, header))
            self._asked = True

    def _on_points(self, message: PointTracks) -> None:
        from rvm_core.tracking.base import PointTracks

        received = self._of_stamp(message)
        xy = np.stack([message.x, message.y], axis=-1).astype(np.float32)
        received.tracks = replace(received.tracks, points=PointTracks(xy=xy, **_of_every_kind(message)))

    def _on_boxes(self, message: BoxTracks) -> None:
        from rvm_core.tracking.base import BoxTracks

        received = self._of_stamp(message)
        xyxy = np.stack([message.x_min, message.y_min, message.x_max, message.y_max], axis=-1).astype(np.float32)
        received.tracks = replace(received.tracks, boxes=BoxTracks(xyxy=xyxy, **_of_every_kind(message)))

    def _of_stamp(self, message: PointTracks | BoxTracks) -> ReceivedTracks:
        from rvm_core.tracking.pixels import PixelTracks

        stamp = _nanoseconds(message.header.stamp)
        received = self.tracks.setdefault(stamp, ReceivedTracks(stamp_ns=stamp, tracks=PixelTracks()))
        received.labels |= {id: label for id, label in zip(message.ids, message.labels, strict=True) if label}
        return received

    def _on_answers(self, message: QueryAnswers) -> None:
        if message.request_id != _REQUEST:
            return
        names = {message.POINT: "point", message.BOX: "box"}
        for kind, id, reason in zip(message.kind, message.ids, message.reason, strict=True):
            self.answers.append(QueryAnswer(kind=names.get(kind, str(kind)), id=id, reason=reason))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            self.diagnostics[status.name] = {**values, "message": status.message, "hardware_id": status.hardware_id}
        self.reports += 1


def queries_message(clip: DemoClip, header: Header) -> TrackQueries:
    """Asks for the points and boxes of the clip, in the frame with this header."""
    from rvm_perception.msg import TrackQueries

    message = TrackQueries(header=header, request_id=_REQUEST)
    for given in clip.points:
        x, y = given.pixels
        message.point_x.append(x)
        message.point_y.append(y)
    message.point_labels = [given.label for given in clip.points]
    for given in clip.boxes:
        x_min, y_min, x_max, y_max = given.pixels
        message.box_x_min.append(x_min)
        message.box_y_min.append(y_min)
        message.box_x_max.append(x_max)
        message.box_y_max.append(y_max)
    message.box_labels = [given.label for given in clip.boxes]
    return message


def _of_every_kind(message: PointTracks | BoxTracks) -> dict[str, npt.NDArray[Any]]:
    return {
        "ids": np.asarray(message.ids, np.uint64),
        "status": np.asarray(message.status, np.uint8),
        "confidence": np.asarray(message.confidence, np.float32),
    }


def _nanoseconds(stamp: Time) -> int:
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)
