"""The launch file and the transport profile that it loads."""

from __future__ import annotations

import ast
import dataclasses
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rvm_perception.parameters import NodeParameters

if TYPE_CHECKING:
    from launch import LaunchDescription

ROOT = Path(__file__).parents[2]
LAUNCH_FILE = ROOT / "launch" / "rvm.launch.py"
WEIGHTS = ROOT / "test" / "data" / "rvm_tiny_official_format.npz"
ARGUMENTS = ["params_file", "weights", "camera_topic", "namespace"]
IMAGE_BYTES = 1920 * 1080 * 3


def calls_of(name: str) -> list[ast.Call]:
    """The calls of a function or class of that name in the launch file, in the order they are written."""
    calls = [node for node in ast.walk(ast.parse(LAUNCH_FILE.read_text())) if isinstance(node, ast.Call)]
    return sorted((call for call in calls if ast.unparse(call.func) == name), key=lambda call: call.lineno)


def test_declares_exactly_the_documented_arguments() -> None:
    compile(LAUNCH_FILE.read_text(), str(LAUNCH_FILE), "exec")
    declared = calls_of("DeclareLaunchArgument")
    assert [ast.literal_eval(call.args[0]) for call in declared] == ARGUMENTS
    for call in declared:
        assert {"default_value", "description"} <= {keyword.arg for keyword in call.keywords}


def test_every_argument_is_used() -> None:
    assert {ast.literal_eval(call.args[0]) for call in calls_of("LaunchConfiguration")} == set(ARGUMENTS)


def test_overrides_parameters_that_the_node_has() -> None:
    overridden = {
        ast.literal_eval(node.slice)
        for node in ast.walk(ast.parse(LAUNCH_FILE.read_text()))
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "overrides"
    }
    assert overridden == {"weights", "camera_topics"}
    assert overridden <= {parameter.name for parameter in dataclasses.fields(NodeParameters)}


def test_the_node_gets_the_transport_profile_unless_the_user_brings_one() -> None:
    (node,) = calls_of("Node")
    environment = next(ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "additional_env")
    assert environment == "{'FASTDDS_DEFAULT_PROFILES_FILE': PROFILES_FILE}"
    outer, inner = calls_of("EnvironmentVariable")
    assert ast.literal_eval(outer.args[0]) == "FASTDDS_DEFAULT_PROFILES_FILE", "the user's own"
    assert ast.literal_eval(inner.args[0]) == "FASTRTPS_DEFAULT_PROFILES_FILE", "under its older name"
    assert "PathJoinSubstitution([SHARE, 'config', 'fastdds.xml'])" in ast.unparse(inner)


def test_transport_profile_has_room_for_ten_images() -> None:
    names = {"dds": "http://www.eprosima.com"}
    profile = ElementTree.parse(ROOT / "config" / "fastdds.xml").getroot()
    transports = {
        transport.findtext("dds:transport_id", None, names): transport
        for transport in profile.iterfind(".//dds:transport_descriptor", names)
    }
    used = [transport.text for transport in profile.iterfind(".//dds:userTransports/dds:transport_id", names)]
    assert set(used) == set(transports)
    types = {transport.findtext("dds:type", None, names): transport for transport in transports.values()}
    assert set(types) == {"SHM", "UDPv4"}
    assert int(types["SHM"].findtext("dds:segment_size", "0", names)) >= 10 * IMAGE_BYTES


if find_spec("launch_pytest"):
    import launch_pytest

    @launch_pytest.fixture
    def launched_node(ros_environment: dict[str, str], tmp_path: Path) -> LaunchDescription:
        """The launch file, with a parameter file of a small input and the other arguments given."""
        from launch import LaunchDescription
        from launch.actions import IncludeLaunchDescription
        from launch.launch_description_sources import PythonLaunchDescriptionSource

        params_file = tmp_path / "small.yaml"
        params_file.write_text("/**:\n  ros__parameters:\n    height: 64\n    width: 64\n    weights: replaced\n")
        arguments = {
            "params_file": str(params_file),
            "weights": str(WEIGHTS),
            "camera_topic": "/cam/image_raw",
            "namespace": "front",
        }
        source = PythonLaunchDescriptionSource(str(LAUNCH_FILE))
        return LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments.items())])

    @pytest.mark.launch(fixture=launched_node)
    def test_starts_the_node_active_in_its_namespace() -> None:
        from lifecycle_msgs.srv import GetState

        from live_node import Client, wait_for

        with Client(topic="/cam/image_raw", node_name="front/rvm") as client:
            client.wait_for_node()

            def state() -> str:
                return client.call(GetState, "/front/rvm/get_state", GetState.Request()).current_state.label

            wait_for(lambda: state() == "active", "the node to become active")
            wait_for(lambda: client.node.count_publishers("/front/rvm/features"), "/front/rvm/features")

else:

    @pytest.mark.launch
    @pytest.mark.skip(reason="launch_pytest is not installed (it comes with ROS, not with the wheels of `make setup`)")
    def test_starts_the_node_active_in_its_namespace() -> None: ...
