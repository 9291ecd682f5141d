"""The ROS side of a soak test: plays the camera, takes what the node publishes, calls its services."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from rvm_perception.conversions import rgb_to_compressed, rgb_to_image
from rvm_perception.soak_check import Output, digest_of
from rvm_perception.soak_frames import Shot
from rvm_perception.spinning_node import SpinningNode

if TYPE_CHECKING:
    from diagnostic_msgs.msg import DiagnosticArray
    from sensor_msgs.msg import CompressedImage, Image

    from rvm_perception.msg import FeatureMap, QueryAnswers, TrackQueries

NODE = "rvm"
TOPIC = "/soak_camera/image"
_STATUS = f"{NODE}: camera soak_camera"
_DEPTH = 500
_SERVICE_TIMEOUT_S = 30.0


class SoakClient:
    """Talks with the node as long as its `with` block lasts. `outputs` fills from another thread."""

    def __init__(self, domain: int, *, compressed: bool) -> None:
        self.outputs: list[Output] = []
        self.ledger_faults: list[str] = []
        """Reports of the node whose counts do not add up."""
        self.queries, self.answers = 0, 0
        self._status: dict[str, int] = {}
        self._domain, self._compressed = domain, compressed
        self._changed = threading.Condition()
        self._newest_ns = 0
        self._services: dict[str, Any] = {}

    def __enter__(self) -> SoakClient:
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import CompressedImage, Image

        from rvm_perception.msg import FeatureMap, QueryAnswers, TrackQueries

        self._spinning = SpinningNode("rvm_soak", self._domain)
        self._node = self._spinning.node
        qos = QoSProfile(depth=_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        kind, topic = (CompressedImage, f"{TOPIC}/compressed") if self._compressed else (Image, TOPIC)
        self._camera = self._node.create_publisher(kind, topic, qos)
        self._queries = self._node.create_publisher(TrackQueries, f"/{NODE}/track_queries", qos)
        self._features = self._node.create_subscription(FeatureMap, f"/{NODE}/features", self._on_features, qos)
        self._node.create_subscription(QueryAnswers, f"/{NODE}/track_answers", self._on_answers, qos)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._spinning.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._spinning.stop()

    @property
    def is_connected(self) -> bool:
        """Whether the node takes images and queries, and publishes features."""
        return bool(
            self._camera.get_subscription_count()
            and self._queries.get_subscription_count()
            and self._features.get_publisher_count()
        )

    def counts(self) -> dict[str, int]:
        """What the node counted of the camera, in its newest report."""
        with self._changed:
            return dict(self._status)

    def forget_counts(self) -> None:
        """As a new process counts anew."""
        with self._changed:
            self._status = {}

    def publish(self, shot: Shot) -> None:
        """Sends a frame, with whatever is wrong with it."""
        self._camera.publish(message_of(shot, compressed=self._compressed))

    def wait_for_stamp(self, stamp_ns: int, timeout: float) -> bool:
        """Waits until the features of this stamp are the newest that came. False: they did not come."""
        with self._changed:
            return self._changed.wait_for(lambda: self._newest_ns == stamp_ns, timeout)

    def wait_for_counts(self, condition: Callable[[dict[str, int]], bool], timeout: float) -> bool:
        """Waits for a report that fulfils a condition. False: none came."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._status) and condition(self._status), timeout)

    def reset(self) -> None:
        """Calls `~/reset`, and does not wait for the answer."""
        from std_srvs.srv import Trigger

        self._call(Trigger, "reset", Trigger.Request(), wait=False)

    def change_state(self, transition: int) -> bool:
        """A transition of the node's lifecycle; whether it succeeded."""
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        request = ChangeState.Request(transition=Transition(id=transition))
        response = self._call(ChangeState, "change_state", request, wait=True)
        return response is not None and bool(response.success)

    def ask_nonsense(self, numbers: random.Random) -> None:
        """Publishes a request for tracks that can be anything."""
        self.queries += 1
        self._queries.publish(nonsense(numbers, f"soak-{self.queries}"))

    def _call(self, kind: Any, name: str, request: Any, *, wait: bool) -> Any:
        if name not in self._services:
            self._services[name] = self._node.create_client(kind, f"/{NODE}/{name}")
        client = self._services[name]
        if not client.wait_for_service(timeout_sec=_SERVICE_TIMEOUT_S):
            return None
        future = client.call_async(request)
        deadline = time.monotonic() + _SERVICE_TIMEOUT_S
        while wait and not future.done() and time.monotonic() < deadline:
            time.sleep(0.002)
        return future.result() if future.done() else None

    def _on_features(self, message: FeatureMap) -> None:
        received_ns = time.time_ns()
        stamp = message.header.stamp
        output = Output(
            stamp_ns=int(stamp.sec) * 10**9 + int(stamp.nanosec),
            epoch=message.epoch,
            index=message.index,
            skipped=message.skipped,
            digest=digest_of(message.cls.tobytes(), message.data.tobytes()),
            image_size=(message.image_height, message.image_width),
            received_ns=received_ns,
        )
        with self._changed:
            self.outputs.append(output)
            self._newest_ns = output.stamp_ns
            self._changed.notify_all()

    def _on_answers(self, message: QueryAnswers) -> None:
        self.answers += 1

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name != _STATUS:
                continue
            counts = {pair.key: int(pair.value) for pair in status.values if pair.value.lstrip("-").isdigit()}
            fault = ledger_fault(counts)
            with self._changed:
                if fault:
                    self.ledger_faults.append(fault)
                self._status = counts
                self._changed.notify_all()


