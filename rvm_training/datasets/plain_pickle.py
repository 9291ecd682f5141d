"""Reads pickles of plain values and numpy arrays as data: nothing in them is called, imported or trusted.

A pickle is a program for a machine with a stack. This is that machine with only the instructions that build numbers,
texts, bytes, tuples, lists and dicts, and four names that numpy pickles its arrays with. For these it notes what an
array would be; it never calls what a pickle asks for. Everything else is refused.

Long bytes stay in the file: an array knows where its data is and reads it in parts, so that a file of many gigabytes is
read in the memory of one frame. No size that a file states is believed before it is compared with what the file holds.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt

GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): "_reconstruct",
    ("numpy._core.multiarray", "_reconstruct"): "_reconstruct",
    ("numpy.core.multiarray", "scalar"): "scalar",
    ("numpy._core.multiarray", "scalar"): "scalar",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
}
"""The names a pickle may use, by module and name; all stand for what is here, none for what numpy has under them."""

MAX_INSTRUCTIONS = 50_000_000
MAX_TEXT = 1 << 20
"""Bytes of a text."""
_MAX_DEPTH = 64
_LONG = 256
"""Bytes from this length on stay in the file."""
_MAX_DIMENSIONS = 8
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|S[1-9][0-9]{0,8}")


class PickleError(ValueError):
    """A file is no pickle, is damaged, or asks for what is not admitted. The message says which and where."""


@dataclass(frozen=True)
class LongBytes:
    """Bytes that are still in the file."""

    path: Path
    offset: int
    length: int

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `start` on, None: all the rest. Raises `PickleError` if the file has shrunk."""
        length = self.length - start if length is None else length
        with open(self.path, "rb") as file:
            file.seek(self.offset + start)
            data = file.read(length)
        if len(data) != length:
            raise PickleError(f"{self.path} ends early: it was changed while it was read")
        return data


