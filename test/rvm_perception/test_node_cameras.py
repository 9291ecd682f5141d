"""Several cameras on one engine: each with its own state and counters, in turn or at once, whatever the others do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed")

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402

from live_node import Client, wait_for  # noqa: E402
from node_in_process import SUCCESS, Direct, Gate, LocalNode, message, picture  # noqa: E402
from rvm_perception.camera import Camera  # noqa: E402
from rvm_perception.faulty_engine import Fault, order  # noqa: E402

CAMERAS = ("left", "middle", "right")

TOLERANCE = 2e-5
"""Largest difference of features in a batch to those of the same stream alone: float32, sums in another order."""


class Rig:
    """A node with three cameras and a client for each."""

    def __init__(self, name: str, stack: ExitStack, batching: str) -> None:
        self.gate = Gate()
        self.local = stack.enter_context(LocalNode(name, CAMERAS, gate=self.gate, batching=batching))
        self.clients: dict[str, Client] = {}
        for camera in CAMERAS:
            client = Client(name, topic=f"/{name}/{camera}/image", features=f"{camera}/features")
            self.clients[camera] = stack.enter_context(client)
        self.directs = {camera: Direct() for camera in CAMERAS}
        self.indices = dict.fromkeys(CAMERAS, 0)
        self.epoch = 0

    def fresh(self) -> None:
        """Configures and activates the node anew, so that all counters are 0 and `epoch` is a new one."""
        if self.local.state == "active":
            assert self.local.deactivate() == self.local.cleanup() == SUCCESS
        self.local.start()
        self.epoch = self.local.camera("left").stream.epoch
        for camera, client in self.clients.items():
            client.wait_for_node()
            client.features.clear()
            self.directs[camera].reset()
            self.indices[camera] = 0

    def publish(self, camera: str, rgb: np.ndarray) -> None:
        self.clients[camera].publish(message(rgb, self.indices[camera]))
        self.indices[camera] += 1

    def together(self, frames: dict[str, np.ndarray]) -> None:
        """Has a frame of each of these cameras wait while the engine is held up, then lets it go."""
        received = {camera: self.local.camera(camera).stream.received for camera in frames}
        # Something to be held up with, which gives no features of these cameras.
        self.gate.close()
        holder = next((camera for camera in CAMERAS if camera not in frames), None)
        first = holder or CAMERAS[0]
        self.publish(first, picture(1000 + self.indices[first]))
        wait_for(lambda: self.gate.waiting == 1, "a step to be held up")
        for camera, rgb in frames.items():
            self.publish(camera, rgb)
        for camera in frames:
            expected = received[camera] + 1 + (camera == first)
            wait_for(lambda c=camera, e=expected: self.local.camera(c).stream.received == e, camera)  # type: ignore[misc]
        self.gate.batches.clear()
        self.gate.open()

    def settled(self) -> None:
        for camera in CAMERAS:
            wait_for(lambda c=camera: self.local.camera(c).stream.ledger()["waiting"] == 0, f"{camera} to be done")  # type: ignore[misc]


@pytest.fixture(scope="module", params=["never", "always"])
def both(request: pytest.FixtureRequest, ros_environment: dict[str, str]) -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(f"rig_{request.param}", stack, request.param)


@pytest.fixture
def rig(both: Rig) -> Rig:
    both.fresh()
    return both


def test_each_camera_gives_what_it_gives_alone(rig: Rig) -> None:
    is_batched = rig.local.name == "rig_always"
    sent: dict[str, dict[int, np.ndarray]] = {camera: {} for camera in CAMERAS}
    for number in range(3):
        frames = {camera: picture(10 * number + i) for i, camera in enumerate(CAMERAS)}
        sent["left"][rig.indices["left"]] = picture(1000 + rig.indices["left"])
        for camera, rgb in frames.items():
            sent[camera][rig.indices[camera] + (camera == "left")] = rgb
        rig.together(frames)
        rig.settled()
        assert rig.gate.batches == ([3] if is_batched else [1, 1, 1])
    for camera in CAMERAS:
        received = rig.clients[camera].features
        wait_for(lambda r=received, c=camera: len(r) == len(sent[c]), f"features of {camera}")  # type: ignore[misc]
        for i, features in enumerate(received):
            assert (features.camera, features.epoch, features.index) == (camera, rig.epoch, i)
            assert rig.directs[camera].difference(features, sent[camera][i]) < (TOLERANCE if is_batched else 1e-9)
    values = rig.local.camera("middle").values()
    assert (values["received"], values["processed"], values["resets"]) == (3, 3, 0)


@pytest.mark.parametrize("fault", [Fault.RAISE, Fault.NAN, None], ids=["raises", "nan", "corrupt"])
def test_a_broken_camera_does_not_touch_the_others(rig: Rig, fault: Fault | None) -> None:
    for number in range(3):
        frames = {"left": picture(number), "middle": picture(50), "right": picture(100 + number)}
        if fault is not None:
            frames["middle"] = order(frames["middle"], fault)
        rig.together(
            {camera: rgb for camera, rgb in frames.items() if camera != "left" and (fault or camera == "right")}
        )
        if fault is None:
            broken = message(frames["middle"], 0)
            broken.data = broken.data[:-1]
            rig.clients["middle"].publish(broken)
            count = number + 1
            wait_for(lambda n=count: rig.local.camera("middle").stream.received == n, "the corrupt image")  # type: ignore[misc]
        rig.settled()
        if number == 1:
            level, text = rig.local.condition("middle")
            assert level == (DiagnosticStatus.WARN if fault is None else DiagnosticStatus.ERROR), text
            assert rig.local.condition("right")[0] == DiagnosticStatus.OK
    for camera, start in (("left", 1000), ("right", 100)):
        features = rig.clients[camera].features
        wait_for(lambda f=features: len(f) == 3, f"all features of {camera}")  # type: ignore[misc]
        for i, features_of in enumerate(features):
            assert (features_of.epoch, features_of.index) == (rig.epoch, i)
            assert rig.directs[camera].difference(features_of, picture(start + i)) < TOLERANCE
    middle = rig.local.camera("middle").stream
    assert middle.ledger()["processed"] == 0 and middle.ledger()["rejected"] == 3
    assert rig.clients["middle"].features == []


def test_a_stalled_camera_does_not_hold_up_the_others(rig: Rig) -> None:
    rig.local.do(lambda: rig.local.node.set_parameters([Parameter("stall_timeout", value=0.5)]))
    for i in range(3):
        for camera in ("left", "right"):
            assert rig.clients[camera].exchange(message(picture(i), i)).index == i
    wait_for(lambda: rig.local.condition("middle")[0] == DiagnosticStatus.WARN, "the stall to be noticed")
    _, text = rig.local.condition("middle")
    assert "no image on" in text and "test_client" in text and "reliable" in text
    assert rig.clients["left"].exchange(message(picture(9), 9)).index == 3


def test_the_order_is_fair_when_one_camera_floods(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    stepped: list[str] = []
    worker = rig.local.node._worker
    assert worker is not None
    process = worker._process

    def record(cameras: Sequence[Camera]) -> None:
        stepped.extend(camera.name for camera in cameras)
        process(cameras)

    monkeypatch.setattr(worker, "_process", record)

    def receive(camera: str, seed: int) -> None:
        stream = rig.local.camera(camera).stream
        expected = stream.received + 1
        rig.publish(camera, picture(seed))
        wait_for(lambda: stream.received == expected, f"a frame of {camera}")

    for number in range(4):
        rig.gate.close()
        receive("left", number)
        wait_for(lambda: rig.gate.waiting == 1, "a step to be held up")
        for camera in ("left", "left", "left", "middle", "right", "left"):
            receive(camera, number)
        rig.gate.open()
        rig.settled()
    # Of each round: the step that was held up, then those of all three.
    assert len({stepped[4 * number + 1] for number in range(4)}) > 1, "none is always the first of a round"
    assert {camera: stepped.count(camera) for camera in CAMERAS} == {"left": 8, "middle": 4, "right": 4}
    ledger = rig.local.camera("left").stream.ledger()
    assert (ledger["received"], ledger["processed"], ledger["dropped"]) == (20, 8, 12), "it floods its own mailbox"
