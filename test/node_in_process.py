"""The node in the test's own process, spun by a thread, on an engine that the test can hold up and make fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import rclpy
from lifecycle_msgs.msg import State
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image

from live_node import header, wait_for
from rvm_core import Preprocess, create_engine, load_checkpoint
from rvm_core.engines import Engine, EngineSpec
from rvm_perception import engine_setup, feature_map_to_numpy
from rvm_perception.camera import Camera
from rvm_perception.conversions import rgb_to_image
from rvm_perception.faulty_engine import FaultyEngine
from rvm_perception.msg import FeatureMap
from rvm_perception.node import RVMNode

WEIGHTS = Path(__file__).parent / "data" / "rvm_tiny_official_format.npz"
SIZE = (32, 48)
PARAMETERS: dict[str, Any] = {
    "weights": str(WEIGHTS), "backend": "torch", "precision": "fp32", "device": "cpu", "height": SIZE[0],
    "width": SIZE[1], "input_reliability": "reliable", "tracking": "none",
}  # fmt: skip
SUCCESS, FAILURE, ERROR = (
    TransitionCallbackReturn.SUCCESS,
    TransitionCallbackReturn.FAILURE,
    TransitionCallbackReturn.ERROR,
)

T = TypeVar("T")


class Gate:
    """Holds up the steps of an engine, and counts the streams of each."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.batches: list[int] = []
        self.waiting = 0

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def wrap(self, engine: Engine) -> Engine:
        return _GatedEngine(FaultyEngine(engine), self)

    def hold(self, batch: int) -> None:
        self.batches.append(batch)
        self.waiting += 1
        self._open.wait()
        self.waiting -= 1


class _GatedEngine:
    def __init__(self, engine: Engine, gate: Gate) -> None:
        self.spec: EngineSpec = engine.spec
        self._engine, self._gate = engine, gate

    def init_state(self) -> Any:
        return self._engine.init_state()

    def step(self, frames: np.ndarray, state: Any) -> Any:
        self._gate.hold(len(frames))
        return self._engine.step(frames, state)


class LocalNode:
    """`RVMNode` with tiny weights, unless parameters say otherwise; cameras' topics are /<name>/<camera>/image."""

    def __init__(self, name: str, cameras: Sequence[str] = ("cam",), *, gate: Gate | None = None, **parameters: Any):
        given = {**PARAMETERS, "camera_topics": [f"/{name}/{camera}/image" for camera in cameras], **parameters}
        self.name, self._gate = name, gate
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        overrides = [Parameter(key, value=value) for key, value in given.items()]
        self.node = RVMNode(name, context=self.context, parameter_overrides=overrides)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._stop.is_set():
            self.executor.spin_once(timeout_sec=0.1)

    def do(self, function: Callable[[], T]) -> T:
        """Calls a function in the executor's thread, as services are."""
        future = self.executor.create_task(function)
        wait_for(future.done, f"{function}")
        result: Any = future.result()
        return result

    def configure(self) -> TransitionCallbackReturn:
        create = engine_setup.create_engine
        if self._gate is not None:
            vars(engine_setup)["create_engine"] = lambda *a, **k: self._gate.wrap(create(*a, **k))
        try:
            return self.do(self.node.trigger_configure)
        finally:
            vars(engine_setup)["create_engine"] = create

    def activate(self) -> TransitionCallbackReturn:
        return self.do(self.node.trigger_activate)

    def deactivate(self) -> TransitionCallbackReturn:
        return self.do(self.node.trigger_deactivate)

    def cleanup(self) -> TransitionCallbackReturn:
        return self.do(self.node.trigger_cleanup)

    def start(self) -> None:
        assert self.configure() == self.activate() == SUCCESS

    @property
    def state(self) -> str:
        labels = {
            State.PRIMARY_STATE_UNCONFIGURED: "unconfigured",
            State.PRIMARY_STATE_INACTIVE: "inactive",
            State.PRIMARY_STATE_ACTIVE: "active",
            State.PRIMARY_STATE_FINALIZED: "finalized",
        }
        return labels[self.node._state_machine.current_state[0]]

    def camera(self, name: str = "cam") -> Camera:
        return next(camera for camera in self.node._cameras if camera.name == name)

    def condition(self, name: str = "cam") -> tuple[bytes, str]:
        """Level and text of a camera's status."""
        status = self.do(lambda: self.node._camera_status(self.camera(name)))
        return status.level, status.message

    def __enter__(self) -> LocalNode:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._gate is not None:
            self._gate.open()
        if self.state != "finalized":
            self.do(self.node.trigger_shutdown)
        self._stop.set()
        self._thread.join(timeout=5)
        self.executor.shutdown(timeout_sec=1)
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


class Direct:
    """One camera's frames through the same engine, without ROS, queues and other cameras."""

    def __init__(self) -> None:
        self.engine = create_engine(
            load_checkpoint(WEIGHTS), backend="torch", precision="fp32", image_size=SIZE, device="cpu"
        )
        self._preprocess = Preprocess(height=SIZE[0], width=SIZE[1], policy="letterbox")
        self.reset()

    def reset(self) -> None:
        self._state = self.engine.init_state()

    def difference(self, message: FeatureMap, picture: np.ndarray) -> float:
        """Largest difference to the features that the picture gives next."""
        features, self._state = self.engine.step(self._preprocess(picture)[None], self._state)
        grid = feature_map_to_numpy(message)
        return float(np.abs(grid - features[0, 1:].numpy().reshape(grid.shape)).max())


def picture(seed: int) -> np.ndarray:
    """uint8 (96, 144, 3) RGB of noise, in which no `Fault` is ordered."""
    return np.random.default_rng(seed).integers(0, 200, (96, 144, 3), np.uint8)


def message(rgb: np.ndarray, index: int, frame_id: str = "optical") -> Image:
    """An image of frame `index` of a 25 Hz camera that started at 1000 s."""
    return rgb_to_image(rgb, header(index, frame_id))
