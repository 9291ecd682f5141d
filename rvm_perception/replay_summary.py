"""What a replay tells about itself: the contents of summary.json and timing.json, written, read and checked.

summary.json is the same, byte for byte, whenever the same recording is replayed with the same engine; what differs from
run to run, the times, is in timing.json and in <camera>/timing.csv.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

FORMAT = 1
"""Version of the layout of a replay's folder; grows with every change that a reader must know of."""

SUMMARY, TIMING = "summary.json", "timing.json"

MOST_REJECTIONS = 100
"""So many rejections of a camera are told one by one; all are counted."""


class SummaryError(ValueError):
    """A summary is missing, damaged or of another version."""


@dataclass(frozen=True, kw_only=True)
class Reset:
    """A frame at which a camera's state started anew. The first frame of all is none."""

    frame: int
    """Number of the frame among those of the camera that were taken from the bag, from 0."""
    stamp_ns: int
    epoch: int
    """The epoch that starts with the frame."""
    reason: str
    """As in `Stream.resets`: gap, backward, resolution, frame_id."""


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A frame that was not stepped."""

    frame: int
    """As in `Reset`."""
    stamp_ns: int
    reason: str
    """A short name to count by, as in `CameraSummary.rejected`."""
    message: str


@dataclass(frozen=True, kw_only=True)
class CameraSummary:
    """One camera's frames. received = processed + rejected, as every frame has its turn."""

    name: str
    """Also the name of its folder in the results."""
    topic: str
    """In the bag."""
    message_type: str
    """sensor_msgs/msg/Image or sensor_msgs/msg/CompressedImage."""
    received: int
    processed: int
    rejected: dict[str, int]
    """Frames by reason."""
    resets: tuple[Reset, ...]
    rejections: tuple[Rejection, ...]
    """The first `MOST_REJECTIONS`."""
    out_of_order: int
    """Frames that lie in the bag after one of a later stamp, and were put in their place."""
    first_stamp_ns: int | None
    """Of the processed frames; None where there are none."""
    last_stamp_ns: int | None
    duration_s: float
    """Bag time between the first and the last processed frame."""
    image_sizes: tuple[tuple[int, int], ...]
    """(height, width) of the processed images, each once, in the order of their coming."""
    queries: int
    """Requests for tracks in the bag that name this camera."""
    queries_accepted: int
    """Parts of requests; see QueryAnswers."""
    queries_refused: int
    tracks: dict[str, int]
    """How many tracks there were of each kind: point, box, mask."""
    features: str
    """File or folder of the features, relative to the results: <camera>/features.npz; empty if there is none."""
    tables: tuple[str, ...]
    """Files of frames and tracks, likewise."""
    overlay: str
    """Film of the features over the images, likewise; empty if there is none."""


@dataclass(frozen=True, kw_only=True)
class EngineSummary:
    """What computed."""

    model: str
    weights: str
    """As given: a name, or the name of a file without its folder; empty: random weights."""
    weights_hash: str
    random_weights: bool
    backend: str
    precision: str
    device: str
    image_size: tuple[int, int]
    """(height, width) of the model's input."""
    tracker: str
    """Empty without tracking."""


@dataclass(frozen=True, kw_only=True)
class ReplaySummary:
    """The contents of summary.json."""

    format: int = FORMAT
    bag: str
    """Name of the file or folder."""
    bag_storage: str
    """sqlite3 or mcap."""
    bag_messages: int
    """Of the topics that were read."""
    recovered: str
    """Empty for a bag that was read whole; else what is wrong with it: only its readable part was evaluated."""
    lost: int | None
    """Messages that the bag says to have and that could not be read; None where it does not say."""
    code_version: str
    fingerprint: str
    """sha256 over recording, weights, engine, parameters and code version: what decides about the results."""
    engine: EngineSummary
    parameters: dict[str, Any]
    """Every parameter of the node, by name."""
    cameras: tuple[CameraSummary, ...]
    messages: dict[str, int]
    """Messages in replay.mcap by topic."""

    @property
    def frames(self) -> int:
        """Processed frames of all cameras."""
        return sum(camera.processed for camera in self.cameras)


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Of a time in milliseconds, over the frames."""

    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, kw_only=True)
class ReplayTiming:
    """The contents of timing.json: how long the run took. Times of single frames are in <camera>/timing.csv."""

    stepping_s: float
    """Spent on reading, preprocessing, engine and tracking, over all parts of a run that was interrupted."""
    frames_per_s: float
    """Processed frames of all cameras over `stepping_s`."""
    real_time_factor: float
    """Duration of the recording over `stepping_s`."""
    cameras: dict[str, dict[str, Percentiles]] = field(default_factory=dict)
    """Camera -> preprocess_ms, engine_ms, tracking_ms; without cameras of which no frame was processed."""


def write_json(path: Path, value: ReplaySummary | ReplayTiming) -> None:
    """Writes a summary or timing; the caller cares for the file being there whole or not at all."""
    text = json.dumps(asdict(value), indent=2, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_summary(folder: Path) -> ReplaySummary:
    """The summary in a folder of results. Raises `SummaryError`."""
    return _read(folder / SUMMARY, ReplaySummary)


def read_timing(folder: Path) -> ReplayTiming:
    """The times in a folder of results. Raises `SummaryError`."""
    return _read(folder / TIMING, ReplayTiming)


def json_schema(kind: type = ReplaySummary) -> dict[str, Any]:
    """The JSON schema of summary.json, or of timing.json with `ReplayTiming`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": kind.__name__, **_schema(kind)}


T = TypeVar("T")


def _read(path: Path, kind: type[T]) -> T:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SummaryError(f"{path} does not exist: expected a folder that `rvm replay` has written") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SummaryError(f"{path} cannot be read: {error}") from error
    if kind is ReplaySummary and isinstance(content, dict) and content.get("format") != FORMAT:
        raise SummaryError(f"{path} has format {content.get('format')!r}, expected {FORMAT}: replay the bag once more")
    try:
        value: T = _build(kind, content)
    except (TypeError, ValueError, KeyError) as error:
        raise SummaryError(f"{path} is not what `rvm replay` writes: {error}") from error
    return value


def _build(kind: Any, value: Any) -> Any:
    """A value of JSON as what the annotation says."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if value is None else _build(next(a for a in arguments if a is not NoneType), value)
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise TypeError(f"expected an object for {getattr(kind, '__name__', kind)}, got {type(value).__name__}")
        hints = get_type_hints(kind)
        known = {f.name for f in fields(kind)}
        if unknown := value.keys() - known:
            raise ValueError(f"unknown entries {sorted(unknown)}")
        return kind(**{name: _build(hints[name], entry) for name, entry in value.items()})  # type: ignore[operator]
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(f"expected a list, got {type(value).__name__}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_build(entry_kind, entry) for entry_kind, entry in zip(kinds, value, strict=True))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise TypeError(f"expected an object, got {type(value).__name__}")
        return {key: _build(arguments[1], entry) for key, entry in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if kind is not Any and type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {value!r}")
    return value


_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def _schema(kind: Any) -> dict[str, Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return {"anyOf": [{"type": "null"} if a is NoneType else _schema(a) for a in arguments]}
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        properties = {f.name: _schema(hints[f.name]) for f in fields(kind)}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
    if origin is tuple and arguments[-1] is not Ellipsis:
        size = len(arguments)
        return {"type": "array", "prefixItems": [_schema(a) for a in arguments], "minItems": size, "maxItems": size}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1])}
    return {} if kind is Any else {"type": _JSON_TYPES[kind]}
