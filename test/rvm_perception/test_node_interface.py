"""The topics and services of the running node are those of the security policy."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS is not installed")

from rclpy.node import NodeNameNonExistentError  # noqa: E402

from live_node import Client, NodeProcess, wait_for  # noqa: E402
from test_deployment import policy  # noqa: E402

WEIGHTS = Path(__file__).parents[1] / "data" / "rvm_tiny_official_format.npz"
ONLY_AT_TIMES = {
    "/rvm/detections": "where vision_msgs is installed",
    "/clock": "with use_sim_time",
    "/camera/image_raw/compressed": "with image_transport: compressed",
}
"""What is allowed and not used by a node with default parameters."""


def test_policy_allows_what_the_node_does_and_nothing_else(ros_environment: dict[str, str]) -> None:
    parameters = {"weights": str(WEIGHTS), "height": 32, "width": 32, "backend": "torch", "precision": "fp32"}
    topic = "/camera/image_raw"
    with (
        NodeProcess(ros_environment, camera_topics=f"['{topic}']", **parameters),
        Client(topic=topic) as client,
    ):
        client.wait_for_node()
        node = client.node

        def used() -> dict[str, set[str]]:
            found = {
                "publish": node.get_publisher_names_and_types_by_node("rvm", "/"),
                "subscribe": node.get_subscriber_names_and_types_by_node("rvm", "/"),
                "reply": node.get_service_names_and_types_by_node("rvm", "/"),
            }
            return {permission: {name for name, _ in names} for permission, names in found.items()}

        allowed = policy()
        assert allowed.keys() == {"publish", "subscribe", "reply"}
        # Discovery tells one after the other.
        expected = {"publish": "/rvm/features", "subscribe": "/rvm/track_queries", "reply": "/rvm/reset"}

        def discovered() -> bool:
            try:
                return all(name in used()[kind] for kind, name in expected.items())
            except NodeNameNonExistentError:
                return False

        wait_for(discovered, "the node's topics")
        for permission, names in used().items():
            assert names - allowed[permission] == set(), f"not allowed to {permission}"
            assert allowed[permission] - names <= ONLY_AT_TIMES.keys(), f"allowed to {permission} for nothing"
