"""Reads named tensors from .npz and .safetensors files that may be truncated, hostile or of another kind.

Opening a file reads only its directory and the header of each tensor, and checks every declared size against the
file; tensors are then read one at a time. Nothing is ever unpickled.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open

MAX_DIRECTORY_BYTES = 2 << 20
"""Limit of a file's directory of tensors; that of the largest release has 0.1 MB."""
MAX_TENSOR_BYTES = 32 << 30
"""Limit of all tensors together; those of the largest release have 3.1 GB."""
MAX_EXPANSION = 16
"""Limit of tensor bytes over file bytes. Trained weights hardly compress, bombs expand a thousandfold."""
SMALL_BYTES = 64 << 20
"""Up to this size a file may expand further, as that of a tiny model with many zeros does."""

_NPZ_DTYPES: dict[np.dtype[Any], str] = {
    np.dtype("<f4"): "float32",
    np.dtype("<f2"): "float16",
    # numpy has no bfloat16: files written with the ml_dtypes package declare it as two raw bytes.
    np.dtype("V2"): "bfloat16",
}
_SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message gives every reason found, `problems` the reasons one by one."""

    def __init__(self, path: str | Path, reason: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(f"{path}: {reason}" + "".join(f"\n  {problem}" for problem in problems))
        self.problems = problems or (reason,)


@dataclass(frozen=True)
class TensorHeader:
    """What a file declares of a tensor."""

    shape: tuple[int, ...]
    dtype: str
    """"float32", "float16", "bfloat16", or the file's own word for any other."""


class TensorFile(Protocol):
    """An open file of named tensors."""

    format: str
    """"npz" or "safetensors"."""
    headers: dict[str, TensorHeader]
    metadata: dict[str, str]
    """Free text of a .safetensors file; empty for .npz."""

    def read(self, name: str) -> torch.Tensor:
        """Reads one tensor, in the file's dtype. Raises `CheckpointError` if its bytes are damaged."""


@contextmanager
def open_tensor_file(path: str | Path) -> Iterator[TensorFile]:
    """Opens a .npz or .safetensors file, told apart by content.

    Raises `CheckpointError` if the file is missing, empty, truncated, of another kind, holds Python objects, or
    declares sizes that do not fit it.
    """
    path = Path(path)
    # Before opening: to open a named pipe would wait for a writer.
    if not path.is_file():
        raise CheckpointError(path, "there is no such file" if not path.exists() else "this is not a regular file")
    with _refuse_on_error(path, "cannot be read"), open(path, "rb") as stream:
        start = stream.read(16)
    if start.startswith(b"PK\x03\x04"):
        with _NpzFile(path) as file:
            yield file
    elif start[8:9] == b"{":
        with _SafetensorsFile(path, start) as file:
            yield file
    else:
        raise CheckpointError(path, f"{_kind(start)}; expected an RVM checkpoint, .npz or .safetensors")


def _kind(start: bytes) -> str:
    if not start:
        return "the file is empty"
    if start[0] == 0x80:
        return "this is a pickle, which could run code when loaded and is never read"
    if start.startswith(b"\x93NUMPY"):
        return "this is a single numpy array"
    if start.startswith(b"PK"):
        return "this is an empty or split archive"
    if start.lstrip()[:1] == b"<":
        return "this is a web page"
    return "this is a file of another kind"


