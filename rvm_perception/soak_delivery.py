"""Which share of images arrives, by size, reliability and transport profile: two processes, no model.

`python -m rvm_perception.soak_delivery send|receive PLAN` are its processes.
"""

from __future__ import annotations

import json
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RATE_HZ = 30.0
SIZES = ((480, 640), (720, 1280), (1080, 1920))
RELIABILITIES = ("best_effort", "reliable")

_CAMERA_DEPTH = 10
"""Images that most drivers keep until they are sent."""
_MATCH_TIMEOUT_S = 20.0
_DRAIN_S = 1.0
_RUN_TIMEOUT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class DeliveryPlan:
    """What is sent."""

    sizes: tuple[tuple[int, int], ...] = SIZES
    """Heights and widths of rgb8 images, pixels."""
    images: int = 90
    """Of each size and reliability, at `RATE_HZ`."""

    def topics(self) -> list[tuple[str, tuple[int, int], str]]:
        """Name, image size and reliability of each topic."""
        return [
            (f"/soak/delivery_{height}_{reliability}", (height, width), reliability)
            for height, width in self.sizes
            for reliability in RELIABILITIES
        ]


def measure_delivery(
    plan: DeliveryPlan, environments: Mapping[str, Mapping[str, str]], out: Path
) -> list[dict[str, Any]]:
    """Rows with the keys profile, size, reliability, sent and received.

    environments: variables of both processes, by the name of the profile.

    Raises `RuntimeError` if a process fails; its log is in the folder `out`.
    """
    from rvm_perception.demo_processes import ChildProcess

    rows = []
    for profile, environment in environments.items():
        logs = {role: out / f"delivery_{role}_{profile}.log" for role in ("receive", "send")}
        given = json.dumps(asdict(plan))
        command = [sys.executable, "-m", "rvm_perception.soak_delivery"]
        with (
            ChildProcess([*command, "receive", given], environment, logs["receive"]) as receiver,
            ChildProcess([*command, "send", given], environment, logs["send"]) as sender,
        ):
            deadline = time.monotonic() + _RUN_TIMEOUT_S
            while sender.poll() is None or receiver.poll() is None:
                if time.monotonic() > deadline or sender.poll() or receiver.poll():
                    raise RuntimeError(
                        f"delivery could not be measured:\n{sender.last_lines()}\n{receiver.last_lines()}"
                    )
                time.sleep(0.05)
        sent, received = (json.loads(logs[role].read_text().splitlines()[-1]) for role in ("send", "receive"))
        for topic, size, reliability in plan.topics():
            rows.append(
                {
                    "profile": profile,
                    "size": f"{size[1]}x{size[0]}",
                    "reliability": reliability,
                    "sent": sent[topic],
                    "received": received.get(topic, 0),
                }
            )
    return rows


def _send(plan: DeliveryPlan) -> None:
    import rclpy
    from sensor_msgs.msg import Image

    node = rclpy.create_node("soak_sender")
    done = node.create_publisher(Image, "/soak/done", _qos("reliable"))
    publishers = {
        topic: node.create_publisher(Image, topic, _qos(reliability, _CAMERA_DEPTH))
        for topic, _, reliability in plan.topics()
    }
    _wait_until(lambda: all(p.get_subscription_count() for p in (*publishers.values(), done)), node)
    for topic, (height, width), _ in plan.topics():
        message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
        message.data = array("B", bytes(3 * width * height))
        start = time.monotonic()
        for number in range(plan.images):
            time.sleep(max(0.0, start + number / RATE_HZ - time.monotonic()))
            publishers[topic].publish(message)
        time.sleep(1 / RATE_HZ)
    time.sleep(_DRAIN_S)
    done.publish(Image())
    time.sleep(_DRAIN_S)
    print(json.dumps(dict.fromkeys(publishers, plan.images)))


def _receive(plan: DeliveryPlan) -> None:
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from sensor_msgs.msg import Image

    node = rclpy.create_node("soak_receiver")
    received: Counter[str] = Counter()
    ended: list[Image] = []
    subscriptions = [node.create_subscription(Image, "/soak/done", ended.append, _qos("reliable"))]
    for topic, _, reliability in plan.topics():
        # As the node subscribes: the newest image is all it wants.
        subscriptions.append(node.create_subscription(Image, topic, _counter(received, topic), _qos(reliability)))
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    deadline = time.monotonic() + _RUN_TIMEOUT_S
    while not ended and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.1)
    print(json.dumps(received))


def _counter(received: Counter[str], topic: str) -> Callable[[Any], None]:
    def count(message: Any) -> None:
        received[topic] += 1

    return count


def _qos(reliability: str, depth: int = 1) -> Any:
    from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy

    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=ReliabilityPolicy[reliability.upper()])


def _wait_until(condition: Callable[[], bool], node: Any) -> None:
    deadline = time.monotonic() + _MATCH_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{node.get_name()} found no partner in {_MATCH_TIMEOUT_S:.0f} s")
        time.sleep(0.02)


def main(arguments: Sequence[str]) -> int:
    """One of the two processes."""
    import rclpy

    role, given = arguments
    values = json.loads(given)
    plan = DeliveryPlan(sizes=tuple((height, width) for height, width in values["sizes"]), images=values["images"])
    rclpy.init(args=[])
    (_send if role == "send" else _receive)(plan)
    rclpy.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
