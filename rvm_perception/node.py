"""The lifecycle node: wires topics, streams and engine together, and computes nothing itself."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger

from rvm_core.checkpoint import CheckpointError, load_checkpoint, weights_hash
from rvm_core.config import RVMConfig
from rvm_core.engines import Engine, EngineError, create_engine
from rvm_core.engines.create import WARNING
from rvm_core.engines.plan import describe
from rvm_core.model import RVM
from rvm_core.visualize import RunningPCA, overlay
from rvm_core.weights import find_weights
from rvm_perception.conversions import ImageError, rgb_to_image
from rvm_perception.diagnostics import CameraMeters, status
from rvm_perception.msg import FeatureMap
from rvm_perception.parameters import NodeParameters, ParameterError, declare_parameters, read_parameters
from rvm_perception.processor import FrameProcessor, ModelIdentity, Result
from rvm_perception.stream import FrameRejected, Stream

OUTPUT_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=5, reliability=ReliabilityPolicy.RELIABLE)
_WARN_PERIOD_S = 5.0
_JOIN_TIMEOUT_S = 4.0

# Progress is passed to the node's own logger; without a handler Python would print warnings once more.
logging.getLogger("rvm_core").addHandler(logging.NullHandler())


ImageMessage: TypeAlias = Image | CompressedImage


@dataclass(kw_only=True)
class Camera:
    """One camera's own things."""

    name: str
    topic: str
    """What is subscribed to, with the suffix of the transport."""
    stream: Stream[ImageMessage]
    features_publisher: Any
    overlay_publisher: Any
    subscription: Any = None
    meters: CameraMeters = field(default_factory=CameraMeters)
    pca: RunningPCA = field(default_factory=RunningPCA)
    last_rejection: str = ""


