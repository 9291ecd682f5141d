"""The subscription to a camera's images: what arrives, what gets lost on the way, and why nothing comes."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypedDict

from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
from rclpy.node import Node
from rclpy.qos import (
    HistoryPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
    qos_policy_name_from_kind,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image

from rvm_perception.arrivals import Arrivals
from rvm_perception.parameters import NodeParameters, ParameterError

PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
PROFILE_REMEDY = (
    "large images need the shared-memory profile on the camera's side too: start the camera driver with "
    "FASTDDS_DEFAULT_PROFILES_FILE=<share of rvm_perception>/config/fastdds.xml, or use image_transport:=compressed"
)
_OVERRIDES = "qos_overrides."
_POLICIES = ("depth", "history", "reliability")
_NOT_OURS = ("/clock", "/parameter_events", "/rosout")
"""Topics of which every node may be given such parameters."""


class EndpointOptions(TypedDict):
    """Arguments of rclpy's methods that create publishers and subscriptions."""

    callback_group: CallbackGroup
    qos_overriding_options: QoSOverridingOptions


def endpoint_options() -> EndpointOptions:
    """Lets history, depth and reliability of a topic be overridden by parameters.

    A callback group of its own: the node's one never forgets an endpoint, so that each activation would leave some.
    """
    return EndpointOptions(
        callback_group=MutuallyExclusiveCallbackGroup(),
        qos_overriding_options=QoSOverridingOptions.with_default_policies(),
    )


def check_qos_overrides(given: Collection[str], topics: Collection[str]) -> None:
    """Raises `ParameterError` for a parameter qos_overrides.<topic>... that no topic of the node takes.

    given: names of all parameters given to the node. topics: resolved names, with ".publisher" or ".subscription".
    """
    known = {f"{_OVERRIDES}{topic}.{policy}" for topic in topics for policy in _POLICIES}
    unknown = sorted(
        name
        for name in given
        if name.split(".")[0] == "qos_overrides"
        and name not in known
        and not name.removeprefix(_OVERRIDES).startswith(tuple(f"{topic}." for topic in _NOT_OURS))
    )
    if unknown:
        raise ParameterError(
            f"unknown parameters: {', '.join(unknown)}; known: {_OVERRIDES}<topic>.<{'|'.join(_POLICIES)}> with the "
            f"topics {', '.join(sorted(topics))}"
        )


def describe_qos(qos: QoSProfile) -> str:
    """E.g. "reliable, volatile, keep_last 5"; what the middleware does not tell is left out."""
    history = qos.history.name.lower()
    if qos.history == HistoryPolicy.KEEP_LAST:
        history += f" {qos.depth}"
    words = [qos.reliability.name.lower(), qos.durability.name.lower(), history]
    return ", ".join(word for word in words if word not in ("unknown", "system_default"))


class CameraInput:
    """One camera's subscription, best-effort or reliable, depth 1 unless overridden.

    Args:
        topic: with the suffix of the transport.
        arrivals: is told of every image.
        receive: called with every image, in the executor's thread.
    """

    def __init__(
        self,
        node: Node,
        topic: str,
        parameters: NodeParameters,
        arrivals: Arrivals,
        receive: Callable[[Any], None],
    ) -> None:
        self._node, self._arrivals, self._take = node, arrivals, receive
        self._kind = CompressedImage if parameters.image_transport == "compressed" else Image
        reliability = ReliabilityPolicy[parameters.input_reliability.upper()]
        qos = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=reliability)
        arrivals.restart()
        try:
            self._subscription = self._subscribe(topic, qos, message_lost=self._on_lost)
        except UnsupportedEventTypeError:  # this middleware does not tell
            self._subscription = self._subscribe(topic, qos)
        self.topic: str = self._subscription.topic_name
        self.qos: QoSProfile = self._subscription.qos_profile

    def _subscribe(self, topic: str, qos: QoSProfile, **events: Any) -> Any:
        return self._node.create_subscription(
            self._kind,
            topic,
            self._receive,
            qos,
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._on_incompatible_qos, **events),
            **endpoint_options(),
        )

    def close(self) -> None:
        """Ends the subscription."""
        self._node.destroy_subscription(self._subscription)

    def explain_silence(self, seconds: float) -> str:
        """Why no image may have come for so long, and what to do."""
        publishers = self._node.get_publishers_info_by_topic(self.topic)
        return explain_silence(self.topic, seconds, publishers, self._kind.__name__, self.qos)

    def delivery_warning(self) -> str:
        """What to do if many images got lost since the last call; otherwise empty."""
        poor = self._arrivals.poor_delivery()
        if poor is None:
            return ""
        on_the_way, replaced, arrived = poor
        total = on_the_way + replaced + arrived
        if replaced > on_the_way:
            return (
                f"{replaced} of {total} images on {self.topic} were replaced by newer ones before this process took "
                "them: it is too busy, or the camera too fast"
            )
        ours = "" if any(os.environ.get(name) for name in PROFILE_VARIABLES) else "; this node runs without it"
        return (
            f"{on_the_way} of {total} images on {self.topic} got lost on the way (subscribed as "
            f"{describe_qos(self.qos)}): {PROFILE_REMEDY}{ours}"
        )

    def _receive(self, message: Any, info: Any) -> None:
        stamp = message.header.stamp
        self._arrivals.add(
            info["publication_sequence_number"],
            stamp.sec * 1_000_000_000 + stamp.nanosec,
            is_one_publisher=lambda: self._node.count_publishers(self.topic) == 1,
        )
        self._take(message)

    def _on_lost(self, event: Any) -> None:
        self._arrivals.lost_events += event.total_count_change

    def _on_incompatible_qos(self, event: Any) -> None:
        self._node.get_logger().warning(
            f"a publisher on {self.topic} has an incompatible QoS "
            f"({qos_policy_name_from_kind(event.last_policy_kind)}): {self.explain_silence(0.0)}"
        )


def explain_silence(topic: str, seconds: float, publishers: Sequence[Any], expected: str, ours: QoSProfile) -> str:
    """Why no image may have come on a topic for so long, and what to do.

    `publishers` are what `Node.get_publishers_info_by_topic` says; `expected` is the name of the message type.
    """
    text = f"no image on {topic}" + (f" for {seconds:.0f} s" if seconds else "")
    if not publishers:
        return f"{text}: nothing publishes there; check camera_topics, image_transport, namespace and ROS_DOMAIN_ID"
    theirs = "; ".join(f"{p.node_name} ({p.topic_type}, {describe_qos(p.qos_profile)})" for p in publishers)
    text = f"{text}: published by {theirs}; subscribed as {describe_qos(ours)}"
    fitting = [p for p in publishers if p.topic_type == f"sensor_msgs/msg/{expected}"]
    if not fitting:
        return f"{text}; expected sensor_msgs/msg/{expected}: check image_transport"
    refused = [p for p in fitting if _incompatible(p.qos_profile, ours)]
    if any(p.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT for p in refused):
        return (
            f"{text}; best-effort publishers do not reach reliable subscribers: set input_reliability:=best_effort, or "
            f"{_OVERRIDES}{topic}.subscription.reliability where that is set"
        )
    if refused:
        return f"{text}; not compatible: {_incompatible(refused[0].qos_profile, ours)}"
    return f"{text}; the QoS fit: the camera sends nothing, or {PROFILE_REMEDY}"


def _incompatible(theirs: QoSProfile, ours: QoSProfile) -> str:
    compatibility, reason = qos_check_compatible(theirs, ours)
    return str(reason) if compatibility == QoSCompatibility.ERROR else ""
