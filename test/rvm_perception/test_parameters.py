"""The parameter table is the only one: README, config/rvm.yaml and what rclpy declares equal it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from rvm_perception.parameters import NodeParameters, ParameterError, markdown_table, yaml_file

ROOT = Path(__file__).parents[2]


def test_readme_shows_the_table() -> None:
    assert markdown_table() in (ROOT / "README.md").read_text(), "run `python -m rvm_perception.parameters table`"


def test_config_file_is_the_table() -> None:
    assert (ROOT / "config" / "rvm.yaml").read_text() == yaml_file(), "run `python -m rvm_perception.parameters yaml`"


def test_config_file_holds_the_defaults() -> None:
    values = yaml.safe_load((ROOT / "config" / "rvm.yaml").read_text())["/**"]["ros__parameters"]
    assert set(values) == {parameter.name for parameter in fields(NodeParameters)}
    for parameter in fields(NodeParameters):
        value = values[parameter.name]
        assert type(value) is (list if isinstance(parameter.default, tuple) else type(parameter.default))
        if isinstance(value, list):
            value = tuple(entry for entry in value if entry)
        assert value == parameter.default


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"height": 100}, "height must be a multiple of 16, got 100"),
        ({"height": 8192}, "height must lie between 16 and 4096, got 8192"),
        ({"resize_policy": "zoom"}, "resize_policy must be one of letterbox, center_crop, stretch, got 'zoom'"),
        ({"camera_topics": ()}, "at least one topic"),
        ({"camera_topics": ("/a/image", "/b/image"), "camera_names": ("a",)}, "one name for each of the 2"),
        ({"camera_topics": ("/x/cam/image", "/y/cam/image")}, "cameras need different names"),
        ({"camera_names": ("front cam",)}, "letters, digits and underscores"),
    ],
)
def test_values_that_do_not_fit_are_refused(values: dict[str, object], expected: str) -> None:
    with pytest.raises(ParameterError, match=expected):
        NodeParameters(**values)  # type: ignore[arg-type]


def test_cameras_are_named_after_their_topics() -> None:
    parameters = NodeParameters(camera_topics=("/front/image_raw", "/robot/rear/image_raw", "/image"))
    assert parameters.cameras == {"front": "/front/image_raw", "rear": "/robot/rear/image_raw", "image": "/image"}


@pytest.fixture
def ros_context() -> Iterator[object]:
    rclpy = pytest.importorskip("rclpy", reason="ROS is not installed")
    context = rclpy.Context()
    rclpy.init(context=context)
    yield context
    rclpy.shutdown(context=context)


def test_rclpy_declares_the_table(ros_context: object) -> None:
    from rclpy.node import Node

    from rvm_perception.parameters import declare_parameters, read_parameters

    node = Node("parameters_test", context=ros_context)  # type: ignore[arg-type]
    declare_parameters(node)
    assert read_parameters(node) == NodeParameters()
    for parameter in fields(NodeParameters):
        descriptor = node.describe_parameter(parameter.name)
        assert descriptor.description == parameter.metadata["description"]
        if parameter.metadata["limits"]:
            ranges = [*descriptor.integer_range, *descriptor.floating_point_range]
            assert [(r.from_value, r.to_value) for r in ranges] == [parameter.metadata["limits"]]
    node.destroy_node()


def test_unknown_parameters_are_named(ros_context: object) -> None:
    from rclpy.node import Node
    from rclpy.parameter import Parameter

    from rvm_perception.parameters import declare_parameters

    overrides = [Parameter("heigth", value=128), Parameter("width", value=128)]
    node = Node("parameters_test", context=ros_context, parameter_overrides=overrides)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="unknown parameters: heigth; known: .*height"):
        declare_parameters(node)
    node.destroy_node()
