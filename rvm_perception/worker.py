"""The thread that steps the engine for all cameras: from the mailboxes to the topics."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.time import Time

from rvm_perception.camera import Camera
from rvm_perception.processor import FrameProcessor, Result, Turn, rejection
from rvm_perception.query_topics import QueryTopics
from rvm_perception.stream import FAILURES


class Worker:
    """Owns the engine and every state from `start` until it has stopped; made anew for each activation.

    Args:
        node: whose clock and log are used.
        queries: None without tracking.
    """

    def __init__(
        self, node: Node, cameras: Sequence[Camera], processor: FrameProcessor, queries: QueryTopics | None
    ) -> None:
        self._node, self._cameras, self._processor, self._queries = node, cameras, processor, queries
        self._wake = threading.Condition()
        self._stopped = False
        self._first = 0
        self._stepping: tuple[tuple[Camera, ...], float] | None = None
        self._thread = threading.Thread(target=self._work, name="rvm_worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There is something to do."""
        with self._wake:
            self._wake.notify()

    def stop(self, timeout: float) -> bool:
        """Asks the thread to end after its step, whose result is dropped. Returns whether it ended in time."""
        with self._wake:
            self._stopped = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs, which it may do after `stop`, if the engine does not come back."""
        return self._thread.is_alive()

    def running_for(self, camera: Camera | None = None) -> float:
        """Seconds since the step in progress began, if it is one of this camera; 0 otherwise. None: of any camera."""
        stepping = self._stepping
        if stepping is None or (camera is not None and camera not in stepping[0]):
            return 0.0
        return time.monotonic() - stepping[1]

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopped or self._has_work)
                if self._stopped:
                    return
            self._carry_out_queries()
            cameras = [camera for camera in self._in_turn() if camera.stream.has_frame]
            if self._processor.stepper.pays(len(cameras)):
                self._process(cameras)
                continue
            for camera in cameras:
                if not self._stopped:
                    self._process([camera])
                    self._carry_out_queries()

    @property
    def _has_work(self) -> bool:
        has_queries = self._queries is not None and self._queries.has_queries
        return has_queries or any(camera.stream.has_frame for camera in self._cameras)

    def _carry_out_queries(self) -> None:
        if self._queries is not None:
            self._queries.carry_out()

    def _in_turn(self) -> list[Camera]:
        """The cameras, each round starting with the next one, so that none is always last."""
        self._first = (self._first + 1) % len(self._cameras)
        return [*self._cameras[self._first :], *self._cameras[: self._first]]

    def _process(self, cameras: Sequence[Camera]) -> None:
        turns = {}
        for camera in cameras:
            waiting = camera.stream.take()
            if waiting is not None:
                turn = Turn(waiting=waiting, stream=camera.stream, session=camera.session)
                turns[id(turn)] = (camera, turn)
        self._stepping = (tuple(camera for camera, _ in turns.values()), time.monotonic())
        try:
            given = [turn for _, turn in turns.values()]
            for turn, outcome in self._processor.process_all(given, lambda: self._stopped):
                camera, _ = turns[id(turn)]
                if isinstance(outcome, Exception):
                    self._reject(camera, outcome)
                else:
                    self._answer(camera, outcome)
        finally:
            self._stepping = None

    def _reject(self, camera: Camera, error: Exception) -> None:
        reason, text = rejection(error)
        camera.stream.reject(reason)
        camera.last_rejection = f"{reason}: {text}"
        if reason in FAILURES:
            camera.last_failure = text
        if camera.throttle.lets(f"rejected {reason}"):
            self._node.get_logger().warning(f"camera {camera.name}: frame rejected, {camera.last_rejection}")

    def _answer(self, camera: Camera, result: Result) -> None:
        try:
            self._publish(camera, result)
            if self._queries is not None:
                self._queries.carry_out_waiting(camera)
        except Exception as error:  # the frame is committed: what cannot be published does not end the worker either
            if camera.throttle.lets("publish"):
                text = f"cannot publish a frame, {type(error).__name__}: {error}"
                self._node.get_logger().error(f"camera {camera.name}: {text}")

    def _publish(self, camera: Camera, result: Result) -> None:
        camera.topics.publish_features(self._processor.feature_map(camera.name, result))
        age = self._node.get_clock().now() - Time.from_msg(result.header.stamp, clock_type=ClockType.ROS_TIME)
        camera.meters.add(result, latency_ms=age.nanoseconds / 1e6)
        self._log(camera, result)
        messages = None
        if camera.session is not None:
            messages = self._processor.track_messages(camera.name, result, camera.session.tracker_name)
            camera.topics.publish_tracks(messages)
        camera.topics.publish_overlay(result, messages)

    def _log(self, camera: Camera, result: Result) -> None:
        step = result.step
        if camera.meters.published == 1:
            self._node.get_logger().info(
                f"camera {camera.name}: first frame, {step.key.width}x{step.key.height}, frame_id '{step.key.frame_id}'"
            )
        if step.reset_reason is not None:
            camera.topics.reset_pictures()
            if camera.throttle.lets(f"reset {step.reset_reason}"):
                text = f"state reset ({step.reset_reason}), epoch {step.epoch}"
                self._node.get_logger().warning(f"camera {camera.name}: {text}")
