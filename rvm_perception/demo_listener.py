"""The demo's own ROS node: collects feature maps and diagnostics in memory."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rvm_perception.feature_map import feature_map_to_numpy

if TYPE_CHECKING:
    from diagnostic_msgs.msg import DiagnosticArray

    from rvm_perception.msg import FeatureMap

_QUEUE_DEPTH = 50


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


class Listener:
    """Subscribes to the features and to /diagnostics as long as its `with` block lasts.

    `features`, `diagnostics` (name of the status -> keys and values, the newest of each) and `reports` (the number of
    arrays of diagnostics so far) fill from another thread.
    """

    def __init__(self, features_topic: str, camera_topic: str, domain: int) -> None:
        self.features: list[ReceivedFeatures] = []
        self.diagnostics: dict[str, dict[str, str]] = {}
        self.reports = 0
        self._features_topic, self._camera_topic, self._domain = features_topic, camera_topic, domain
        self._done = threading.Event()

    def __enter__(self) -> Listener:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from rclpy.signals import SignalHandlerOptions

        from rvm_perception.msg import FeatureMap

        self._context = Context()
        rclpy.init(
            args=[], context=self._context, domain_id=self._domain, signal_handler_options=SignalHandlerOptions.NO
        )
        self._node = rclpy.create_node("rvm_demo", context=self._context)
        qos = QoSProfile(depth=_QUEUE_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        self._subscription = self._node.create_subscription(FeatureMap, self._features_topic, self._on_features, qos)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name="demo_listener", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join(timeout=2.0)
        self._executor.shutdown(timeout_sec=1.0)
        self._node.destroy_node()
        self._context.try_shutdown()

    @property
    def is_connected(self) -> bool:
        """Whether somebody publishes features to this listener and somebody subscribes to the camera's topic."""
        return bool(self._subscription.get_publisher_count() and self._node.count_subscribers(self._camera_topic))

    def last_received_ns(self) -> int:
        """When the newest feature map came, on the clock of `time.time_ns`; 0 before the first."""
        return self.features[-1].received_ns if self.features else 0

    def _spin(self) -> None:
        from rclpy.executors import ExternalShutdownException

        try:
            while not self._done.is_set():
                self._executor.spin_once(timeout_sec=0.1)
        except ExternalShutdownException:
            pass

    def _on_features(self, message: FeatureMap) -> None:
        received_ns = time.time_ns()
        stamp = message.header.stamp
        self.features.append(
            ReceivedFeatures(
                stamp_ns=stamp.sec * 10**9 + stamp.nanosec,
                received_ns=received_ns,
                skipped=message.skipped,
                model=message.model,
                features=feature_map_to_numpy(message),
                grid_to_image=np.asarray(message.grid_to_image, np.float64).reshape(2, 3),
                image_size=(message.image_height, message.image_width),
            )
        )

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            self.diagnostics[status.name] = {**values, "message": status.message, "hardware_id": status.hardware_id}
        self.reports += 1
