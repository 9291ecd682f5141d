"""TFRecord files, written by hand, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("google_crc32c", reason="reading TFRecord files needs google-crc32c, of the extra train")
pytest.importorskip("google.protobuf", reason="reading TFRecord files needs protobuf, of the extra train")

from mini_movi import encode_example, record
from rvm_training.datasets.tfrecord import parse_example, read_record, record_offsets
from rvm_training.evaluation.benchmark import DatasetError

RECORDS = [b"first", b"", b"x" * 1000]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data.tfrecord"
    path.write_bytes(b"".join(map(record, RECORDS)))
    return path


def test_a_known_record_is_read(tmp_path: Path) -> None:
    # The checksums of a length of 9 and of "123456789", whose CRC-32C is 0xe3069283, masked by hand.
    masked = ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF
    data = record(b"123456789")
    assert data[-4:] == masked.to_bytes(4, "little")
    path = tmp_path / "one"
    path.write_bytes(data)
    assert read_record(path, 0) == b"123456789"


def test_records_are_found_and_read(path: Path) -> None:
    offsets = record_offsets(path)
    assert offsets == [0, 16 + 5, 16 + 5 + 16]
    assert [read_record(path, offset) for offset in offsets] == RECORDS


@pytest.mark.parametrize("cut", [3, 13, 30, 40])
def test_a_file_that_is_cut_off_is_refused(path: Path, cut: int) -> None:
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DatasetError, match="cut off"):
        record_offsets(path)


def test_damage_is_seen(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[14] ^= 1
    path.write_bytes(bytes(data))
    assert len(record_offsets(path)) == len(RECORDS)
    with pytest.raises(DatasetError, match="checksum"):
        read_record(path, 0)
    data[1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DatasetError, match="no TFRecord"):
        record_offsets(path)


def test_a_length_beyond_all_reason_is_refused(path: Path) -> None:
    length = (1 << 62).to_bytes(8, "little")
    header = record(length)[12 : 12 + 8] + record(length)[-4:]
    path.write_bytes(header + b"rest")
    with pytest.raises(DatasetError, match="cut off"):
        record_offsets(path)


def test_an_example_is_parsed() -> None:
    given = {"files": [b"a", b"\x00b"], "numbers": np.array([1.5, -2.0]), "counts": np.array([0, 300, 2**40])}
    found = parse_example(encode_example(given))
    assert found.keys() == given.keys()
    assert found["files"].bytes == given["files"]
    assert found["numbers"].floats.tolist() == [1.5, -2.0]
    assert found["counts"].ints.tolist() == [0, 300, 2**40]
    assert found["files"].floats.size == 0


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x7f", bytes(range(200))])
def test_what_is_no_example_is_refused(data: bytes) -> None:
    with pytest.raises(DatasetError, match="no tf.Example"):
        parse_example(data)
