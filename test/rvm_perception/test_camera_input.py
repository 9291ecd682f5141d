"""Why no image comes, in words, for every cause that can be told apart; and QoS parameters that no topic takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS is not installed")

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402

from rvm_perception.arrivals import Arrivals  # noqa: E402
from rvm_perception.camera_input import CameraInput, check_qos_overrides, describe_qos, explain_silence  # noqa: E402
from rvm_perception.parameters import ParameterError  # noqa: E402


def qos(reliability: str = "RELIABLE", durability: str = "VOLATILE") -> QoSProfile:
    return QoSProfile(depth=1, reliability=ReliabilityPolicy[reliability], durability=DurabilityPolicy[durability])


def publisher(profile: QoSProfile, kind: str = "Image") -> Any:
    return SimpleNamespace(node_name="driver", topic_type=f"sensor_msgs/msg/{kind}", qos_profile=profile)


@pytest.mark.parametrize(
    ("publishers", "ours", "expected"),
    [
        ([], qos(), "nothing publishes there; check camera_topics, image_transport, namespace and ROS_DOMAIN_ID"),
        ([publisher(qos(), "CompressedImage")], qos(), "expected sensor_msgs/msg/Image: check image_transport"),
        ([publisher(qos("BEST_EFFORT"))], qos(), "set input_reliability:=best_effort"),
        ([publisher(qos())], qos(durability="TRANSIENT_LOCAL"), "not compatible"),
        ([publisher(qos())], qos("BEST_EFFORT"), "shared-memory profile on the camera's side"),
        (
            [publisher(qos("BEST_EFFORT")), publisher(qos(), "CompressedImage")],
            qos("BEST_EFFORT"),
            "shared-memory profile on the camera's side",
        ),
    ],
)
def test_the_remedy_fits_the_cause(publishers: list[Any], ours: QoSProfile, expected: str) -> None:
    text = explain_silence("/camera/image_raw", 7.0, publishers, "Image", ours)
    assert text.startswith("no image on /camera/image_raw for 7 s")
    assert expected in text
    for info in publishers:
        assert f"driver ({info.topic_type}, {describe_qos(info.qos_profile)})" in text
    assert not publishers or f"subscribed as {describe_qos(ours)}" in text


def test_qos_in_words() -> None:
    assert describe_qos(qos()) == "reliable, volatile, keep_last 1"
    unknown = QoSProfile(history=HistoryPolicy.UNKNOWN, reliability=ReliabilityPolicy.BEST_EFFORT)
    assert describe_qos(unknown).startswith("best_effort")
    assert "unknown" not in describe_qos(unknown)


TOPICS = ["/camera/image_raw.subscription", "/rvm/features.publisher"]


@pytest.mark.parametrize(
    "name",
    [
        "qos_overrides./camera/image_raw.subscription.depth",
        "qos_overrides./rvm/features.publisher.reliability",
        "qos_overrides./parameter_events.publisher.depth",
        "height",
    ],
)
def test_parameters_of_topics_that_there_are(name: str) -> None:
    check_qos_overrides({name}, TOPICS)


@pytest.mark.parametrize(
    "name",
    [
        "qos_overrides./camera/image.subscription.depth",
        "qos_overrides./camera/image_raw.publisher.depth",
        "qos_overrides./rvm/features.publisher.deadline",
        "qos_overrides",
    ],
)
def test_parameters_of_topics_that_there_are_not(name: str) -> None:
    with pytest.raises(ParameterError, match=f"unknown parameters: {name}.*; .*/rvm/features.publisher"):
        check_qos_overrides({name if name != "qos_overrides" else "qos_overrides.x"}, TOPICS)


def test_poor_delivery_names_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTDDS_DEFAULT_PROFILES_FILE", raising=False)
    monkeypatch.delenv("FASTRTPS_DEFAULT_PROFILES_FILE", raising=False)
    camera = CameraInput.__new__(CameraInput)
    camera._arrivals, camera.topic, camera.qos = Arrivals(), "/camera/image_raw", qos("BEST_EFFORT")
    assert camera.delivery_warning() == ""
    camera._arrivals.lost_events = 115
    text = camera.delivery_warning()
    assert text.startswith("115 of 115 images on /camera/image_raw got lost on the way (subscribed as best_effort")
    assert "config/fastdds.xml" in text and "this node runs without it" in text
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", "/mine.xml")
    camera._arrivals.lost_events += 5
    assert "without it" not in camera.delivery_warning()
