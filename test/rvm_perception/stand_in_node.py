"""A process in place of the real node for tests of the demo: features are the colours of the image, seen coarsely.

What it is asked to follow stays where it is, and boxes are refused. `python stand_in_node.py MODE`; SIGINT ends it.
Modes: `publish`, `silent` (takes images, publishes nothing), `fails` (publishes, but ends with exit code 3), `dies`
(ends at the first image).
"""

from __future__ import annotations

import signal
import sys
import threading

import cv2
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image

from rvm_perception.conversions import image_to_rgb
from rvm_perception.msg import FeatureMap, PointTracks, QueryAnswers, TrackQueries

ROWS, COLS = 4, 6
EXIT_CODES = {"fails": 3, "dies": 4}


class StandIn:
    """Answers every image, counts, and tells the counts."""

    def __init__(self, node: rclpy.node.Node, mode: str, stop: threading.Event) -> None:
        self._mode, self._stop, self._processed = mode, stop, 0
        best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._features = node.create_publisher(FeatureMap, "~/features", 5)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._answers = node.create_publisher(QueryAnswers, "~/track_answers", 10)
        self._tracks = node.create_publisher(PointTracks, "~/point_tracks", 5)
        self._points = PointTracks()
        node.create_subscription(Image, "/camera/image_raw", self._on_image, best_effort)
        node.create_subscription(TrackQueries, "~/track_queries", self._on_queries, 10)

    def _on_queries(self, message: TrackQueries) -> None:
        points, boxes = len(message.point_x), len(message.box_x_min)
        answers = QueryAnswers(header=message.header, request_id=message.request_id)
        answers.kind = [QueryAnswers.POINT] * points + [QueryAnswers.BOX] * boxes
        answers.index = [*range(points), *range(boxes)]
        answers.ids = [*range(1, points + 1), *([0] * boxes)]
        answers.accepted = [True] * points + [False] * boxes
        answers.reason = [""] * points + ["it follows no boxes"] * boxes
        self._answers.publish(answers)
        self._points.ids, self._points.labels = range(1, points + 1), message.point_labels
        self._points.x, self._points.y = message.point_x, message.point_y
        self._points.status, self._points.confidence = [PointTracks.VISIBLE] * points, [0.5] * points

    def _on_image(self, message: Image) -> None:
        self._processed += 1
        if self._mode == "dies":
            self._stop.set()
        elif self._mode != "silent":
            self._features.publish(self._answer(message))
            if self._points.ids:
                self._points.header = message.header
                self._tracks.publish(self._points)
            self.report()  # what is published right before the end may get lost

    def _answer(self, message: Image) -> FeatureMap:
        coarse = cv2.resize(image_to_rgb(message), (COLS, ROWS), interpolation=cv2.INTER_AREA).astype("<f4")
        answer = FeatureMap(header=message.header, camera="camera", model="stand-in (random weights)")
        answer.index = self._processed - 1
        answer.rows, answer.cols, answer.channels = coarse.shape
        answer.dtype = FeatureMap.FLOAT32
        answer.image_height, answer.image_width = message.height, message.width
        answer.grid_to_image = [message.width / COLS, 0.0, 0.0, 0.0, message.height / ROWS, 0.0]
        answer.data.frombytes(coarse.tobytes())
        return answer

    def report(self) -> None:
        counters = {"received": self._processed, "processed": self._processed, "dropped": 0, "rejected": 0, "resets": 0}
        array = DiagnosticArray()
        for name, hardware, values in (
            ("rvm: engine", "cpu", {"model": "stand-in (random weights)", "weights": "random, seed 0"}),
            ("rvm: camera camera", "/camera/image_raw", {**counters, "engine_ms_p50": "1.50", "engine_ms_p95": "nan"}),
        ):
            pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
            array.status.append(DiagnosticStatus(name=name, message="running", hardware_id=hardware, values=pairs))
        self._diagnostics.publish(array)


def main(mode: str) -> int:
    """Runs until SIGINT."""
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("rvm")
    stand_in = StandIn(node, mode, stop)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    print("stand-in is ready", flush=True)
    while not stop.is_set():
        executor.spin_once(timeout_sec=0.05)
    stand_in.report()
    node.destroy_node()
    rclpy.shutdown()
    return EXIT_CODES.get(mode, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
