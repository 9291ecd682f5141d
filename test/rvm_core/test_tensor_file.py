"""Files that are truncated, hostile or of another kind are refused with the reason, before memory is spent."""

import io
import json
import os
import pickle
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from rvm_core import CheckpointError, load_checkpoint
from rvm_core.tensor_file import MAX_DIRECTORY_BYTES, SMALL_BYTES, open_tensor_file

REFUSAL_BYTES = 8 << 20
"""What refusing a file may cost; the directory alone may have 2 MiB."""

GIGABYTE = 1 << 30


@contextmanager
def refused(path: Path, reason: str) -> Iterator[None]:
    """The file made in the body is refused with this reason, by every way to open it, for little memory."""
    yield
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=reason):
            with open_tensor_file(path):
                pass
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < REFUSAL_BYTES
    finally:
        tracemalloc.stop()


def array_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True)
    return stream.getvalue()


def header_bytes(shape: tuple[int, ...], descr: str = "<f4", *, version: int = 1) -> bytes:
    stream = io.BytesIO()
    write = np.lib.format.write_array_header_1_0 if version == 1 else np.lib.format.write_array_header_2_0
    write(stream, {"shape": shape, "fortran_order": False, "descr": descr})
    return stream.getvalue()


ARRAY = array_bytes(np.zeros((4, 4), np.float32))


# Files of another kind.


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"\n\n  <!DOCTYPE html><html>", "this is a web page"),
        (b"<?xml version='1.0'?><Error>", "this is a web page"),
        (pickle.dumps({"weights": [1.0]}), "this is a pickle"),
        (ARRAY, "this is a single numpy array"),
        (b"PK\x05\x06" + bytes(18), "this is an empty or split archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "this is a file of another kind"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "this is a file of another kind"),
        (b"PK\x03\x04", "the archive is truncated or damaged"),
        (b"PK\x03\x04" + bytes(1000), "the archive is truncated or damaged"),
    ],
    ids=["empty", "html", "xml", "pickle", "npy", "empty zip", "lfs pointer", "hdf5", "magic only", "no directory"],
)
def test_other_content(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.npz"
    with refused(path, reason):
        path.write_bytes(content)


@pytest.mark.parametrize("new_format", [False, True])
def test_torch_file(tmp_path: Path, new_format: bool) -> None:
    path = tmp_path / "a.pt"
    with refused(path, "a pickle.*never read"):
        torch.save({"cls_token": torch.zeros(1, 8)}, path, _use_new_zipfile_serialization=new_format)


def test_object_array(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with refused(path, "cls_token.npy holds Python objects, a pickle"):
        np.savez(path, cls_token=np.array([{"a": 1}], dtype=object))


def test_structured_array_with_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with refused(path, "cls_token.npy holds Python objects, a pickle"):
        np.savez(path, cls_token=np.zeros(2, dtype=[("a", "f4"), ("b", "O")]))


def test_pickle_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Bomb()))
    np.savez(tmp_path / "b.npz", cls_token=np.array([Bomb()], dtype=object))
    torch.save({"a": Bomb()}, tmp_path / "c.pt")
    for name in ("a.pkl", "b.npz", "c.pt"):
        with pytest.raises(CheckpointError, match="pickle"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with refused(tmp_path / "none.npz", "none.npz: there is no such file"):
        pass
    with refused(tmp_path, "this is not a regular file"):
        pass


def test_named_pipe_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "pipe.npz"
    with refused(path, "this is not a regular file"):
        os.mkfifo(path)


# Archives.


@contextmanager
def archive(path: Path, method: int = zipfile.ZIP_STORED) -> Iterator[zipfile.ZipFile]:
    with warnings.catch_warnings():
        # That a name is written twice is what is tested.
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "w", method) as file:
            yield file


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_truncated_archive(tiny_path: Path, tmp_path: Path, keep: float) -> None:
    path = tmp_path / "a.npz"
    with refused(path, "the archive is truncated or damaged"):
        content = tiny_path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])


