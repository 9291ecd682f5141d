"""Reads TFRecord files of tf.Example, as TensorFlow Datasets writes them, without TensorFlow.

A record is its length (8 bytes), a checksum of these, the data and a checksum of the data; all little-endian. Needs
google-crc32c and protobuf, of the extra `train`.
"""

from __future__ import annotations

import functools
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rvm_training.evaluation.benchmark import DatasetError

MAX_RECORD_BYTES = 1 << 30
"""Limit of one record; those of MOVi-E have about 10 MB."""
_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8


@dataclass(frozen=True)
class Values:
    """What an example has under one name; which kind it is, the dataset knows."""

    feature: Any

    @property
    def bytes(self) -> list[bytes]:
        """Texts and files."""
        return list(self.feature.bytes_list.value)

    @property
    def floats(self) -> npt.NDArray[np.float64]:
        """(n,)."""
        return np.array(self.feature.float_list.value, np.float64)

    @property
    def ints(self) -> npt.NDArray[np.int64]:
        """(n,)."""
        return np.array(self.feature.int64_list.value, np.int64)


def record_offsets(path: Path) -> list[int]:
    """Where the records of a file begin. Reads their lengths only. Raises `DatasetError` for a damaged file."""
    offsets, offset, size = [], 0, path.stat().st_size
    with path.open("rb") as file:
        while offset < size:
            length = _read_length(file, path, offset, size)
            offsets.append(offset)
            offset += _HEADER.size + length + _FOOTER.size
    return offsets


def read_record(path: Path, offset: int) -> bytes:
    """The data of the record that begins there. Raises `DatasetError` where a checksum does not fit."""
    with path.open("rb") as file:
        length = _read_length(file, path, offset, os.fstat(file.fileno()).st_size)
        data = file.read(length)
        (checksum,) = _FOOTER.unpack(file.read(_FOOTER.size))
    if _masked_crc(data) != checksum:
        raise DatasetError(f"{path}: the record at byte {offset} is damaged: its checksum does not fit")
    return data


def parse_example(data: bytes) -> dict[str, Values]:
    """The features of a tf.Example by name. Raises `DatasetError` for what is none."""
    message, decode_error = _example_class()
    try:
        example = message.FromString(data)
    except decode_error as error:
        raise DatasetError(f"a record is no tf.Example: {error}") from error
    return {entry.key: Values(entry.value) for entry in example.features.feature}


def _read_length(file: Any, path: Path, offset: int, size: int) -> int:
    file.seek(offset)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise DatasetError(f"{path}: it is cut off in the record at byte {offset}")
    length, checksum = _HEADER.unpack(header)
    if _masked_crc(header[:8]) != checksum:
        raise DatasetError(f"{path} is no TFRecord file, or damaged at byte {offset}")
    if length > MAX_RECORD_BYTES or offset + _HEADER.size + length + _FOOTER.size > size:
        raise DatasetError(f"{path}: it is cut off in the record at byte {offset}, which has {length} bytes")
    return int(length)


def _masked_crc(data: bytes) -> int:
    try:
        import google_crc32c
    except ImportError as error:
        raise _missing("google-crc32c") from error
    crc = google_crc32c.value(data)
    return int(((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF)


def _missing(package: str) -> ImportError:
    return ImportError(f"reading TFRecord files needs {package}: pip install 'rvm_perception[train]'")


@functools.cache
def _example_class() -> tuple[Any, type[Exception]]:
    """The message tf.Example, described here instead of by a generated file, and the error of its parser."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
    except ImportError as error:
        raise _missing("protobuf") from error
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="rvm_training/example.proto", package="rvm_training")
    layout: dict[str, list[tuple[str, int, int, int, str]]] = {
        "BytesList": [("value", 1, field.LABEL_REPEATED, field.TYPE_BYTES, "")],
        "FloatList": [("value", 1, field.LABEL_REPEATED, field.TYPE_FLOAT, "")],
        "Int64List": [("value", 1, field.LABEL_REPEATED, field.TYPE_INT64, "")],
        "Feature": [
            ("bytes_list", 1, field.LABEL_OPTIONAL, field.TYPE_MESSAGE, "BytesList"),
            ("float_list", 2, field.LABEL_OPTIONAL, field.TYPE_MESSAGE, "FloatList"),
            ("int64_list", 3, field.LABEL_OPTIONAL, field.TYPE_MESSAGE, "Int64List"),
        ],
        # A map is, in a file, a list of such entries.
        "Entry": [
            ("key", 1, field.LABEL_OPTIONAL, field.TYPE_STRING, ""),
            ("value", 2, field.LABEL_OPTIONAL, field.TYPE_MESSAGE, "Feature"),
        ],
        "Features": [("feature", 1, field.LABEL_REPEATED, field.TYPE_MESSAGE, "Entry")],
        "Example": [("features", 1, field.LABEL_OPTIONAL, field.TYPE_MESSAGE, "Features")],
    }
    for name, fields in layout.items():
        entry = file.message_type.add(name=name)
        for field_name, number, label, kind, of in fields:
            entry.field.add(
                name=field_name, number=number, label=label, type=kind, type_name=f".rvm_training.{of}" if of else None
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = message_factory.GetMessageClass(pool.FindMessageTypeByName("rvm_training.Example"))
    return found, message.DecodeError
