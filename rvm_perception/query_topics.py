"""Track queries of the node: stored when they arrive, carried out between two frames, each answered once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy

from rvm_perception.camera import Camera
from rvm_perception.camera_input import endpoint_options
from rvm_perception.msg import QueryAnswers, TrackQueries
from rvm_perception.processor import FrameProcessor
from rvm_perception.track_messages import answers_message
from rvm_perception.track_queries import Answers, read_request


def query_qos() -> QoSProfile:
    """Of queries and answers, unless parameters override it: deep enough for a burst of them."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=100, reliability=ReliabilityPolicy.RELIABLE)


QUERIES = "~/track_queries"

_MAX_MESSAGES = 1000
"""So many messages may arrive while one frame is stepped; more are refused."""


class QueryTopics:
    """`~/track_queries` and `~/track_answers`, which all cameras share.

    Only `open` and what arrives run in the executor's thread, and `close` once the worker has ended; everything else is
    called by the worker, between two frames.
    """

    def __init__(
        self, node: Node, cameras: Sequence[Camera], processor: FrameProcessor, wake: Callable[[], None]
    ) -> None:
        """wake: called when something has arrived."""
        self._node = node
        self._cameras = cameras
        self._processor = processor
        self._wake = wake
        self._messages: deque[TrackQueries] = deque()
        self._subscription: Any = None
        self._answers = node.create_publisher(QueryAnswers, "~/track_answers", query_qos(), **endpoint_options())

    @property
    def has_queries(self) -> bool:
        """Whether something has arrived that `carry_out` has not seen yet."""
        return bool(self._messages)

    def open(self) -> None:
        """Subscribes."""
        self._subscription = self._node.create_subscription(
            TrackQueries, QUERIES, self._receive, query_qos(), **endpoint_options()
        )

    def close(self, reason: str) -> None:
        """Ends the subscription and refuses everything that waits."""
        self._unsubscribe()
        while self._messages:
            self._publish([read_request(self._messages.popleft()).refused(reason)])
        for camera in self._cameras:
            if camera.session is not None:
                self._publish(camera.session.refuse_waiting(reason, epoch=camera.stream.epoch))

    @property
    def names(self) -> list[str]:
        """The topic of the answers, resolved."""
        return [self._answers.topic_name]

    def destroy(self) -> None:
        self._unsubscribe()
        self._node.destroy_publisher(self._answers)

    def carry_out(self) -> None:
        """Carries out everything that has arrived and whose frame has been processed; the rest waits."""
        while self._messages:
            message = self._messages.popleft()
            try:
                self._take(message)
            except Exception as error:  # a live node never dies of one message
                self._node.get_logger().error(f"track query: {type(error).__name__}: {error}")

    def carry_out_waiting(self, camera: Camera) -> None:
        """Carries out what was waiting for the frame that has just been processed."""
        if camera.session is not None and camera.session.waiting:
            self._publish(self._processor.apply_queries(camera.stream, camera.session))

    def _unsubscribe(self) -> None:
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def _receive(self, message: TrackQueries) -> None:
        if len(self._messages) >= _MAX_MESSAGES:
            self._publish([read_request(message).refused(f"{_MAX_MESSAGES} messages wait already")])
            return
        self._messages.append(message)
        self._wake()

    def _take(self, message: TrackQueries) -> None:
        request = read_request(message)
        camera = self._camera(request.camera)
        if camera is None or camera.session is None:
            names = ", ".join(camera.name for camera in self._cameras)
            self._publish([request.refused(f"there is no camera {request.camera!r}; cameras: {names}")])
        elif full := camera.session.receive(request):
            self._publish([full])
        else:
            self.carry_out_waiting(camera)

    def _camera(self, name: str) -> Camera | None:
        if not name and len(self._cameras) == 1:
            return self._cameras[0]
        return next((camera for camera in self._cameras if camera.name == name), None)

    def _publish(self, answers: Iterable[Answers]) -> None:
        for answer in answers:
            self._answers.publish(answers_message(answer))
