"""The lifecycle node: wires topics, streams and engine together, and computes nothing itself."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

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
from rvm_core.tracking.base import Tracker
from rvm_core.weights import find_weights
from rvm_perception.camera import Camera, CameraHistory, CameraTopics, ImageMessage
from rvm_perception.conversions import ImageError
from rvm_perception.diagnostics import CameraMeters, engine_status, explain_silence, status
from rvm_perception.parameters import NodeParameters, ParameterError, declare_parameters, read_parameters
from rvm_perception.processor import FrameProcessor, ModelIdentity, Result
from rvm_perception.query_topics import QueryTopics
from rvm_perception.stream import FrameRejected, Stream
from rvm_perception.track_session import TrackSession, make_tracker

_WARN_PERIOD_S = 5.0
_JOIN_TIMEOUT_S = 4.0

# Progress is passed to the node's own logger; without a handler Python would print warnings once more.
logging.getLogger("rvm_core").addHandler(logging.NullHandler())


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
        self._histories: dict[str, CameraHistory] = {}
        self._queries: QueryTopics | None = None
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
        if self._queries is not None:
            self._queries.open()
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
        tracker = make_tracker(parameters, model.config.width)
        self._cameras = [
            self._create_camera(parameters, name, topic, tracker) for name, topic in parameters.cameras.items()
        ]
        if tracker is not None:
            self._queries = QueryTopics(self, self._cameras, self._processor, self._wake_worker)
        self.parameters = parameters
        self.get_logger().info(
            f"{self._identity.name} on {describe(self._engine.spec)}, "
            f"input {parameters.height}x{parameters.width} ({parameters.resize_policy}), "
            f"ready in {time.monotonic() - start:.1f} s"
        )

    def _create_camera(self, parameters: NodeParameters, name: str, topic: str, tracker: Tracker[Any] | None) -> Camera:
        prefix = "~" if len(parameters.cameras) == 1 else f"~/{name}"
        history = self._histories.setdefault(name, CameraHistory())
        session = None
        if tracker is not None:
            session = TrackSession(camera=name, tracker=tracker, parameters=parameters, ids=history.ids)
        return Camera(
            name=name,
            topic=f"{topic}/compressed" if parameters.image_transport == "compressed" else topic,
            stream=Stream(max_gap=parameters.max_gap, epoch=history.epoch, state=history.state),
            topics=CameraTopics(self, prefix, tracking=tracker is not None, overlay_alpha=parameters.overlay_alpha),
            session=session,
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
        if self._queries is not None and self._worker is None:
            self._queries.close("the node was deactivated")
        self._report()

    def _release(self) -> None:
        for camera in self._cameras:
            self._histories[camera.name].keep(camera.stream)
            camera.topics.destroy()
        if self._queries is not None:
            self._queries.destroy()
            self._queries = None
        self._cameras = []
        self._processor = self._engine = self._identity = self.parameters = None

    # Input: callbacks store, the worker computes.

    def _receiver(self, camera: Camera) -> Callable[[Any], None]:
        def receive(message: ImageMessage) -> None:
            camera.meters.input.tick()
            camera.stream.offer(message)
            self._wake_worker()

        return receive

    def _wake_worker(self) -> None:
        with self._wake:
            self._wake.notify()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stop_worker or self._has_work)
                if self._stop_worker:
                    return
            for camera in self._in_turn():
                if not self._stop_worker:
                    if self._queries is not None:
                        self._queries.carry_out()
                    self._process_waiting(camera)

    @property
    def _has_work(self) -> bool:
        has_queries = self._queries is not None and self._queries.has_queries
        return has_queries or any(camera.stream.has_frame for camera in self._cameras)

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
            result = self._processor.process(
                waiting, camera.stream, camera.session, is_stopped=lambda: self._stop_worker
            )
        except (ImageError, FrameRejected) as error:
            self._reject(camera, error.reason, str(error))
        except Exception as error:  # a live node never dies of one frame, whatever the runtime raises
            self._reject(camera, "engine", f"{type(error).__name__}: {error}")
        else:
            self._answer(camera, result)

    def _answer(self, camera: Camera, result: Result) -> None:
        try:
            self._publish(camera, result)
            if self._queries is not None:
                self._queries.carry_out_waiting(camera)
        except Exception as error:  # the frame is committed: what cannot be published does not end the worker either
            self.get_logger().error(
                f"camera {camera.name}: cannot publish a frame, {type(error).__name__}: {error}",
                throttle_duration_sec=_WARN_PERIOD_S,
            )

    def _reject(self, camera: Camera, reason: str, message: str) -> None:
        camera.stream.reject(reason)
        camera.last_rejection = f"{reason}: {message}"
        self.get_logger().warning(
            f"camera {camera.name}: frame rejected, {camera.last_rejection}", throttle_duration_sec=_WARN_PERIOD_S
        )

    def _publish(self, camera: Camera, result: Result) -> None:
        assert self._processor is not None and self.parameters is not None
        camera.topics.publish_features(self._processor.feature_map(camera.name, result))
        age = self.get_clock().now() - Time.from_msg(result.header.stamp, clock_type=ClockType.ROS_TIME)
        camera.meters.add(result, latency_ms=age.nanoseconds / 1e6)
        step = result.step
        if camera.stream.processed == 1:
            self.get_logger().info(
                f"camera {camera.name}: first frame, {step.key.width}x{step.key.height}, frame_id '{step.key.frame_id}'"
            )
        if step.reset_reason is not None:
            self.get_logger().warning(f"camera {camera.name}: state reset ({step.reset_reason}), epoch {step.epoch}")
            camera.topics.reset_pictures()
        messages = None
        if camera.session is not None:
            messages = self._processor.track_messages(camera.name, result, camera.session.tracker_name)
            camera.topics.publish_tracks(messages)
        camera.topics.publish_overlay(result, messages)

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
        return engine_status(name, self._engine.spec, self._identity, self.parameters)

    def _camera_status(self, camera: Camera) -> DiagnosticStatus:
        assert self.parameters is not None
        values: dict[str, object] = {**camera.stream.ledger(), "epoch": camera.stream.epoch}
        values.update({f"rejected_{reason}": count for reason, count in sorted(camera.stream.rejected.items())})
        values.update(camera.meters.values())
        values.update(camera.track_values())
        level, message = DiagnosticStatus.OK, "running"
        rejection, camera.last_rejection = camera.last_rejection, ""
        if camera.subscription is None:
            message = "inactive"
        elif camera.meters.input.age() > self.parameters.stall_timeout:
            topic = camera.subscription.topic_name
            publishers = self.get_publishers_info_by_topic(topic)
            message = explain_silence(topic, camera.meters.input.age(), publishers, self.parameters)
            level = DiagnosticStatus.WARN
            self.get_logger().warning(f"camera {camera.name}: {message}", throttle_duration_sec=_WARN_PERIOD_S)
        elif rejection:
            level, message = DiagnosticStatus.WARN, f"frame rejected, {rejection}"
        return status(level, f"{self._diagnostic_name}: camera {camera.name}", message, camera.topic, values)
