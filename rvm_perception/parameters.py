"""The node's parameters: one table, from which declarations, documentation and the values the node reads are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from rvm_perception.stream import LATE_LIMIT, LATE_TOLERANCE_NS, Policy, StreamRules

if TYPE_CHECKING:
    from rclpy.node import Node

_NOT_OURS = ("use_sim_time", "qos_overrides", "start_type_description_service")
"""Beginnings of the names of parameters that rclpy declares; those of qos_overrides are checked in configure."""

_YAML_TYPES = {str: "string", tuple: "string[]", bool: "bool", int: "int", float: "double"}


class ParameterError(ValueError):
    """A parameter is unknown, out of range or does not fit the others."""


def _parameter(
    default: Any,
    description: str,
    *,
    limits: tuple[float, float] | None = None,
    step: int = 1,
    live: bool = False,
) -> Any:
    metadata = {"description": description, "limits": limits, "step": step, "live": live}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class NodeParameters:
    """The node's parameters, as read when it is configured. Raises `ParameterError` for values that do not fit."""

    autostart: bool = _parameter(True, "Configure and activate at start; otherwise wait for a lifecycle manager.")
    camera_topics: tuple[str, ...] = _parameter(
        ("/camera/image_raw",), "Base topics of the cameras, without the suffix of a transport."
    )
    camera_names: tuple[str, ...] = _parameter(
        (), "Names of the cameras, one for each topic; empty: the last but one part of each topic."
    )
    image_transport: Literal["raw", "compressed"] = _parameter(
        "raw", "raw subscribes to each topic as sensor_msgs/Image, compressed to <topic>/compressed as CompressedImage."
    )
    input_reliability: Literal["best_effort", "reliable"] = _parameter(
        "best_effort",
        "Reliability asked of the cameras; best_effort takes images from reliable and best-effort publishers.",
    )
    weights: str = _parameter(
        "",
        "Checkpoint file (.npz or .safetensors) or name of fetched weights (rvm_s16); empty: those that ship for the "
        "model (rvm_nano), or random ones where none ship.",
    )
    model: Literal[
        "rvm_nano", "rvm_s16", "rvm_b16", "rvm_l16", "rvm_h16", "trecvit_b16",
        "rvm_nano_image", "rvm_s16_image", "rvm_b16_image", "rvm_l16_image", "rvm_h16_image",
    ] = _parameter(
        "rvm_nano",
        "Model when weights is empty; otherwise the checkpoint decides, and only the ending _image counts, which takes "
        "the memory from RVM.",
    )  # fmt: skip
    seed: int = _parameter(0, "Seed of the random weights.", limits=(0, 2**31 - 1))
    backend: Literal["auto", "torch", "inductor", "openvino", "tensorrt"] = _parameter(
        "auto", "Runtime of the engine; auto: by what is installed and the machine; inductor must be asked for."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = _parameter(
        "auto", "Arithmetic of the engine; auto: the fastest floating-point one that the device computes natively."
    )
    engine_fallback: bool = _parameter(
        False, "Where the engine cannot be made or is refused, try the next backend, with a warning, before failing."
    )
    device: str = _parameter("auto", "cpu, cuda or cuda:N; auto: a GPU where there is one, else the CPU.")
    height: int = _parameter(256, "Height of the model's input, pixels, a multiple of 16.", limits=(16, 4096), step=16)
    width: int = _parameter(256, "Width of the model's input, pixels, a multiple of 16.", limits=(16, 4096), step=16)
    resize_policy: Literal["letterbox", "center_crop", "stretch"] = _parameter(
        "letterbox",
        "How an image becomes the input: letterbox pads, center_crop cuts, stretch changes the aspect ratio.",
    )
    feature_dtype: Literal["float32", "float16"] = _parameter(
        "float32", "Type of the values in FeatureMap.data; float16 halves the message."
    )
    batching: Literal["auto", "measured", "always", "never"] = _parameter(
        "auto",
        "Whether frames of several cameras that wait are stepped at once, by a second engine; measured: from as many "
        "on as is faster, measured in configure; auto: measured on a GPU, never on a CPU; always: from two on.",
    )
    max_gap: float = _parameter(
        2.0, "Seconds between two stamps above which the state is reset; 0: never.", limits=(0.0, 3600.0), live=True
    )
    late_tolerance: float = _parameter(
        LATE_TOLERANCE_NS / 1e9,
        "A stamp by less than so many seconds before the last one is a late frame, which is dropped; more is a jump of "
        "the clock.",
        limits=(0.0, 3600.0),
        live=True,
    )
    late_limit: int = _parameter(
        LATE_LIMIT, "So many late frames in a row are a jump of the clock too.", limits=(1, 1000), live=True
    )
    on_backward: Policy = _parameter(
        "reset", "What a backward jump of the stamps does: reset the state, or continue with it.", live=True
    )
    on_clock_jump: Policy = _parameter(
        "reset", "What a backward jump of /clock (use_sim_time) does before any stamp tells it.", live=True
    )
    on_resolution: Policy = _parameter("reset", "What images of another size do.", live=True)
    on_frame_id: Policy = _parameter("reset", "What images of another frame_id do.", live=True)
    max_failures: int = _parameter(
        3,
        "After so many failed steps in a row (error, NaN, no memory) the state is reset.",
        limits=(1, 1000),
        live=True,
    )
    tracking: Literal["features", "none"] = _parameter(
        "features",
        "features follows points, boxes and masks by the features alone, without training; none: no tracking topics.",
    )
    point_head: str = _parameter(
        "", "Trained head that follows points, a file or the name of one that ships (rvm_nano_points); empty: no head."
    )
    box_head: str = _parameter(
        "", "Trained head that follows boxes, a file or the name of one that ships (rvm_nano_boxes); empty: no head."
    )
    track_context: int = _parameter(
        8, "Frames that a track is matched with, beside the one it was added in; more cost more.", limits=(1, 64)
    )
    max_points: int = _parameter(
        256, "Points followed at once in each camera; more are refused.", limits=(0, 4096), live=True
    )
    max_boxes: int = _parameter(
        32, "Boxes followed at once in each camera; more are refused.", limits=(0, 256), live=True
    )
    max_masks: int = _parameter(
        16, "Masks followed at once in each camera; more are refused.", limits=(0, 256), live=True
    )
    query_tolerance: float = _parameter(
        0.05,
        "Seconds between the stamp of a track query and the processed frame nearest to it; beyond it is refused.",
        limits=(0.0, 10.0),
        live=True,
    )
    query_wait: float = _parameter(
        1.0,
        "Seconds that the stamp of a track query may be ahead of the newest processed frame: it waits for its own.",
        limits=(0.0, 60.0),
        live=True,
    )
    stall_timeout: float = _parameter(
        5.0, "Seconds without an image after which the node says so, and why.", limits=(0.5, 3600.0), live=True
    )
    step_timeout: float = _parameter(
        10.0, "Seconds of one step after which the node reports an error.", limits=(0.1, 3600.0), live=True
    )
    ambiguous_encoding: str = _parameter(
        "",
        "How to read 8UC1 to 8UC4 and 16UC1, which do not tell their colours, e.g. bgr8; empty: refuse them.",
        live=True,
    )
    max_image_pixels: int = _parameter(
        2**26, "Compressed images that claim more pixels than this are refused.", limits=(1, 2**31 - 1), live=True
    )
    overlay_alpha: float = _parameter(0.6, "Weight of the feature colours in ~/overlay.", limits=(0.0, 1.0), live=True)

    def __post_init__(self) -> None:
        for parameter in fields(self):
            self._check(parameter, getattr(self, parameter.name))
        if not self.camera_topics or not all(self.camera_topics):
            raise ParameterError('camera_topics must name at least one topic, e.g. ["/camera/image_raw"]')
        if self.camera_names and len(self.camera_names) != len(self.camera_topics):
            raise ParameterError(
                f"camera_names must be empty or have one name for each of the {len(self.camera_topics)} camera_topics, "
                f"got {len(self.camera_names)}: {list(self.camera_names)}"
            )
        names = list(self.cameras)
        if len(names) != len(self.camera_topics):
            raise ParameterError(
                f"cameras need different names, got them for {list(self.camera_topics)} as {names}; set camera_names"
            )
        for name in names:
            if not name.isidentifier():
                raise ParameterError(
                    f"camera name {name!r} must consist of letters, digits and underscores: it becomes part of a topic"
                )

    @property
    def cameras(self) -> dict[str, str]:
        """Base topic of each camera by name, in the order given."""
        names = self.camera_names or tuple(_default_name(topic) for topic in self.camera_topics)
        return dict(zip(names, self.camera_topics, strict=True))

    @property
    def stream_rules(self) -> StreamRules:
        """When a camera's state is reset."""
        return StreamRules(**{rule.name: getattr(self, rule.name) for rule in fields(StreamRules)})

    @staticmethod
    def _check(parameter: Field[Any], value: Any) -> None:
        limits, choices = parameter.metadata["limits"], _choices(parameter.name)
        if choices and value not in choices:
            raise ParameterError(f"{parameter.name} must be one of {', '.join(choices)}, got {value!r}")
        if limits and not limits[0] <= value <= limits[1]:
            raise ParameterError(f"{parameter.name} must lie between {limits[0]} and {limits[1]}, got {value}")
        if limits and parameter.metadata["step"] > 1 and value % parameter.metadata["step"]:
            raise ParameterError(f"{parameter.name} must be a multiple of {parameter.metadata['step']}, got {value}")


LIVE = frozenset(parameter.name for parameter in fields(NodeParameters) if parameter.metadata["live"])
"""Parameters that may change while the node is configured or active; the others are read in configure."""


def declare_parameters(node: Node) -> None:
    """Declares every parameter of the table with its description and range.

    Raises `ParameterError` for a parameter given to the node (by file or command line) that the table does not have:
    rclpy itself would ignore it in silence.
    """
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    known = {parameter.name for parameter in fields(NodeParameters)}
    given = set(node._parameter_overrides)  # rclpy offers no public way to see them before they are declared
    unknown = {name for name in given - known if name.split(".")[0] not in _NOT_OURS}
    if unknown:
        raise ParameterError(f"unknown parameters: {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
    for parameter in fields(NodeParameters):
        limits, choices = parameter.metadata["limits"], _choices(parameter.name)
        descriptor = ParameterDescriptor(description=parameter.metadata["description"])
        if choices:
            descriptor.additional_constraints = f"one of: {', '.join(choices)}"
        if limits and isinstance(parameter.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=limits[0], to_value=limits[1])]
        elif limits:
            step = parameter.metadata["step"]
            descriptor.integer_range = [IntegerRange(from_value=limits[0], to_value=limits[1], step=step)]
        default = parameter.default
        value = _ros_list(default) if isinstance(default, tuple) else default
        node.declare_parameter(parameter.name, value, descriptor)


def read_parameters(node: Node, changes: Mapping[str, Any] | None = None) -> NodeParameters:
    """The node's parameters as they are now, with `changes` over them. Raises `ParameterError` if they do not fit."""
    values: dict[str, Any] = {}
    for parameter in fields(NodeParameters):
        value: Any = node.get_parameter(parameter.name).value
        value = (changes or {}).get(parameter.name, value)
        values[parameter.name] = tuple(filter(None, value)) if isinstance(parameter.default, tuple) else value
    return NodeParameters(**values)


def load_parameters(path: str | Path, changes: Mapping[str, Any] | None = None) -> NodeParameters:
    """The parameters of a file such as config/rvm.yaml, with `changes` over them, without ROS.

    Those of every node (/**) and of a node named rvm count. Raises `ParameterError` for a file that cannot be read, is
    no parameter file, or has parameters that are unknown, of another type, or do not fit.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParameterError(f"{path} cannot be read as parameters: {error}") from error
    values: dict[str, Any] = {}
    for node in ("/**", "rvm", "/rvm"):
        section = content.get(node) if isinstance(content, dict) else None
        given = section.get("ros__parameters") if isinstance(section, dict) else None
        if given is not None and not isinstance(given, dict):
            raise ParameterError(f"{path}: expected names and values under {node}: ros__parameters, got {given!r}")
        values |= given or {}
    if not values:
        raise ParameterError(f"{path} holds no parameters under /**: ros__parameters:")
    values = {name: value for name, value in values.items() if name.split(".")[0] not in _NOT_OURS}
    known = {parameter.name: parameter for parameter in fields(NodeParameters)}
    if unknown := values.keys() - known.keys():
        raise ParameterError(f"{path}: unknown parameters: {', '.join(sorted(map(str, unknown)))}")
    return NodeParameters(
        **{name: _typed(known[name], value) for name, value in (values | dict(changes or {})).items()}
    )


def _typed(parameter: Field[Any], value: Any) -> Any:
    kind = type(parameter.default)
    if kind is tuple and isinstance(value, (list, tuple)) and all(isinstance(entry, str) for entry in value):
        return tuple(filter(None, value))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ParameterError(f"{parameter.name} must be a {_YAML_TYPES[kind]}, got {value!r}")
    return value


def markdown_table() -> str:
    """The table as the README shows it."""
    rows = ["| parameter | type | default | allowed | live | meaning |", "|---|---|---|---|---|---|"]
    for parameter in fields(NodeParameters):
        kind = _YAML_TYPES[type(parameter.default)]
        limits, choices = parameter.metadata["limits"], _choices(parameter.name)
        allowed = ", ".join(f"`{choice}`" for choice in choices)
        if limits:
            allowed = f"{limits[0]} to {limits[1]}"
            if parameter.metadata["step"] > 1:
                allowed += f", multiples of {parameter.metadata['step']}"
        live = "yes" if parameter.metadata["live"] else ""
        cells = (f"`{parameter.name}`", kind, f"`{yaml_value(parameter.default)}`", allowed, live)
        rows.append(f"| {' | '.join(cells)} | {parameter.metadata['description']} |")
    return "\n".join(rows)


def yaml_file() -> str:
    """The text of config/rvm.yaml: every parameter with its default and description."""
    lines = ["# Every parameter of the node with its default. Pass a copy: params_file:=my.yaml", "/**:"]
    lines.append("  ros__parameters:")
    for parameter in fields(NodeParameters):
        assert parameter.default is not MISSING
        lines.append(f"    # {parameter.metadata['description']}")
        if choices := _choices(parameter.name):
            lines.append(f"    # One of: {', '.join(choices)}.")
        lines.append(f"    {parameter.name}: {yaml_value(parameter.default)}")
    return "\n".join(lines) + "\n"


def yaml_value(value: Any) -> str:
    """A default as YAML writes it."""
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{entry}"' for entry in _ros_list(value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


@cache
def _choices(name: str) -> tuple[str, ...]:
    """What a parameter is limited to by its type; empty if it is not."""
    annotation = get_type_hints(NodeParameters)[name]
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _ros_list(entries: tuple[str, ...]) -> list[str]:
    """ROS cannot tell the type of an empty list; one empty string stands for it."""
    return list(entries) or [""]


def _default_name(topic: str) -> str:
    parts = [part for part in topic.split("/") if part]
    return parts[-2] if len(parts) > 1 else (parts or ["camera"])[-1]


if __name__ == "__main__":
    # How the two documents are made again: `python -m rvm_perception.parameters table | yaml`.
    import sys

    sys.stdout.write(yaml_file() if sys.argv[1:] == ["yaml"] else markdown_table() + "\n")
