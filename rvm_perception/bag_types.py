"""Messages of bags without ROS: their definitions, classes to build them with, and their bytes."""

from __future__ import annotations

import array
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rvm_perception.message_types import MessageTypes

if TYPE_CHECKING:
    from rosbags.typesys.store import Typestore

IMAGE, COMPRESSED_IMAGE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
FEATURE_MAP = "rvm_perception/msg/FeatureMap"
TRACK_QUERIES, QUERY_ANSWERS = "rvm_perception/msg/TrackQueries", "rvm_perception/msg/QueryAnswers"
POINT_TRACKS, BOX_TRACKS = "rvm_perception/msg/PointTracks", "rvm_perception/msg/BoxTracks"
MASK_TRACKS = "rvm_perception/msg/MaskTracks"
OWN_TYPES = (FEATURE_MAP, POINT_TRACKS, BOX_TRACKS, MASK_TRACKS, TRACK_QUERIES, QUERY_ANSWERS)

# Those that generated Python classes hold in an array.array; all others are lists.
_ARRAY_CODES = {
    "int8": "b", "uint8": "B", "byte": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "int64": "q",
    "uint64": "Q", "float32": "f", "float64": "d",
}  # fmt: skip
_DTYPES: dict[str, Any] = {"bool": np.bool_, "byte": np.uint8, "char": np.uint8}


class MissingPackageError(ImportError):
    """Bags cannot be read or written, as a package is not installed; the text says which to install."""


def require_rosbags() -> None:
    """Raises `MissingPackageError` if bags cannot be read."""
    try:
        import rosbags.rosbag2  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"bags are read with rosbags, which is not installed ({error}): pip install 'rvm_perception[replay]'"
        ) from error


def new_typestore() -> Typestore:
    """The message definitions of a current ROS 2 and our own."""
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_KILTED)
    store.register({k: v for name in OWN_TYPES for k, v in get_types_from_msg(definition(name), name).items()})
    return store


def definition(name: str) -> str:
    """The text of one of our message definitions. Raises `MissingPackageError` if it was not installed."""
    file = f"{name.rpartition('/')[2]}.msg"
    for folder in _definition_folders():
        if (folder / file).is_file():
            return (folder / file).read_text(encoding="utf-8")
    folders = ", ".join(str(folder) for folder in _definition_folders())
    raise MissingPackageError(f"the message definition {file} is in none of {folders}: install rvm_perception again")


def _definition_folders() -> Iterator[Path]:
    """A source checkout, a ROS installation and a Python environment."""
    yield Path(__file__).parents[1] / "msg"
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    yield from (Path(prefix) / "share" / "rvm_perception" / "msg" for prefix in prefixes if prefix)


class BagMessage:
    """A message with the fields of its definition, made like those of ROS: all keyword arguments, zeros without."""

    MSGTYPE = ""
    FIELDS: dict[str, Any] = {}
    """Name of each field -> a function that makes its empty value."""

    def __init__(self, **values: Any) -> None:
        if unknown := values.keys() - self.FIELDS.keys():
            raise TypeError(f"{self.MSGTYPE} has no {', '.join(sorted(unknown))}; it has {', '.join(self.FIELDS)}")
        for name, make in self.FIELDS.items():
            setattr(self, name, values[name] if name in values else make())


class BagTypes:
    """Classes and serialization of the messages of one set of definitions."""

    def __init__(self, store: Typestore | None = None) -> None:
        self.store = store or new_typestore()
        self._classes: dict[str, type[BagMessage]] = {}

    def message(self, name: str) -> type[BagMessage]:
        """The class of a type, by its full name."""
        if name not in self._classes:
            constants, entries = self.store.fielddefs[name]
            attributes: dict[str, Any] = {
                "MSGTYPE": name,
                "FIELDS": {field: self._empty(description) for field, description in entries},
                **{constant: value for constant, _, value in constants},
            }
            self._classes[name] = type(name.rpartition("/")[2], (BagMessage,), attributes)
        return self._classes[name]

    def serialize(self, message: Any, name: str) -> bytes:
        """A message, of whatever class with these fields, as CDR."""
        return bytes(self.store.serialize_cdr(self._plain(message, name), name, little_endian=True))

    def _empty(self, description: Any) -> Any:
        from rosbags.interfaces import Nodetype

        kind, content = description
        if kind == Nodetype.NAME:
            return self.message(content)
        if kind == Nodetype.BASE:
            name = content[0]
            return {"string": str, "bool": bool, "float32": float, "float64": float}.get(name, int)
        (element_kind, element), length = content
        name = element[0] if element_kind == Nodetype.BASE else ""
        if kind == Nodetype.SEQUENCE:
            return (lambda: array.array(_ARRAY_CODES[name])) if name in _ARRAY_CODES else list
        if name in _ARRAY_CODES:
            return lambda: np.zeros(length, _DTYPES.get(name, name))
        make = self._empty((element_kind, element))
        return lambda: [make() for _ in range(length)]

    def _plain(self, message: Any, name: str) -> Any:
        """The message as the serializer takes it: numbers of a sequence as an array of numpy."""
        values = {}
        for field, description in self.store.fielddefs[name][1]:
            values[field] = self._plain_value(getattr(message, field), description)
        return self.store.types[name](**values)

    def _plain_value(self, value: Any, description: Any) -> Any:
        from rosbags.interfaces import Nodetype

        kind, content = description
        if kind == Nodetype.NAME:
            return self._plain(value, content)
        if kind == Nodetype.BASE:
            return value
        (element_kind, element), _ = content
        if element_kind == Nodetype.NAME:
            return [self._plain(entry, element) for entry in value]
        if element[0] == "string":
            return list(value)
        return np.ascontiguousarray(value, _DTYPES.get(element[0], element[0]))


@cache
def own_types() -> BagTypes:
    """Our messages, and those of ROS."""
    return BagTypes()


def bag_message_types() -> MessageTypes:
    """Classes of the messages that the node publishes, without ROS."""
    types = own_types()
    return MessageTypes(
        FeatureMap=types.message(FEATURE_MAP),
        PointTracks=types.message(POINT_TRACKS),
        BoxTracks=types.message(BOX_TRACKS),
        MaskTracks=types.message(MASK_TRACKS),
        QueryAnswers=types.message(QUERY_ANSWERS),
        Image=types.message(IMAGE),
    )
