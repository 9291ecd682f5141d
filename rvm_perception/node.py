"""The lifecycle node: wires topics, streams and engine together, and computes nothing itself."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockChange, JumpThreshold, TimeJump
from rclpy.clock_type import ClockType
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from rvm_core.engines.create import WARNING
from rvm_core.engines.plan import describe
from rvm_core.tracking.base import Tracker
from rvm_perception.camera import Camera, CameraTopics, ImageMessage
from rvm_perception.camera_input import CameraInput, check_qos_overrides
from rvm_perception.diagnostics import CameraMeters, engine_status, hanging, status
from rvm_perception.engine_setup import EngineSetup, set_up_engine
from rvm_perception.parameters import LIVE, NodeParameters, ParameterError, declare_parameters, read_parameters
from rvm_perception.processor import CameraHistory, FrameProcessor
from rvm_perception.query_topics import QUERIES, QueryTopics
from rvm_perception.stream import Stream
from rvm_perception.track_session import TrackSession, make_tracker
from rvm_perception.worker import Worker

_JOIN_TIMEOUT_S = 3.0
"""So long the end of a step is waited for; the process itself must end within 5 s."""

# Progress is passed to the node's own logger; without a handler Python would print warnings once more.
logging.getLogger("rvm_core").addHandler(logging.NullHandler())


class RVMNode(LifecycleNode):
    """Camera topics in, RVM features out; see the README for topics, parameters and services.

    The subscription callbacks only store the newest message; one worker thread owns the engine and every state.
    Raises `ParameterError` at construction if the node was given a parameter that it does not have.
    """

    _jumps: Any = None

    def __init__(self, node_name: str = "rvm", **kwargs: Any) -> None:
        super().__init__(node_name, **kwargs)
        declare_parameters(self)
        self.parameters: NodeParameters | None = None
        self._setup: EngineSetup | None = None
        self._processor: FrameProcessor | None = None
        self._cameras: list[Camera] = []
        self._histories: dict[str, CameraHistory] = {}
        self._queries: QueryTopics | None = None
        self._worker: Worker | None = None
        self._failure = ""
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # The steady clock: diagnostics and the watchdog go on when simulated time stands still.
        self._diagnostics_timer = self.create_timer(1.0, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self.add_post_set_parameters_callback(self._on_parameters_set)
        back = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True)
        self._jumps = self.get_clock().create_jump_callback(back, post_callback=self._on_clock_jump)

    @property
    def is_computing(self) -> bool:
        """Whether the worker is still in a step that it did not finish when the node was stopped."""
        return self._worker is not None and self._worker.is_alive

    def destroy_node(self) -> None:
        if self._jumps is not None:  # as in a node that was not made to the end
            self._jumps.unregister()
            self._jumps = None
        super().destroy_node()

    # Lifecycle: load and build in configure, subscribe in activate, reset in deactivate.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            self._configure()
            result = super().on_configure(state)
        except Exception as error:  # whatever it is, the node says so and can be configured again
            self._fail("cannot configure", error)
            self._release()
            return TransitionCallbackReturn.FAILURE
        self._failure = ""
        return result

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            if self.is_computing:
                raise RuntimeError("the engine has not come back from a step of the last activation")
            result = super().on_activate(state)
            self._start()
        except Exception as error:  # it stays inactive, with the engine ready
            self._fail("cannot activate", error)
            self._stop("the node was not activated")
            super().on_deactivate(state)
            return TransitionCallbackReturn.FAILURE
        self._failure = ""
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            self._stop("the node was deactivated")
            return super().on_deactivate(state)
        except Exception as error:  # rclpy would not say why
            self._fail("cannot deactivate", error)
            return TransitionCallbackReturn.ERROR

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            self._release()
            return super().on_cleanup(state)
        except Exception as error:  # rclpy would not say why
            self._fail("cannot clean up", error)
            return TransitionCallbackReturn.ERROR

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            self._stop("the node was shut down")
            self._release()
            return super().on_shutdown(state)
        except Exception as error:  # rclpy would not say why
            self._fail("cannot shut down in order", error)
            return TransitionCallbackReturn.ERROR

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After a transition that failed half way: everything is let go of, so that the node can be configured."""
        for step in (lambda: self._stop("the node failed"), self._release):
            try:
                step()
            except Exception as error:  # the rest must go all the same
                self._fail("after an error", error)
        return super().on_error(state)

    def _fail(self, what: str, error: Exception) -> None:
        expected = isinstance(error, (ParameterError, RuntimeError, ValueError, OSError))
        text = str(error) if expected else f"{type(error).__name__}: {error}"
        self._failure = f"{what}: {text}"
        self.get_logger().error(self._failure)

    def _configure(self) -> None:
        parameters = read_parameters(self)
        start = time.monotonic()
        # In a thread that ends. One that goes on keeps its share of OpenMP's threads, and with more of them than
        # processors those that step the engine sleep between its loops, which are short: half as long again.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="rvm_setup") as pool:
            setup, self._processor, tracker = pool.submit(self._set_up, parameters).result()
        self._setup = setup
        for name, topic in parameters.cameras.items():
            self._cameras.append(self._create_camera(parameters, name, topic, tracker))
        if tracker is not None:
            self._queries = QueryTopics(self, self._cameras, self._processor, self._wake_worker)
        self._check_qos_overrides()
        self.parameters = parameters
        self.get_logger().info(
            f"{setup.identity.name} on {describe(setup.engine.spec)}, "
            f"input {parameters.height}x{parameters.width} ({parameters.resize_policy}), "
            f"ready in {time.monotonic() - start:.1f} s"
        )
        self._log_batching(self._processor)

    def _set_up(self, parameters: NodeParameters) -> tuple[EngineSetup, FrameProcessor, Tracker[Any] | None]:
        setup = set_up_engine(parameters, self._log_progress, cameras=len(parameters.cameras))
        processor = FrameProcessor(parameters, setup.engine, setup.identity, batched=setup.batched)
        processor.warm_up()
        return setup, processor, make_tracker(parameters, setup.width)

    def _create_camera(self, parameters: NodeParameters, name: str, topic: str, tracker: Tracker[Any] | None) -> Camera:
        prefix = "~" if len(parameters.cameras) == 1 else f"~/{name}"
        history = self._histories.setdefault(name, CameraHistory())
        session = None
        if tracker is not None:
            session = TrackSession(camera=name, tracker=tracker, parameters=parameters, ids=history.ids)
        return Camera(
            name=name,
            topic=f"{topic}/compressed" if parameters.image_transport == "compressed" else topic,
            stream=Stream(parameters.stream_rules, epoch=history.epoch, state=history.state),
            topics=CameraTopics(self, prefix, tracking=tracker is not None, overlay_alpha=parameters.overlay_alpha),
            session=session,
        )

    def _check_qos_overrides(self) -> None:
        inputs = [camera.topic for camera in self._cameras] + ([QUERIES] if self._queries is not None else [])
        outputs = [name for camera in self._cameras for name in camera.topics.names]
        outputs += self._queries.names if self._queries is not None else []
        topics = [f"{self.resolve_topic_name(topic)}.subscription" for topic in inputs]
        check_qos_overrides(set(self._parameter_overrides), [*topics, *(f"{topic}.publisher" for topic in outputs)])

    def _log_batching(self, processor: FrameProcessor) -> None:
        stepper, cameras = processor.stepper, len(self._cameras)
        if stepper.size == 1:
            return
        least = next((count for count in range(2, cameras + 1) if stepper.pays(count)), None)
        measured = f" ({stepper.batched_ms:.1f} ms against {stepper.single_ms:.1f} ms for one)"
        pays = f"from {least} that wait on, {cameras} cameras are stepped at once" if least else "batches do not pay"
        self.get_logger().info(pays + ("" if stepper.batched_ms != stepper.batched_ms else measured))

    def _log_progress(self, line: str) -> None:
        if line.startswith(WARNING):
            self.get_logger().warning(line.removeprefix(WARNING))
        else:
            self.get_logger().info(line)

    def _start(self) -> None:
        """Subscribes and starts the worker."""
        assert self.parameters is not None and self._processor is not None
        for camera in self._cameras:
            camera.meters = CameraMeters()
            camera.last_rejection = ""
            camera.input = CameraInput(self, camera.topic, self.parameters, camera.arrivals, self._receiver(camera))
            self.get_logger().info(f"camera {camera.name}: waiting for images on {camera.input.topic}")
        if self._queries is not None:
            self._queries.open()
        self._worker = Worker(self, self._cameras, self._processor, self._queries)
        self._worker.start()

    def _stop(self, reason: str) -> None:
        """Ends the worker and the subscriptions; the next activation starts a new epoch."""
        if self._worker is not None and not self._worker.stop(_JOIN_TIMEOUT_S):
            self.get_logger().error(f"the engine did not finish its step within {_JOIN_TIMEOUT_S} s")
        inputs = [camera.input for camera in self._cameras if camera.input is not None]
        with ExitStack() as closing:  # all of them, also if one fails
            for camera_input in inputs:
                closing.callback(camera_input.close)
            for camera in self._cameras:
                camera.input = None
        for camera in self._cameras:
            if camera.stream.take() is not None:
                camera.stream.reject("inactive")
            camera.stream.request_reset("deactivated")
        if self._queries is not None and not self.is_computing:
            self._queries.close(reason)
        if inputs:
            for camera in self._cameras:
                self.get_logger().info(camera.totals())
            self._report()

    def _release(self) -> None:
        cameras, queries = self._cameras, self._queries
        self._cameras, self._queries = [], None
        self._processor = self._setup = self.parameters = None
        if not self.is_computing:
            self._worker = None
        for camera in cameras:
            self._histories[camera.name].keep(camera.stream)
            camera.topics.destroy()
        if queries is not None:
            queries.destroy()

    # Input: callbacks store, the worker computes.

    def _receiver(self, camera: Camera) -> Any:
        def receive(message: ImageMessage) -> None:
            camera.meters.input.tick()
            camera.stream.offer(message)
            self._wake_worker()

        return receive

    def _wake_worker(self) -> None:
        if self._worker is not None:
            self._worker.wake()

    def _on_clock_jump(self, jump: TimeJump) -> None:
        if jump.clock_change == ClockChange.ROS_TIME_NO_CHANGE:
            now, back = self.get_clock().now().nanoseconds, -jump.delta.nanoseconds
            if self.parameters is None or back < self.parameters.late_tolerance * 1e9:
                return
        else:
            now = back = 0
        for camera in self._cameras:
            camera.stream.clock_jumped(now, back)

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
        fixed = [name for name in ours if name not in LIVE]
        if fixed and self.parameters is not None:
            reason = f"{', '.join(fixed)}: read in configure; deactivate and clean the node up first"
            return SetParametersResult(successful=False, reason=reason)
        try:
            read_parameters(self, ours)
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _on_parameters_set(self, changes: list[Parameter[Any]]) -> None:
        """Live parameters take effect with the next frame."""
        if self.parameters is None or self._processor is None:
            return
        self.parameters = self._processor.parameters = read_parameters(self)
        for camera in self._cameras:
            camera.set_parameters(self.parameters)

    def _report(self) -> None:
        array = DiagnosticArray()
        array.header.stamp = self.get_clock().now().to_msg()
        array.status = [self._engine_status(), *(self._camera_status(camera) for camera in self._cameras)]
        self._diagnostics.publish(array)

    @property
    def _diagnostic_name(self) -> str:
        return self.get_fully_qualified_name().removeprefix("/")

    def _running_for(self, camera: Camera | None = None) -> float:
        return self._worker.running_for(camera) if self._worker is not None else 0.0

    def _engine_status(self) -> DiagnosticStatus:
        name = f"{self._diagnostic_name}: engine"
        if self._setup is None or self._processor is None or self.parameters is None:
            level = DiagnosticStatus.ERROR if self._failure else DiagnosticStatus.STALE
            return status(level, name, self._failure or "not configured", "", {})
        return engine_status(
            name,
            self._setup.engine.spec,
            self._setup.identity,
            self.parameters,
            batch_size=self._processor.stepper.size,
            running_for=self._running_for(),
            failure=self._failure,
        )

    def _camera_status(self, camera: Camera) -> DiagnosticStatus:
        level, message = self._condition(camera)
        name = f"{self._diagnostic_name}: camera {camera.name}"
        return status(level, name, message, camera.topic, camera.values())

    def _condition(self, camera: Camera) -> tuple[bytes, str]:
        """The worst that is to be said of a camera, which is also logged."""
        assert self.parameters is not None
        rejection, camera.last_rejection = camera.last_rejection, ""
        running_for, failures = self._running_for(camera), camera.stream.failures_in_a_row
        error = warning = ""
        if running_for > self.parameters.step_timeout:
            error = hanging(running_for)
        elif camera.input is None:
            return DiagnosticStatus.OK, "inactive"
        elif failures:
            error = f"engine failed {failures} times in a row: {camera.last_failure}"
        elif unstable := camera.stream.unstable_clock:
            error = f"clock unstable: {unstable}; does more than one camera publish there?"
        else:
            warning = camera.input.delivery_warning()
            if camera.meters.input.age() > self.parameters.stall_timeout:
                warning = camera.input.explain_silence(camera.meters.input.age())
        if error and camera.throttle.lets("error"):
            self.get_logger().error(f"camera {camera.name}: {error}")
        elif warning and camera.throttle.lets("warning"):
            self.get_logger().warning(f"camera {camera.name}: {warning}")
        if error:
            return DiagnosticStatus.ERROR, error
        warning = warning or (f"frame rejected, {rejection}" if rejection else "")
        return (DiagnosticStatus.WARN, warning) if warning else (DiagnosticStatus.OK, "running")
