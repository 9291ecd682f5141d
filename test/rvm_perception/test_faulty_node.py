"""The live node on an engine that fails as the pictures order: its state, its diagnostics, and how it goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("rclpy", reason="ROS is not installed")

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402

from live_node import Client, NodeProcess, header, wait_for  # noqa: E402
from rvm_core import create_engine, load_checkpoint  # noqa: E402
from rvm_core.preprocess import Preprocess  # noqa: E402
from rvm_perception import feature_map_to_numpy  # noqa: E402
from rvm_perception.conversions import rgb_to_image  # noqa: E402
from rvm_perception.faulty_engine import Fault, order  # noqa: E402
from rvm_perception.msg import FeatureMap  # noqa: E402

WEIGHTS = Path(__file__).parents[1] / "data" / "rvm_tiny_official_format.npz"
SIZE = (32, 48)
FAILING = {
    Fault.RAISE: "RuntimeError: the engine was told to fail",
    Fault.MEMORY: "MemoryError: the engine was told to run out of memory",
    Fault.NAN: "NaN or infinite",
    Fault.INFINITE: "NaN or infinite",
}
"""What the node says of each fault that a step does not survive."""

NODE: dict[str, Any] = {
    "weights": str(WEIGHTS), "backend": "torch", "precision": "fp32", "device": "cpu", "height": SIZE[0],
    "width": SIZE[1], "tracking": "none", "input_reliability": "reliable", "max_gap": 0.0, "max_failures": 3,
    "step_timeout": 1.0,
}  # fmt: skip
CAMERA = "faulty: camera faulty_camera"


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (96, 144, 3), np.uint8)


class Direct:
    """The same frames through the same engine, without ROS and without faults."""

    def __init__(self) -> None:
        self.engine = create_engine(
            load_checkpoint(WEIGHTS), backend="torch", precision="fp32", image_size=SIZE, device="cpu"
        )
        self.preprocess = Preprocess(height=SIZE[0], width=SIZE[1], policy="letterbox")
        self.state = self.engine.init_state()

    def reset(self) -> None:
        self.state = self.engine.init_state()

    def assert_same(self, message: FeatureMap, image: np.ndarray) -> None:
        """Bit for bit: a state that a failed step had touched would give other numbers."""
        features, self.state = self.engine.step(self.preprocess(image)[None], self.state)
        grid = feature_map_to_numpy(message)
        assert np.array_equal(grid, features[0, 1:].numpy().reshape(grid.shape))
        assert np.array_equal(np.asarray(message.cls, np.float32), features[0, 0].numpy())


class FaultyCamera:
    """Publishes pictures with growing stamps to a node on a faulty engine."""

    def __init__(self, client: Client, direct: Direct) -> None:
        self.client, self.direct = client, direct
        self._index = 0
        self._failed = 0
        self._sent: dict[int, np.ndarray] = {}

    def message(self, image: np.ndarray) -> Image:
        self._index += 1
        message = rgb_to_image(image, header(self._index))
        self._sent[stamp_ns(message)] = image
        return message

    def assert_same(self, message: FeatureMap) -> None:
        self.direct.assert_same(message, self._sent[stamp_ns(message)])

    def good(self) -> FeatureMap:
        """One frame that must be processed, from exactly the state that the last processed one left."""
        message = self.client.exchange(self.message(picture(self._index)))
        self.assert_same(message)
        return message

    def bad(self, fault: Fault, **options: Any) -> None:
        self.client.publish(self.message(order(picture(self._index), fault, **options)))

    def fail(self, fault: Fault) -> Any:
        """Has a step fail; the status in which the node tells it: until then a newer frame could take its place."""
        self._failed += 1
        self.bad(fault)
        return self.client.status(CAMERA, lambda values, _: failures(values) == self._failed)[1]


def stamp_ns(message: Image | FeatureMap) -> int:
    return int(message.header.stamp.sec) * 10**9 + int(message.header.stamp.nanosec)


def failures(values: dict[str, str]) -> int:
    """Steps that failed, of all that the node counts."""
    return sum(int(values.get(f"rejected_{reason}", 0)) for reason in ("engine", "not_finite", "out_of_memory"))


@pytest.fixture(scope="module")
def node(ros_environment: dict[str, str]) -> Iterator[NodeProcess]:
    # One thread in both processes: sums in another order would have other last bits.
    environment = {**ros_environment, "OMP_NUM_THREADS": "1"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with NodeProcess(environment, name="faulty", module="rvm_perception.faulty_node", **NODE) as process:
        yield process
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def camera(node: NodeProcess) -> Iterator[FaultyCamera]:
    with Client("faulty") as client:
        client.wait_for_node()
        yield FaultyCamera(client, Direct())


@pytest.mark.parametrize("fault", FAILING)
def test_a_failed_step_changes_nothing_and_is_told(camera: FaultyCamera, fault: Fault) -> None:
    before = camera.good()
    status = camera.fail(fault)
    assert status.level == DiagnosticStatus.ERROR
    assert FAILING[fault] in status.message
    after = camera.good()
    assert (after.epoch, after.index) == (before.epoch, before.index + 1)


def test_a_sound_step_ends_the_error(camera: FaultyCamera) -> None:
    camera.good()
    camera.client.status(CAMERA, lambda _, status: status.level == DiagnosticStatus.OK)


def test_as_many_failures_in_a_row_as_allowed_change_nothing(camera: FaultyCamera) -> None:
    before = camera.good()
    for fault in (Fault.RAISE, Fault.NAN):
        camera.fail(fault)
    after = camera.good()
    assert (after.epoch, after.index) == (before.epoch, before.index + 1)


def test_more_failures_in_a_row_reset_the_state(camera: FaultyCamera) -> None:
    before = camera.good()
    for fault in (Fault.RAISE, Fault.NAN, Fault.MEMORY):
        status = camera.fail(fault)
    assert status.level == DiagnosticStatus.ERROR and "3 times in a row" in status.message
    camera.direct.reset()
    after = camera.good()
    assert (after.epoch, after.index) == (before.epoch + 1, 0)
    camera.client.status(CAMERA, lambda _, status: status.level == DiagnosticStatus.OK)


def test_a_slow_step_is_right_and_the_newest_frame_follows_it(camera: FaultyCamera) -> None:
    before = camera.good()
    count = len(camera.client.features)
    camera.bad(Fault.SLOW, seconds=0.5)
    for seed in (8, 9, 10):
        camera.client.publish(newest := camera.message(picture(seed)))
    wait_for(lambda: camera.client.features[-1].header == newest.header, "the features of the newest frame")
    after = camera.client.features[count:]
    for message in after:
        camera.assert_same(message)
    assert [message.index for message in after] == [before.index + 1 + i for i in range(len(after))]
    # The slow one, the newest, and at most one that was first in the worker's hands.
    assert len(after) <= 3


def test_a_step_that_hangs_is_told_and_does_not_keep_the_node_from_ending(
    ros_environment: dict[str, str],
) -> None:
    with (
        NodeProcess(ros_environment, name="hanging", module="rvm_perception.faulty_node", **NODE) as process,
        Client("hanging") as client,
    ):
        client.wait_for_node()
        camera = FaultyCamera(client, Direct())
        camera.bad(Fault.HANG)
        name = "hanging: camera hanging_camera"
        _, status = client.status(name, lambda _, status: status.level == DiagnosticStatus.ERROR)
        assert "step has been running for" in status.message
        assert process.stop(signal.SIGTERM, timeout=5.0) == 0
        assert "Traceback" not in process.output
