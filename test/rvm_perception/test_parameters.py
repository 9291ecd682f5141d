"""The parameter table is the only one: README, config/rvm.yaml and what rclpy declares equal it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from rvm_perception.parameters import NodeParameters, ParameterError, load_parameters, markdown_table, yaml_file

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


def yaml_of(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "given.yaml"
    path.write_text(text)
    return path


def test_a_parameter_file_is_read_without_ros(tmp_path: Path) -> None:
    assert load_parameters(yaml_of(tmp_path, yaml_file())) == NodeParameters()
    text = (
        "/**:\n  ros__parameters:\n    height: 64\n    use_sim_time: true\nrvm:\n  ros__parameters:\n    max_gap: 3\n"
    )
    found = load_parameters(yaml_of(tmp_path, text), {"weights": "rvm_s16"})
    assert (found.height, found.max_gap, found.weights) == (64, 3.0, "rvm_s16")
    assert isinstance(found.max_gap, float)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no parameters"),
        ("[1]", "no parameters"),
        ("other:\n  ros__parameters:\n    height: 64\n", "no parameters"),
        ("/**: {ros__parameters: 3}", "expected names and values"),
        ("/**: {ros__parameters: {colour: 3}}", "unknown parameters: colour"),
        ("/**: {ros__parameters: {height: 64.0}}", "height must be a int"),
        ("/**: {ros__parameters: {autostart: 1}}", "autostart must be a bool"),
        ("/**: {ros__parameters: {camera_topics: /a}}", "camera_topics must be a string"),
        ("/**: {ros__parameters: {height: 65}}", "multiple of 16"),
        ("/**: {ros__parameters: !!python/object:os.system {}}", "cannot be read"),
        ("/**: [", "cannot be read"),
    ],
)
def test_parameter_files_that_do_not_fit(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ParameterError, match=reason):
        load_parameters(yaml_of(tmp_path, text))
    with pytest.raises(ParameterError, match="cannot be read"):
        load_parameters(tmp_path / "missing.yaml")