@dataclass(frozen=True)
class PickledArray:
    """An array of numbers or of byte strings whose data may still be in the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    data: LongBytes | bytes
    fortran: bool = False

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def read(self) -> npt.NDArray[Any]:
        """All of it."""
        return self._array(self._bytes(0, self._nbytes), self.shape)

    def row(self, index: int) -> npt.NDArray[Any]:
        """`array[index]`, of the file only this much is read."""
        if self.fortran:
            return np.asarray(self.read()[index])
        size = self._nbytes // len(self)
        return self._array(self._bytes(index * size, size), self.shape[1:])

    def byte_string(self, index: int) -> bytes:
        """`array[index]` of a one-dimensional array of byte strings, as numpy has it: without zeros at the end."""
        size = self.dtype.itemsize
        return self._bytes(index * size, size).rstrip(b"\0")

    @property
    def _nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def _bytes(self, start: int, length: int) -> bytes:
        if isinstance(self.data, bytes):
            return self.data[start : start + length]
        return self.data.read(start, length)

    def _array(self, data: bytes, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        return np.frombuffer(data, self.dtype).reshape(shape, order="F" if self.fortran else "C")


Plain: TypeAlias = Any
"""None, bool, int, float, str, bytes, `LongBytes`, `PickledArray`, or a tuple, list or dict of these."""


def read_pickle(path: str | Path) -> Plain:
    """What a pickle holds. Raises `PickleError` for all that is not plain, `OSError` if the file cannot be read."""
    path = Path(path)
    with open(path, "rb") as file:
        return _Machine(file, path).run()


# What stands on the stack for the things of numpy; none of them is ever called. A value that only one of them may
# follow is checked where it is used.


@dataclass(frozen=True)
class _Name:
    """One of `GLOBALS`."""

    name: str


@dataclass(eq=False)
class _DType:
    """A dtype, little-endian where its state does not say otherwise."""

    text: str
    order: str = "<"
    complete: bool = False

    def get(self) -> np.dtype[Any]:
        if not self.complete:
            raise _Refused("a dtype without its state")
        plain = self.text[0] == "S" or self.text[1:] == "1"
        return np.dtype(self.text if plain else self.order + self.text)


@dataclass(eq=False)
class _Array:
    """An array between its making and its state."""

    value: PickledArray | None = None


class _Refused(Exception):
    """The reason; the machine adds the place."""


_MARK = object()
_UNFINISHED = (_Name, _DType, _Array)


class _Machine:
    """Executes a pickle. The stack holds plain values and what stands for numpy's."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path
        self._size = path.stat().st_size
        self._stack: list[Any] = []
        self._memo: list[Any] = []
        self._at = 0

    def run(self) -> Plain:
        try:
            return self._run()
        except _Refused as reason:
            raise PickleError(f"{self._path} cannot be read, at byte {self._at}: {reason}") from None
        except (IndexError, struct.error, UnicodeDecodeError):
            raise PickleError(f"{self._path} is no pickle, or a damaged one, at byte {self._at}") from None

    def _run(self) -> Plain:
        for _ in range(MAX_INSTRUCTIONS):
            self._at = self._file.tell()
            code = self._take(1)
            if code == b".":
                return self._result()
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise _Refused(
                    f"the instruction {code!r} is not one of plain values; expected a pickle of protocol 3 or 4 of "
                    "lists, dicts, texts, numbers and numpy arrays"
                )
            instruction(self)
        raise _Refused(f"it has more than {MAX_INSTRUCTIONS} instructions")

    def _result(self) -> Plain:
        if len(self._stack) != 1 or self._stack[0] is _MARK:
            raise _Refused("it ends in the middle")
        return _finished(self._stack[0], 0, {})

    # Reading

    def _take(self, length: int) -> bytes:
        self._check_length(length)
        data = self._file.read(length)
        if len(data) != length:
            raise _Refused("the file ends early")
        return data

    def _check_length(self, length: int) -> None:
        left = self._size - self._file.tell()
        if length > left:
            raise _Refused(f"the file ends early: {length} bytes should follow, {left} are there")

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise _Refused("a value is missing")
        return value

    def _since_mark(self) -> list[Any]:
        for start in range(len(self._stack) - 1, -1, -1):
            if self._stack[start] is _MARK:
                values = self._stack[start + 1 :]
                del self._stack[start:]
                return values
        raise _Refused("a mark is missing")

    # Instructions

    def protocol(self) -> None:
        number = self._number("<B")
        if not 2 <= number <= 5:
            raise _Refused(f"expected a pickle of protocol 2 to 5, got {number}")

    def read_text(self, form: str) -> None:
        length = self._number(form)
        if length > MAX_TEXT:
            raise _Refused(f"a text of {length} bytes, at most {MAX_TEXT} are taken")
        self._push(self._take(length).decode())

    def read_bytes(self, form: str) -> None:
        length = self._number(form)
        self._check_length(length)
        if length < _LONG:
            self._push(self._take(length))
            return
        self._push(LongBytes(self._path, self._file.tell(), length))
        self._file.seek(length, 1)

    def read_long(self) -> None:
        self._push(int.from_bytes(self._take(self._number("<B")), "little", signed=True))

    def read_real(self) -> None:
        self._push(float(struct.unpack(">d", self._take(8))[0]))

    def make_tuple(self, count: int | None) -> None:
        if count is None:
            values = self._since_mark()
        else:
            values = [self._pop() for _ in range(count)][::-1]
        self._push(tuple(values))

    def append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise _Refused("a value is appended to what is no list")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise _Refused("an item is put into what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, (str, int, bytes)):
                raise _Refused("expected texts or whole numbers as keys")
            target[key] = value

    def pair(self) -> None:
        value, key = self._pop(), self._pop()
        self.set_items([key, value])

    def memoize(self) -> None:
        self._memo.append(self._stack[-1])

    def put(self, index: int) -> None:
        # Picklers number what they keep without gaps; a great number would only take memory.
        if index < len(self._memo):
            self._memo[index] = self._stack[-1]
        elif index == len(self._memo):
            self._memo.append(self._stack[-1])
        else:
            raise _Refused(f"it keeps value {index} after {len(self._memo)} values")

    def get(self, index: int) -> None:
        self._push(self._memo[index])

    def global_lines(self) -> None:
        module, name = self._line(), self._line()
        self._push_name(module, name)

    def global_stacked(self) -> None:
        name, module = self._pop(), self._pop()
        self._push_name(module, name)

    def _line(self) -> str:
        return self._file.readline(256).decode().rstrip("\n")

    def _push_name(self, module: Any, name: Any) -> None:
        known = isinstance(module, str) and isinstance(name, str)
        found = GLOBALS.get((module, name)) if known else None
        if found is None:
            raise _Refused(
                f"it asks for {str(module)[:80]!r} {str(name)[:80]!r}; only plain containers and numpy arrays are "
                "admitted, as other things could run code"
            )
        self._push(_Name(found))

    def reduce(self) -> None:
        """Where a usual machine calls a function."""
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise _Refused("it calls what is no name of numpy")
        maker = {"_reconstruct": _new_array, "dtype": _new_dtype, "scalar": _new_scalar}.get(function.name)
        if maker is None:
            raise _Refused(f"it calls {function.name}")
        self._push(maker(arguments))

    def build(self) -> None:
        """Where a usual machine sets the state of an object."""
        state, target = self._pop(), self._stack[-1]
        if isinstance(target, _DType):
            _set_dtype(target, state)
        elif isinstance(target, _Array):
            _set_array(target, state)
        else:
            raise _Refused("it sets the state of what is no array")


def _new_array(arguments: tuple[Any, ...]) -> _Array:
    """numpy makes every array empty, and fills it by its state."""
    if len(arguments) != 3 or arguments[0] != _Name("ndarray") or arguments[1:] not in (((0,), b"b"), ((0,), "b")):
        raise _Refused("an array is made as numpy does not make it")
    return _Array()


def _new_dtype(arguments: tuple[Any, ...]) -> _DType:
    text = arguments[0] if arguments else None
    if not isinstance(text, str) or not all(type(other) in (bool, int) for other in arguments[1:]):
        raise _Refused("a dtype is made as numpy does not make it")
    if text.startswith("O"):
        raise _Refused("an array of Python objects; expected arrays of numbers or byte strings")
    if not _DTYPE.fullmatch(text):
        raise _Refused(f"an array of {text[:40]!r}; expected numbers or byte strings")
    return _DType(text)


def _set_dtype(target: _DType, state: Any) -> None:
    """numpy's state: version, byte order, three that are None for plain dtypes, three numbers."""
    plain = isinstance(state, tuple) and len(state) >= 5 and state[2:5] == (None, None, None)
    if not plain or not all(type(number) is int for number in state[5:]) or state[1] not in ("<", ">", "|", "="):
        raise _Refused("a dtype with fields, or with a state that is not numpy's")
    target.order = state[1] if state[1] in "<>" else "<"
    target.complete = True


def _new_scalar(arguments: tuple[Any, ...]) -> int | float | bytes:
    if len(arguments) != 2 or not isinstance(arguments[0], _DType) or not isinstance(arguments[1], bytes):
        raise _Refused("a number is made as numpy does not make it")
    dtype = arguments[0].get()
    if len(arguments[1]) != dtype.itemsize:
        raise _Refused(f"a number of {dtype} in {len(arguments[1])} bytes")
    value: int | float | bytes = np.frombuffer(arguments[1], dtype)[0].item()
    return value


def _set_array(target: _Array, state: Any) -> None:
    """numpy's state: version, shape, dtype, whether in Fortran's order, the bytes."""
    if target.value is not None or not isinstance(state, tuple) or len(state) != 5:
        raise _Refused("an array with a state that is not numpy's")
    _, shape, dtype, fortran, data = state
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS or not isinstance(dtype, _DType):
        raise _Refused("an array with a state that is not numpy's")
    if not all(type(side) is int and side >= 0 for side in shape) or type(fortran) not in (bool, int):
        raise _Refused("an array with a state that is not numpy's")
    if not isinstance(data, (bytes, LongBytes)):
        raise _Refused("an array of Python objects; expected arrays of numbers or byte strings")
    length = data.length if isinstance(data, LongBytes) else len(data)
    kind = dtype.get()
    if math.prod(shape) * kind.itemsize != length:
        raise _Refused(f"an array {shape} of {kind} in {length} bytes")
    target.value = PickledArray(kind, shape, data, bool(fortran) and len(shape) > 1)


def _finished(value: Any, depth: int, done: dict[int, Any]) -> Plain:
    """The value with arrays in place of what stood for them; each container once, however often it is referred to."""
    if isinstance(value, _Array) and value.value is not None:
        return value.value
    if isinstance(value, _UNFINISHED) or value is _MARK:
        raise _Refused("a part of an array stands alone")
    if not isinstance(value, (tuple, list, dict)):
        return value
    if id(value) in done:
        if done[id(value)] is None:
            raise _Refused("a container that holds itself")
        return done[id(value)]
    if depth >= _MAX_DEPTH:
        raise _Refused(f"containers in containers, deeper than {_MAX_DEPTH}")
    done[id(value)] = None
    finished: Any
    if isinstance(value, dict):
        finished = {key: _finished(item, depth + 1, done) for key, item in value.items()}
    else:
        finished = type(value)(_finished(item, depth + 1, done) for item in value)
    done[id(value)] = finished
    return finished


def _constant(make: Callable[[], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine._push(make())


def _numbered(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine._push(machine._number(form))


_INSTRUCTIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _Machine.protocol,
    b"\x95": lambda m: m._check_length(m._number("<Q")),
    b"(": _constant(lambda: _MARK),
    b"0": lambda m: m._stack.pop() and None,
    b"N": _constant(lambda: None),
    b"\x88": _constant(lambda: True),
    b"\x89": _constant(lambda: False),
    b"J": _numbered("<i"),
    b"K": _numbered("<B"),
    b"M": _numbered("<H"),
    b"\x8a": _Machine.read_long,
    b"G": _Machine.read_real,
    b"C": lambda m: m.read_bytes("<B"),
    b"B": lambda m: m.read_bytes("<I"),
    b"\x8e": lambda m: m.read_bytes("<Q"),
    b"\x8c": lambda m: m.read_text("<B"),
    b"X": lambda m: m.read_text("<I"),
    b"\x8d": lambda m: m.read_text("<Q"),
    b"]": _constant(list),
    b"}": _constant(dict),
    b")": _constant(tuple),
    b"\x85": lambda m: m.make_tuple(1),
    b"\x86": lambda m: m.make_tuple(2),
    b"\x87": lambda m: m.make_tuple(3),
    b"t": lambda m: m.make_tuple(None),
    b"a": lambda m: m.append([m._pop()]),
    b"e": lambda m: m.append(m._since_mark()),
    b"s": _Machine.pair,
    b"u": lambda m: m.set_items(m._since_mark()),
    b"\x94": _Machine.memoize,
    b"q": lambda m: m.put(m._number("<B")),
    b"r": lambda m: m.put(m._number("<I")),
    b"h": lambda m: m.get(m._number("<B")),
    b"j": lambda m: m.get(m._number("<I")),
    b"c": _Machine.global_lines,
    b"\x93": _Machine.global_stacked,
    b"R": _Machine.reduce,
    b"b": _Machine.build,
}
"""PROTO, FRAME, MARK, POP, NONE, NEWTRUE, NEWFALSE, BININT, BININT1, BININT2, LONG1, BINFLOAT, the three lengths of
bytes and of texts, containers, the memo, GLOBAL, STACK_GLOBAL, REDUCE and BUILD of Python's `pickletools`."""
