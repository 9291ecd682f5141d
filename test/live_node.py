"""What the live tests share: the node as a process of its own, and a client that talks to it over DDS."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from rvm_perception.conversions import rgb_to_image
from rvm_perception.msg import BoxTracks, FeatureMap, MaskTracks, PointTracks, QueryAnswers, TrackQueries

TIMEOUT_S = 120.0
"""Bound of every wait: starting a node imports torch, which takes many seconds on a loaded machine."""

RELIABLE = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=50, reliability=ReliabilityPolicy.RELIABLE)

DEEP = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=200, reliability=ReliabilityPolicy.RELIABLE)

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, timeout: float = TIMEOUT_S) -> T:
    """The first true value of the condition. Fails the test, naming what was waited for, when the time is over."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {timeout} s in vain for {what}")


class NodeProcess:
    """`python -m rvm_perception` with parameters, its output kept line by line.

    Each node has a camera topic of its own, /<name>_camera/image, so that nodes that run at once do not share frames.
    """

    def __init__(
        self, environment: dict[str, str], *, name: str = "rvm", module: str = "rvm_perception", **parameters: Any
    ) -> None:
        """module: what is run; rvm_perception.faulty_node for an engine that fails when a picture says so."""
        arguments = [sys.executable, "-m", module, "--ros-args", "-r", f"__node:={name}"]
        for parameter, value in {"camera_topics": f"['/{name}_camera/image']", **parameters}.items():
            arguments += ["-p", f"{parameter}:={str(value).lower() if isinstance(value, bool) else value}"]
        self.process = subprocess.Popen(
            arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for_line(self, text: str) -> None:
        wait_for(lambda: text in self.output or self.process.poll() is not None, f"'{text}' in the node's output")
        assert text in self.output, self.output

    def stop(self, number: int, timeout: float) -> int:
        """Sends a signal and returns the exit code. Fails the test if the process outlives the timeout."""
        self.process.send_signal(number)
        code = self.process.wait(timeout=timeout)
        self._reader.join(timeout=5)
        return code

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(timeout=5)
        if kind is not None:
            print(self.output)


class Client:
    """The camera of a node, and a subscriber of what the node publishes."""

    def __init__(self, node_name: str = "rvm", *, topic: str = "", features: str = "features") -> None:
        topic = topic or f"/{node_name}_camera/image"
        self.node_name = node_name
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = Node("test_client", context=self.context)
        self.features: list[FeatureMap] = []
        self.diagnostics: list[DiagnosticArray] = []
        kind = CompressedImage if topic.endswith("/compressed") else Image
        self.camera = self.node.create_publisher(kind, topic, RELIABLE)
        self.node.create_subscription(FeatureMap, f"/{node_name}/{features}", self.features.append, RELIABLE)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self.diagnostics.append, RELIABLE)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._stop.is_set():
            self.executor.spin_once(timeout_sec=0.05)

    def wait_for_node(self) -> None:
        """Until the node subscribes to the camera and nothing that it publishes for this client is lost."""
        wait_for(lambda: self.camera.get_subscription_count() > 0, "the node's subscription")
        self.wait_until_known()

    def wait_until_known(self) -> None:
        """Until the node knows of the subscriptions that this client has made so far.

        A subscriber cannot see that: it may know of a publisher that does not know of it. But the node learns of
        subscriptions in their order, so what it publishes on one made last tells of all.
        """
        heard: list[DiagnosticArray] = []
        self.node.create_subscription(DiagnosticArray, "/diagnostics", heard.append, RELIABLE)
        prefix = f"{self.node_name}: "
        wait_for(lambda: any(s.name.startswith(prefix) for a in heard for s in a.status), f"what {prefix}reports")

    def publish(self, message: Image | CompressedImage) -> None:
        self.camera.publish(message)

    def exchange(self, message: Image | CompressedImage) -> FeatureMap:
        """Publishes an image and returns the features made from it."""
        count = len(self.features)
        self.publish(message)
        wait_for(lambda: len(self.features) > count, "features")
        return self.features[-1]

    def call(self, kind: Any, name: str, request: Any) -> Any:
        """Calls a service and returns its response."""
        client: Any = self.node.create_client(kind, name)
        assert client.wait_for_service(timeout_sec=TIMEOUT_S), name
        future = client.call_async(request)
        wait_for(future.done, f"the answer of {name}")
        self.node.destroy_client(client)
        return future.result()

    def status(self, name: str, condition: Callable[[dict[str, str], Any], bool]) -> tuple[dict[str, str], Any]:
        """The first status of that name, among those to come, that fulfils the condition: its values and itself."""
        start = len(self.diagnostics)

        def find() -> tuple[dict[str, str], Any] | None:
            for array in self.diagnostics[start:]:
                for entry in array.status:
                    values = {pair.key: pair.value for pair in entry.values}
                    if entry.name == name and condition(values, entry):
                        return values, entry
            return None

        found = wait_for(find, f"the status of {name}")
        assert found is not None
        return found

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        self.executor.shutdown(timeout_sec=1)
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class TrackClient(Client):
    """A client that also asks for tracks and takes them."""

    def __init__(self, node_name: str = "rvm", *, camera: str = "", **arguments: Any) -> None:
        """camera: its name, where the node has several."""
        prefix = f"{camera}/" if camera else ""
        super().__init__(node_name, features=f"{prefix}features", **arguments)
        self.camera_name = camera
        self.answers: list[QueryAnswers] = []
        self.points: list[PointTracks] = []
        self.boxes: list[BoxTracks] = []
        self.masks: list[MaskTracks] = []
        self.queries = self.node.create_publisher(TrackQueries, f"/{node_name}/track_queries", DEEP)
        tracks = ((PointTracks, "point_tracks", self.points), (BoxTracks, "box_tracks", self.boxes))
        topics: list[tuple[Any, str, list[Any]]] = [(QueryAnswers, "track_answers", self.answers)]
        topics += [(kind, f"{prefix}{name}", received) for kind, name, received in tracks]
        topics += [(MaskTracks, f"{prefix}mask_tracks", self.masks)]
        self._subscriptions = [
            self.node.create_subscription(kind, f"/{node_name}/{name}", received.append, DEEP)
            for kind, name, received in topics
        ]

    def wait_for_node(self) -> None:
        super().wait_for_node()
        wait_for(lambda: self.queries.get_subscription_count() > 0, "the node's subscription to queries")
        for subscription in self._subscriptions:
            wait_for(lambda s=subscription: s.get_publisher_count() > 0, subscription.topic_name)  # type: ignore[misc]

    def send(self, request_id: str, **fields: Any) -> None:
        """Publishes a request."""
        self.queries.publish(TrackQueries(request_id=request_id, **{"camera": self.camera_name, **fields}))

    def answer(self, request_id: str) -> QueryAnswers:
        """The answer to a request; each has one."""
        wait_for(lambda: any(a.request_id == request_id for a in self.answers), f"the answer to {request_id}")
        (answer,) = [a for a in self.answers if a.request_id == request_id]
        return answer

    def ask(self, request_id: str, **fields: Any) -> QueryAnswers:
        """Publishes a request and returns the answer."""
        self.send(request_id, **fields)
        return self.answer(request_id)

    @staticmethod
    def at(received: list[T], index: int) -> T:
        """The message of frame `index` among those received."""
        found = wait_for(lambda: [m for m in received if m.header == header(index)], f"tracks of frame {index}")  # type: ignore[attr-defined]
        assert len(found) == 1
        return found[0]


def header(index: int, frame_id: str = "camera_optical_frame") -> Header:
    """The header of frame `index` of a 25 Hz camera that started at 1000 s."""
    return Header(stamp=Time(sec=1000 + index // 25, nanosec=index % 25 * 40_000_000), frame_id=frame_id)


def image(frame_bgr: np.ndarray, index: int, frame_id: str = "camera_optical_frame") -> Image:
    """A frame of a clip as rgb8."""
    return rgb_to_image(np.ascontiguousarray(frame_bgr[..., ::-1]), header(index, frame_id))