@contextmanager
def _refuse_on_error(path: Path, what: str) -> Iterator[None]:
    """Turns whatever a parser raises on damaged input, which is of many types, into a `CheckpointError`."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(path, f"{what}: {str(error) or type(error).__name__}") from error


class _BoundedReader(io.FileIO):
    """Refuses a single read that is larger than any directory may be: zipfile reads its directory in one."""

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = os.fstat(self.fileno()).st_size - self.tell() if size is None or size < 0 else size
        if wanted > MAX_DIRECTORY_BYTES:
            raise ValueError(f"its directory claims {wanted} bytes, over the limit of {MAX_DIRECTORY_BYTES}")
        return super().read(wanted) or b""


class _NpzFile:
    format = "npz"

    def __init__(self, path: Path) -> None:
        self._path = path
        self.metadata: dict[str, str] = {}
        self.headers: dict[str, TensorHeader] = {}
        self._stream = _BoundedReader(path)
        try:
            with _refuse_on_error(path, "the archive is truncated or damaged"):
                self._zip = zipfile.ZipFile(self._stream)
                self._check_directory()
                for member in self._zip.infolist():
                    self.headers[member.filename.removesuffix(".npy")] = self._read_header(member)
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> _NpzFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def read(self, name: str) -> torch.Tensor:
        with _refuse_on_error(self._path, f"{printable(name)} is damaged"):
            with self._zip.open(f"{name}.npy") as member:
                # At the last byte the archive also compares its checksum.
                array = np.lib.format.read_array(member, allow_pickle=False)
        if self.headers[name].dtype == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    def _check_directory(self) -> None:
        members = self._zip.infolist()
        names = [member.filename for member in members]
        if any(name.endswith("data.pkl") for name in names):
            raise CheckpointError(
                self._path, "this is a torch.save file, a pickle, which could run code when loaded and is never read"
            )
        for member in members:
            self._check_member(member)
        twice = [printable(name) for name, count in Counter(names).items() if count > 1]
        if twice:
            raise CheckpointError(self._path, f"the archive holds names more than once: {', '.join(twice)}")
        file_bytes = os.fstat(self._stream.fileno()).st_size
        if sum(member.compress_size for member in members) > file_bytes:
            raise CheckpointError(self._path, f"the archive is truncated or its parts overlap, in {file_bytes} bytes")
        _check_total(self._path, sum(member.file_size for member in members), file_bytes)

    def _check_member(self, member: zipfile.ZipInfo) -> None:
        reason = ""
        if member.orig_filename != member.filename or member.filename.startswith("/") or ".." in member.filename:
            reason = "has a name that is no parameter's"
        elif not member.filename.endswith(".npy"):
            reason = "is not an array (.npy)"
        elif member.flag_bits & 0x1:
            reason = "is encrypted"
        elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            reason = f"uses compression method {member.compress_type}; only stored and deflated are read"
        elif member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
            reason = f"is stored with {member.compress_size} bytes but declares {member.file_size}"
        if reason:
            raise CheckpointError(self._path, f"the archive's member {printable(member.orig_filename)} {reason}")

    def _read_header(self, member: zipfile.ZipInfo) -> TensorHeader:
        name = printable(member.filename)
        with _refuse_on_error(self._path, f"{name} has no readable header"), self._zip.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            # Later versions allow headers of gigabytes, which no plain array needs.
            if version != (1, 0):
                raise ValueError(f"npy version {version[0]}.{version[1]}, expected 1.0")
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            header_bytes = stream.tell()
        if dtype.hasobject:
            raise CheckpointError(self._path, f"{name} holds Python objects, a pickle, which is never read")
        _check_shape(self._path, name, shape)
        declared = header_bytes + math.prod(shape) * dtype.itemsize
        if declared != member.file_size:
            raise CheckpointError(
                self._path, f"{name} declares {dtype} {shape}, {declared} bytes, but has {member.file_size}"
            )
        return TensorHeader(shape, _NPZ_DTYPES.get(dtype, str(dtype)))


class _SafetensorsFile:
    format = "safetensors"

    def __init__(self, path: Path, start: bytes) -> None:
        self._path = path
        file_bytes = path.stat().st_size
        header_bytes = int.from_bytes(start[:8], "little")
        if header_bytes > min(MAX_DIRECTORY_BYTES, file_bytes):
            raise CheckpointError(
                path,
                f"its directory claims {header_bytes} bytes of a file of {file_bytes}; the limit is "
                f"{MAX_DIRECTORY_BYTES}; this is a truncated or foreign file",
            )
        _check_total(path, file_bytes - header_bytes, file_bytes)
        # The library itself checks that the tensors fill the file without gaps or overlaps.
        with _refuse_on_error(path, "the file is truncated or damaged"):
            self._file = safe_open(path, framework="pt")
            self.metadata: dict[str, str] = self._file.metadata() or {}
            self.headers = {name: self._header(name) for name in self._file.keys()}  # noqa: SIM118

    def __enter__(self) -> _SafetensorsFile:
        self._file.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def read(self, name: str) -> torch.Tensor:
        with _refuse_on_error(self._path, f"{printable(name)} is damaged"):
            tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor

    def _header(self, name: str) -> TensorHeader:
        tensor = self._file.get_slice(name)
        shape = tuple(tensor.get_shape())
        _check_shape(self._path, printable(name), shape)
        dtype = str(tensor.get_dtype())
        return TensorHeader(shape, _SAFETENSORS_DTYPES.get(dtype, dtype))


def _check_shape(path: Path, name: str, shape: tuple[int, ...]) -> None:
    if len(shape) > 32 or any(size < 0 for size in shape):
        raise CheckpointError(path, f"{name} declares an impossible shape, {str(shape)[:200]}")


def _check_total(path: Path, tensor_bytes: int, file_bytes: int) -> None:
    limit = min(MAX_TENSOR_BYTES, max(MAX_EXPANSION * file_bytes, SMALL_BYTES))
    if tensor_bytes > limit:
        raise CheckpointError(
            path, f"a file of {file_bytes} bytes claims tensors of {tensor_bytes} bytes; the limit is {limit}"
        )


def printable(name: str) -> str:
    """A name from a file, safe for a terminal and of bounded length."""
    return name if name.isprintable() and len(name) <= 200 else ascii(name)[:200]