def ledger_fault(counts: dict[str, int]) -> str:
    """What does not add up in a camera's counts; empty: nothing."""
    names = ("received", "processed", "dropped", "rejected", "waiting")
    received, processed, dropped, rejected, waiting = (counts.get(name, 0) for name in names)
    if received != processed + dropped + rejected + waiting:
        return ", ".join(f"{name} {counts.get(name, 0)}" for name in names)
    reasons = sum(count for name, count in counts.items() if name.startswith("rejected_"))
    if reasons != dropped + rejected:
        return f"dropped {dropped}, rejected {rejected}, but {reasons} by reason"
    return ""


def message_of(shot: Shot, *, compressed: bool) -> Image | CompressedImage:
    """The message of a shot. JPEG would change the pixels, so what is compressed is a PNG."""
    from builtin_interfaces.msg import Time
    from std_msgs.msg import Header

    stamp = Time(sec=shot.stamp_ns // 10**9, nanosec=shot.stamp_ns % 10**9)
    header = Header(stamp=stamp, frame_id=shot.frame_id)
    message: Any = rgb_to_compressed(shot.image, header, "png") if compressed else rgb_to_image(shot.image, header)
    if shot.fault == "encoding":
        if compressed:
            message.data[:4] = message.data[4:8]
        else:
            message.encoding = "8UC3"
    elif shot.fault == "wrong_size" and not compressed:
        message.step -= 1
    elif shot.fault == "empty":
        del message.data[:]
    elif shot.fault in ("corrupt", "wrong_size"):
        del message.data[len(message.data) * 2 // 3 :]
    return message


def nonsense(numbers: random.Random, request_id: str) -> TrackQueries:
    """A request for tracks: some of it right, most of it not."""
    from rvm_perception.msg import TrackQueries

    def values(count: int) -> list[float]:
        usual = [numbers.uniform(-20, 120) for _ in range(count)]
        return [numbers.choice([value, value, float("nan"), float("inf"), -1e30]) for value in usual]

    counts = [numbers.choice([0, 1, 2, 3]) for _ in range(4)]
    message = TrackQueries(request_id=request_id, clear=numbers.random() < 0.3)
    message.point_x, message.point_y = values(counts[0]), values(counts[numbers.choice([0, 0, 1])])
    message.point_ids = [
        numbers.choice([0, 1, 2**64 - 1, numbers.randrange(9)]) for _ in range(numbers.choice([0, counts[0]]))
    ]
    for name in ("box_x_min", "box_y_min", "box_x_max", "box_y_max"):
        setattr(message, name, values(counts[2]))
    message.remove_ids = [numbers.randrange(2**64) for _ in range(counts[3])]
    if numbers.random() < 0.3:
        labels = np.frombuffer(numbers.randbytes(48 * 64), np.uint8)
        message.mask.height, message.mask.width, message.mask.step = 48, 64, 64
        message.mask.encoding = numbers.choice(["mono8", "mono16", "rgb8", ""])
        message.mask.data.frombytes(labels.tobytes())
    return message