class RVMNode(LifecycleNode):
    """Camera topics in, RVM features out; see the README for topics, parameters and services.

    The subscription callbacks only store the newest message; one worker thread owns the engine and every state.
    Raises `ParameterError` at construction if the node was given a parameter that it does not have.
    """

    def __init__(self, node_name: str = "rvm", **kwargs: Any) -> None:
        super().__init__(node_name, **kwargs)
        declare_parameters(self)
        self.parameters: NodeParameters | None = None
        self._engine: Engine | None = None
        self._identity: ModelIdentity | None = None
        self._processor: FrameProcessor | None = None
        self._cameras: list[Camera] = []
        self._epochs: dict[str, int] = {}
        self._wake = threading.Condition()
        self._stop_worker = False
        self._worker: threading.Thread | None = None
        self._turn = 0
        self._configure_failure = ""
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # The steady clock: diagnostics and the watchdog go on when simulated time stands still.
        self._diagnostics_timer = self.create_timer(1.0, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.add_on_set_parameters_callback(self._on_set_parameters)

    @property
    def is_computing(self) -> bool:
        """Whether the worker is still in a step that it did not finish when the node was stopped."""
        return self._worker is not None and self._worker.is_alive()

    # Lifecycle: load and build in configure, subscribe in activate, reset in deactivate.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            self._configure()
        except (ParameterError, CheckpointError, EngineError, OSError, ValueError, RuntimeError, MemoryError) as error:
            self.get_logger().error(f"cannot configure: {error}")
            self._configure_failure = str(error)
            self._release()
            return TransitionCallbackReturn.FAILURE
        self._configure_failure = ""
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        assert self.parameters is not None
        result = super().on_activate(state)
        reliability = ReliabilityPolicy[self.parameters.input_reliability.upper()]
        qos = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=reliability)
        message_type = CompressedImage if self.parameters.image_transport == "compressed" else Image
        for camera in self._cameras:
            camera.meters = CameraMeters()
            camera.subscription = self.create_subscription(message_type, camera.topic, self._receiver(camera), qos)
            self.get_logger().info(f"camera {camera.name}: waiting for images on {camera.subscription.topic_name}")
        self._stop_worker = False
        self._worker = threading.Thread(target=self._work, name="rvm_worker", daemon=True)
        self._worker.start()
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop()
        self._release()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop()
        self._release()
        return super().on_error(state)

    def _configure(self) -> None:
        parameters = read_parameters(self)
        start = time.monotonic()
        model, self._identity = self._load_model(parameters)
        self._engine = create_engine(
            model,
            backend=parameters.backend,
            precision=parameters.precision,
            image_size=(parameters.height, parameters.width),
            device=None if parameters.device == "auto" else parameters.device,
            fallback=parameters.engine_fallback,
            progress=self._log_progress,
        )
        self._processor = FrameProcessor(parameters, self._engine, self._identity)
        self._processor.warm_up()
        for name, topic in parameters.cameras.items():
            prefix = "~" if len(parameters.cameras) == 1 else f"~/{name}"
            self._cameras.append(
                Camera(
                    name=name,
                    topic=f"{topic}/compressed" if parameters.image_transport == "compressed" else topic,
                    stream=Stream(max_gap=parameters.max_gap, epoch=self._epochs.get(name, 0)),
                    features_publisher=self.create_lifecycle_publisher(FeatureMap, f"{prefix}/features", OUTPUT_QOS),
                    overlay_publisher=self.create_lifecycle_publisher(Image, f"{prefix}/overlay", OUTPUT_QOS),
                )
            )
        self.parameters = parameters
        self.get_logger().info(
            f"{self._identity.name} on {describe(self._engine.spec)}, "
            f"input {parameters.height}x{parameters.width} ({parameters.resize_policy}), "
            f"ready in {time.monotonic() - start:.1f} s"
        )

    def _log_progress(self, line: str) -> None:
        if line.startswith(WARNING):
            self.get_logger().warning(line.removeprefix(WARNING))
        else:
            self.get_logger().info(line)

    def _load_model(self, parameters: NodeParameters) -> tuple[RVM, ModelIdentity]:
        if parameters.weights:
            path = find_weights(parameters.weights)
            self.get_logger().info(f"loading weights from {path}")
            model = load_checkpoint(path)
            return model, ModelIdentity(name=model.config.name, weights_hash=weights_hash(model))
        self.get_logger().warning(
            f"no weights given: {parameters.model} runs on RANDOM weights (seed {parameters.seed}); its features mean "
            "nothing. Fetch released weights with `rvm weights fetch rvm_s16` and set the parameter weights:=rvm_s16"
        )
        model = RVM(RVMConfig.named(parameters.model), seed=parameters.seed)
        return model, ModelIdentity(name=f"{parameters.model} (random weights)", weights_hash=weights_hash(model))

    def _stop(self) -> None:
        """Ends the worker and the subscriptions; the next activation starts a new epoch."""
        for camera in self._cameras:
            if camera.subscription is not None:
                self.destroy_subscription(camera.subscription)
                camera.subscription = None
        with self._wake:
            self._stop_worker = True
            self._wake.notify_all()
        if self._worker is not None:
            self._worker.join(timeout=_JOIN_TIMEOUT_S)
            if self._worker.is_alive():
                self.get_logger().error(f"the engine did not finish its step within {_JOIN_TIMEOUT_S} s")
            else:
                self._worker = None
        for camera in self._cameras:
            if camera.stream.take() is not None:
                camera.stream.reject("inactive")
            camera.stream.request_reset("deactivated")
        self._report()

    def _release(self) -> None:
        for camera in self._cameras:
            # A stream made for this camera later goes on counting where this one ended, as epochs never fall.
            self._epochs[camera.name] = camera.stream.epoch + 1
            self.destroy_lifecycle_publisher(camera.features_publisher)
            self.destroy_lifecycle_publisher(camera.overlay_publisher)
        self._cameras = []
        self._processor = self._engine = self._identity = self.parameters = None

    # Input: callbacks store, the worker computes.

    def _receiver(self, camera: Camera) -> Callable[[Any], None]:
        def receive(message: ImageMessage) -> None:
            camera.meters.input.tick()
            camera.stream.offer(message)
            with self._wake:
                self._wake.notify()

        return receive

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stop_worker or any(c.stream.has_frame for c in self._cameras))
                if self._stop_worker:
                    return
            for camera in self._in_turn():
                if not self._stop_worker:
                    self._process_waiting(camera)

    def _in_turn(self) -> list[Camera]:
        """The cameras, each round starting with the next one, so that none is always last."""
        self._turn = (self._turn + 1) % len(self._cameras)
        return self._cameras[self._turn :] + self._cameras[: self._turn]

    def _process_waiting(self, camera: Camera) -> None:
        waiting = camera.stream.take()
        if waiting is None:
            return
        assert self._processor is not None
        try:
            result = self._processor.process(waiting, camera.stream)
        except (ImageError, FrameRejected) as error:
            self._reject(camera, error.reason, str(error))
        except Exception as error:  # a live node never dies of one frame, whatever the runtime raises
            self._reject(camera, "engine", f"{type(error).__name__}: {error}")
        else:
            if not self._stop_worker:
                self._publish(camera, result)

    def _reject(self, camera: Camera, reason: str, message: str) -> None:
        camera.stream.reject(reason)
        camera.last_rejection = f"{reason}: {message}"
        self.get_logger().warning(
            f"camera {camera.name}: frame rejected, {camera.last_rejection}", throttle_duration_sec=_WARN_PERIOD_S
        )

    def _publish(self, camera: Camera, result: Result) -> None:
        assert self._processor is not None and self.parameters is not None
        camera.features_publisher.publish(self._processor.feature_map(camera.name, result))
        age = self.get_clock().now() - Time.from_msg(result.header.stamp, clock_type=ClockType.ROS_TIME)
        camera.meters.add(result, latency_ms=age.nanoseconds / 1e6)
        step = result.step
        if camera.stream.processed == 1:
            self.get_logger().info(
                f"camera {camera.name}: first frame, {step.key.width}x{step.key.height}, frame_id '{step.key.frame_id}'"
            )
        if step.reset_reason is not None:
            self.get_logger().warning(f"camera {camera.name}: state reset ({step.reset_reason}), epoch {step.epoch}")
            camera.pca = RunningPCA()
        if camera.overlay_publisher.get_subscription_count():
            camera.pca.update(result.grid)
            colors = camera.pca.color(result.grid)
            picture = overlay(result.image, colors, result.frame_map.grid_to_image, self.parameters.overlay_alpha)
            camera.overlay_publisher.publish(rgb_to_image(picture, result.header))

    # Services, parameters, diagnostics.

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        for camera in self._cameras:
            camera.stream.request_reset("service")
        response.success = bool(self._cameras)
        names = ", ".join(camera.name for camera in self._cameras)
        response.message = f"the next frame starts a new epoch: {names}" if names else "the node is not configured"
        return response

    def _on_set_parameters(self, changes: list[Parameter[Any]]) -> SetParametersResult:
        ours = {change.name: change.value for change in changes if change.name in NodeParameters.__dataclass_fields__}
        if ours and self.parameters is not None:
            reason = f"{', '.join(ours)}: parameters are read in configure; deactivate and clean the node up first"
            return SetParametersResult(successful=False, reason=reason)
        try:
            read_parameters(self, ours)
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _report(self) -> None:
        array = DiagnosticArray()
        array.header.stamp = self.get_clock().now().to_msg()
        array.status = [self._engine_status(), *(self._camera_status(camera) for camera in self._cameras)]
        self._diagnostics.publish(array)

    @property
    def _diagnostic_name(self) -> str:
        return self.get_fully_qualified_name().removeprefix("/")

    def _engine_status(self) -> DiagnosticStatus:
        name = f"{self._diagnostic_name}: engine"
        if self._engine is None or self._identity is None or self.parameters is None:
            failure = self._configure_failure
            level = DiagnosticStatus.ERROR if failure else DiagnosticStatus.STALE
            return status(level, name, f"cannot configure: {failure}" if failure else "not configured", "", {})
        spec = self._engine.spec
        values = {
            "model": self._identity.name,
            "weights": self.parameters.weights or f"random, seed {self.parameters.seed}",
            "weights_hash": self._identity.weights_hash,
            "backend": spec.backend,
            "precision": spec.precision,
            "device": spec.device,
            "image_size": f"{self.parameters.height}x{self.parameters.width}",
            "resize_policy": self.parameters.resize_policy,
        }
        if not self.parameters.weights:
            message = "random weights: the features mean nothing; set the parameter weights"
            return status(DiagnosticStatus.WARN, name, message, spec.device, values)
        return status(DiagnosticStatus.OK, name, "ready", spec.device, values)

    def _camera_status(self, camera: Camera) -> DiagnosticStatus:
        assert self.parameters is not None
        values: dict[str, object] = {**camera.stream.ledger(), "epoch": camera.stream.epoch}
        values.update({f"rejected_{reason}": count for reason, count in sorted(camera.stream.rejected.items())})
        values.update(camera.meters.values())
        level, message = DiagnosticStatus.OK, "running"
        rejection, camera.last_rejection = camera.last_rejection, ""
        if camera.subscription is None:
            message = "inactive"
        elif camera.meters.input.age() > self.parameters.stall_timeout:
            level, message = DiagnosticStatus.WARN, self._explain_silence(camera)
            self.get_logger().warning(f"camera {camera.name}: {message}", throttle_duration_sec=_WARN_PERIOD_S)
        elif rejection:
            level, message = DiagnosticStatus.WARN, f"frame rejected, {rejection}"
        return status(level, f"{self._diagnostic_name}: camera {camera.name}", message, camera.topic, values)

    def _explain_silence(self, camera: Camera) -> str:
        """Why no image may be coming, and what to do."""
        assert self.parameters is not None
        topic = camera.subscription.topic_name
        text = f"no image on {topic} for {camera.meters.input.age():.0f} s"
        publishers = self.get_publishers_info_by_topic(topic)
        if not publishers:
            return f"{text}: nothing publishes there; check camera_topics, image_transport, namespace and ROS_DOMAIN_ID"
        ours = self.parameters.input_reliability
        theirs = ", ".join(
            f"{info.node_name} ({info.topic_type}, {info.qos_profile.reliability.name.lower()})" for info in publishers
        )
        text = f"{text}: published by {theirs}; subscribed as {ours}"
        if ours == "reliable" and any(i.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT for i in publishers):
            return (
                f"{text}; best-effort publishers do not reach reliable subscribers: set input_reliability:=best_effort"
            )
        expected = "CompressedImage" if self.parameters.image_transport == "compressed" else "Image"
        if not any(info.topic_type == f"sensor_msgs/msg/{expected}" for info in publishers):
            return f"{text}; expected sensor_msgs/msg/{expected}: check image_transport"
        return f"{text}; large best-effort images get lost without the shared-memory profile config/fastdds.xml"
