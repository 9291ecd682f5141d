"""Starts the node: `ros2 launch rvm_perception rvm.launch.py weights:=rvm_s16 camera_topic:=/camera/image_raw`."""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import EnvironmentVariable, LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

SHARE = FindPackageShare("rvm_perception")
# Shared memory for images, unless the user brings a profile, under this name or the one it had before ROS 2 Kilted.
PROFILES_FILE = EnvironmentVariable(
    "FASTDDS_DEFAULT_PROFILES_FILE",
    default_value=EnvironmentVariable(
        "FASTRTPS_DEFAULT_PROFILES_FILE", default_value=PathJoinSubstitution([SHARE, "config", "fastdds.xml"])
    ),
)


def start_node(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The node; an argument that is empty leaves what the parameter file says."""
    weights = LaunchConfiguration("weights").perform(context)
    camera_topic = LaunchConfiguration("camera_topic").perform(context)
    overrides: dict[str, object] = {}
    if weights:
        overrides["weights"] = ParameterValue(weights, value_type=str)
    if camera_topic:
        overrides["camera_topics"] = [camera_topic]
    return [
        Node(
            package="rvm_perception",
            executable="rvm",
            name="rvm",
            namespace=LaunchConfiguration("namespace"),
            parameters=[LaunchConfiguration("params_file"), overrides],
            additional_env={"FASTDDS_DEFAULT_PROFILES_FILE": PROFILES_FILE},
            output="screen",
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """The arguments, then the node."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "params_file",
                default_value=PathJoinSubstitution([SHARE, "config", "rvm.yaml"]),
                description="YAML file with the node's parameters",
            ),
            DeclareLaunchArgument(
                "weights",
                default_value="",
                description="checkpoint file or name of fetched weights; empty: as params_file says",
            ),
            DeclareLaunchArgument(
                "camera_topic",
                default_value="",
                description="base topic of the camera's images; empty: as params_file says",
            ),
            DeclareLaunchArgument("namespace", default_value="", description="namespace of the node"),
            OpaqueFunction(function=start_node),
        ]
    )