def test_flipped_bit_of_a_tensor(tiny_path: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tiny_path) as file:
        at = file.getinfo("rnn_core/input_reset/kernel.npy").header_offset + 5000
    content = bytearray(tiny_path.read_bytes())
    content[at] ^= 1
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="unreadable: rnn_core/input_reset/kernel is damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["/cls_token.npy", "../cls_token.npy", "a/../cls_token.npy", "cls_token.npy\0x.npy"])
def test_name_that_is_a_path(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.npz"
    # zipfile cuts a name at a zero byte when it writes one.
    placed = name.replace("\0", "#")
    with refused(path, "has a name that is no parameter's"):
        with archive(path) as file:
            file.writestr(placed, ARRAY)
        path.write_bytes(path.read_bytes().replace(placed.encode(), name.encode()))


@pytest.mark.parametrize("name", ["cls_token", "cls_token.txt", "encoder/"])
def test_member_that_is_no_array(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.npz"
    with refused(path, f"member {name} is not an array"), archive(path) as file:
        file.writestr(name, ARRAY if name == "cls_token" else b"")


def test_name_written_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with refused(path, "names more than once: cls_token.npy"), archive(path) as file:
        file.writestr("cls_token.npy", ARRAY)
        file.writestr("cls_token.npy", ARRAY)


def test_encrypted_member(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with refused(path, "cls_token.npy is encrypted"), archive(path) as file:
        file.writestr("cls_token.npy", ARRAY)
        file.getinfo("cls_token.npy").flag_bits |= 1


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression(tmp_path: Path, method: int) -> None:
    path = tmp_path / "a.npz"
    with refused(path, f"uses compression method {method}"), archive(path, method) as file:
        file.writestr("cls_token.npy", ARRAY)


def test_directory_that_lies_about_stored_size(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with refused(path, "is stored with 192 bytes but declares 2147483648"), archive(path) as file:
        file.writestr("cls_token.npy", ARRAY)
        file.getinfo("cls_token.npy").file_size = 2 * GIGABYTE


def test_directory_that_lies_about_place(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with refused(path, "truncated or its parts overlap"), archive(path) as file:
        file.writestr("cls_token.npy", ARRAY)
        member = file.getinfo("cls_token.npy")
        member.file_size = member.compress_size = 2 * GIGABYTE


def test_directory_that_claims_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with refused(path, "claims tensors of 2147483648 bytes; the limit is"), archive(path, zipfile.ZIP_DEFLATED) as file:
        file.writestr("cls_token.npy", header_bytes((2 * GIGABYTE - 128,), "|u1"))
        file.getinfo("cls_token.npy").file_size = 2 * GIGABYTE


def test_small_file_that_expands(tmp_path: Path) -> None:
    """A true bomb: the bytes are really there, 1000 times compressed."""
    path = tmp_path / "a.npz"
    size = SMALL_BYTES + (16 << 20)
    with refused(path, f"claims tensors of {size} bytes; the limit is {SMALL_BYTES}"):
        with archive(path, zipfile.ZIP_DEFLATED) as file:
            header = header_bytes(((size - 128) // 4,))
            file.writestr("cls_token.npy", header + bytes(size - len(header)))
    assert path.stat().st_size < 1 << 20


def test_directory_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with refused(path, f"over the limit of {MAX_DIRECTORY_BYTES}"), archive(path) as file:
        for i in range(40):
            file.writestr(f"{i}{'x' * 60000}.npy", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header_bytes((1 << 40,)), r"declares float32 \(1099511627776,\), .* bytes, but has 128"),
        (header_bytes((4, 4)), r"declares float32 \(4, 4\), 192 bytes, but has 128"),
        (ARRAY + b"\0", r"declares float32 \(4, 4\), 192 bytes, but has 193"),
        (ARRAY[:-1], r"declares float32 \(4, 4\), 192 bytes, but has 191"),
        (header_bytes((-1, -16)), r"declares an impossible shape, \(-1, -16\)"),
        (header_bytes((1,) * 64) + bytes(4), "declares an impossible shape"),
        (header_bytes((4, 4), version=2) + bytes(64), "npy version 2.0, expected 1.0"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "npy version 2.0, expected 1.0"),
        (b"\x93NUMPY\x01\x00\xff\xff{'descr'", "no readable header"),
        (b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16, "no readable header"),
        (b"\x93NUMPY\x01\x00\x00\x20" + b"-" * 8192, "no readable header"),
        (b"\x93NUMPY\x01\x00\x17\x00" + b"__import__('os').abort()", "no readable header"),
        (b"", "no readable header"),
        (b"hello", "no readable header"),
    ],
)
def test_array_header(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.npz"
    with refused(path, reason), archive(path) as file:
        file.writestr("cls_token.npy", content)


def test_size_in_the_directory_beyond_the_data(tmp_path: Path) -> None:
    """Within the limits, so only reading finds it out."""
    path = tmp_path / "a.npz"
    with archive(path, zipfile.ZIP_DEFLATED) as file:
        file.writestr("cls_token.npy", header_bytes((4, 4)))
        file.getinfo("cls_token.npy").file_size = 192
    with open_tensor_file(path) as opened, pytest.raises(CheckpointError, match="cls_token is damaged"):
        opened.read("cls_token")


# .safetensors


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (safetensors_bytes({"a": entry([2], 0, 8)}, bytes(4)), "truncated or damaged"),
        (safetensors_bytes({"a": entry([2], 0, 8)}, bytes(12)), "truncated or damaged"),
        (safetensors_bytes({"a": entry([1 << 40], 0, 8)}, bytes(8)), "truncated or damaged"),
        (safetensors_bytes({"a": entry([1 << 62, 1 << 62], 0, 8)}, bytes(8)), "truncated or damaged"),
        (safetensors_bytes({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)), "truncated or damaged"),
        (safetensors_bytes({"a": entry([2], 8, 16)}, bytes(16)), "truncated or damaged"),
        (safetensors_bytes(b'{"a": nonsense}'), "truncated or damaged"),
        (safetensors_bytes(b'{"a": ' + b"[" * 5000), "truncated or damaged"),
        (struct.pack("<Q", 1 << 60) + b"{}", "its directory claims 1152921504606846976 bytes of a file of 10"),
        (struct.pack("<Q", 50) + b"{}", "its directory claims 50 bytes of a file of 10"),
        (safetensors_bytes(b"{" + b" " * MAX_DIRECTORY_BYTES + b"}"), "its directory claims"),
    ],
)
def test_safetensors_directory(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.safetensors"
    with refused(path, reason):
        path.write_bytes(content)
