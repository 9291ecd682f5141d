"""Plain pickles are read exactly; whatever else a pickle can ask for is refused, and nothing of it happens."""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rvm_training.datasets.plain_pickle import LongBytes, PickledArray, PickleError, read_pickle

RNG = np.random.default_rng(0)
VIDEO = RNG.integers(0, 255, (5, 20, 30, 3)).astype(np.uint8)
ARRAYS = {
    "video": VIDEO,
    "points": RNG.random((3, 5, 2)),
    "half": RNG.random((3, 5)).astype(np.float16),
    "bool": RNG.random((3, 5)) > 0.5,
    "fortran": np.asfortranarray(RNG.random((6, 7, 8))),
    "big endian": np.arange(200, dtype=">i4"),
    "empty": np.zeros((0, 3)),
    "no dimension": np.array(3.5),
    "strings": np.array([b"\xff\xd8" + b"a" * 400, b"b\0c"]),
}
PLAIN = {
    "numbers": (1, -1, 300, 70000, 2**40, -(2**70), 2.5, True, False, None),
    "texts": ["", "a", "ä" * 300],
    "bytes": [b"", b"\0" * 255],
    "nested": {1: {"a": [(), [], {}]}, b"k": ((1, 2), (1, 2, 3), (1, 2, 3, 4))},
}
NUMPY = "numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray"


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def opened(value: Any) -> Any:
    """With everything read that is still in the file."""
    if isinstance(value, (PickledArray, LongBytes)):
        return value.read()
    if isinstance(value, dict):
        return {key: opened(item) for key, item in value.items()}
    return type(value)(opened(item) for item in value) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_are_read_exactly(tmp_path: Path, protocol: int) -> None:
    found = read_pickle(write(tmp_path / "a.pkl", pickle.dumps(ARRAYS, protocol=protocol)))
    assert list(found) == list(ARRAYS)
    for key, array in ARRAYS.items():
        read = found[key].read()
        assert read.dtype == array.dtype and read.shape == array.shape and np.array_equal(read, array), key
        for index in range(len(array) if array.ndim else 0):
            assert np.array_equal(found[key].row(index), array[index])
    assert found["strings"].byte_string(0) == ARRAYS["strings"][0]
    assert found["strings"].byte_string(1) == b"b\0c"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_read_exactly(tmp_path: Path, protocol: int) -> None:
    # Before protocol 3, Python writes bytes as a call.
    value = PLAIN if protocol > 2 else {"numbers": PLAIN["numbers"], "texts": PLAIN["texts"]}
    assert opened(read_pickle(write(tmp_path / "a.pkl", pickle.dumps(value, protocol=protocol)))) == value


def test_numbers_of_numpy_and_shared_values(tmp_path: Path) -> None:
    shared = [np.float32(1.5), np.int64(-3), np.bool_(True)]
    value = {"a": shared, "b": shared, "array": [VIDEO, VIDEO]}
    found = read_pickle(write(tmp_path / "a.pkl", pickle.dumps(value, protocol=4)))
    assert found["a"] == [1.5, -3, True] and found["a"] is found["b"]
    assert np.array_equal(found["array"][1].read(), VIDEO)


def test_a_shared_array_may_be_many_times_the_file_without_taking_memory(tmp_path: Path) -> None:
    value: Any = [b"x"]
    for _ in range(40):
        value = [value, value]
    read_pickle(write(tmp_path / "a.pkl", pickle.dumps(value, protocol=4)))


def test_the_file_is_not_read_into_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pkl", pickle.dumps([np.zeros((20, 1 << 20), np.uint8), b"a" * (20 << 20)], protocol=4))
    tracemalloc.start()
    found = read_pickle(path)
    assert found[0].row(3).shape == (1 << 20,)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


class Calls:
    """Pickled as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def evil(path: Path) -> Calls:
    return Calls(os.system, f"touch {path}")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("place", ["alone", "in a list", "deep", "as a key", "as an argument", "in an array"])
def test_calls_are_refused_and_not_made(tmp_path: Path, protocol: int, place: str) -> None:
    flag = tmp_path / "was here"
    call = evil(flag)
    value = {
        "alone": call,
        "in a list": [1, call],
        "deep": {"video": [{"a": ((call,),)}]},
        "as a key": {call: 1},
        "as an argument": Calls(np.ndarray, call),
        "in an array": np.array([call], dtype=object),
    }[place]
    path = write(tmp_path / "a.pkl", pickle.dumps(value, protocol=protocol))
    with pytest.raises(PickleError, match=str(path)):
        read_pickle(path)
    assert not flag.exists()


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (eval, ("1",)),
        (getattr, (str, "join")),
        (__import__, ("os",)),
        (np.load, ("x",)),
        (np.dtype, ("O",)),
        (np.dtype, ("V1000000000",)),
        (np.dtype, ([("a", "f4")],)),
        (np.dtype, ("f4,f4",)),
        (np.dtype, ("b4",)),
        (np.ndarray, ((1 << 40,),)),
        (np.zeros, ((1 << 40,),)),
        (bytearray, (1 << 40,)),
        (np.array([0]).__reduce__()[0], (np.ndarray, (1 << 40,), b"b")),
        (np.array([0]).__reduce__()[0], (np.matrix, (0,), b"b")),
        (np.array([0]).__reduce__()[0], (np.ndarray, (0,), b"O")),
        (np.float32(1).__reduce__()[0], (np.dtype("f4"), b"\0" * 400)),
        (np.float32(1).__reduce__()[0], ("f4", b"\0" * 4)),
        (set, ([1],)),
        (complex, (1, 2)),
    ],
)
def test_other_calls_are_refused(tmp_path: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    path = write(tmp_path / "a.pkl", pickle.dumps([Calls(function, *arguments)], protocol=4))
    with pytest.raises(PickleError, match="cannot be read, at byte"):
        read_pickle(path)


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pkl", pickle.dumps(np.array([1, "a", None], dtype=object), protocol=4))
    with pytest.raises(PickleError, match="an array of Python objects; expected arrays of numbers or byte strings"):
        read_pickle(path)


def array_with(shape: tuple[int, ...], data: bytes, dtype: str = "u1", state: Any = None) -> bytes:
    """The pickle of an array of any state."""

    class Fake:
        def __reduce__(self) -> tuple[Any, ...]:
            made = np.zeros(0).__reduce__()
            assert isinstance(made, tuple)
            return (*made[:2], state or (1, shape, np.dtype(dtype), False, data))

    return pickle.dumps(Fake(), protocol=4)


@pytest.mark.parametrize(
    "data",
    [
        array_with((1 << 40,), b""),
        array_with((1 << 40, 1 << 40), b"1234"),
        array_with((-1, -4), b"1234"),
        array_with((5,), b"1234"),
        array_with((1,) * 9, b"1"),
        array_with((2,), b"1", state=(1, (2,), np.dtype("u1"), False, [1, 2])),
        array_with((2,), b"1", state=(1, (2,), "u1", False, b"12")),
        array_with((2,), b"1", state={"shape": (2,)}),
        array_with((True,), b"1"),
    ],
)
def test_arrays_whose_data_do_not_fit_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(PickleError):
        read_pickle(write(tmp_path / "a.pkl", data))


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


NAME = short(NUMPY) + short("_reconstruct") + b"\x93"
"""Puts a name of numpy on the stack."""


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        (short("os") + short("system") + b"\x93" + short("true") + b"\x85R.", "'os' 'system'"),
        (b"cos\nsystem\n(X\x04\0\0\0truetR.", "'os' 'system'"),
        (b"cnumpy\nndarray.tofile\n.", "'numpy' 'ndarray.tofile'"),
        (short("numpy") + b"K\x01\x93.", "'numpy' '1'"),
        (short("numpy") + b"]\x93.", "it asks for"),
        (b"(ios\nsystem\n.", "is not one of plain values"),
        (b"(cos\nsystem\nX\x04\0\0\0trueo.", "'os' 'system'"),
        (b"Pos\n.", "is not one of plain values"),
        (b"\x82\x01.", "is not one of plain values"),
        (b"\x81.", "is not one of plain values"),
        (b"\x97.", "is not one of plain values"),
        (b"\x96" + struct.pack("<Q", 1 << 62) + b".", "is not one of plain values"),
        (NAME + b"}" + short("__code__") + b"K\x01sb.", "sets the state of what is no array"),
        (NAME + b".", "a part of an array stands alone"),
        (b"}" + b"}" + short("a") + b"K\x01sb.", "sets the state of what is no array"),
        (b"]" + NAME + b"a.", "a part of an array stands alone"),
        (b"]\x94h\x00a.", "holds itself"),
        (b"]\x94" + b"\x85h\x00R.", "calls what is no name"),
        (b"]" * 70 + b"a" * 69 + b".", "deeper than 64"),
        (b"B" + struct.pack("<I", 0xFFFFFFFF) + b".", "the file ends early"),
        (b"\x8e" + struct.pack("<Q", 1 << 62) + b".", "the file ends early"),
        (b"\x8d" + struct.pack("<Q", 1 << 62) + b".", "a text of"),
        (b"\x95" + struct.pack("<Q", 1 << 62) + b".", "the file ends early"),
        (b"Nr" + struct.pack("<I", 0xFFFFFFFF) + b".", "keeps value 4294967295 after 0 values"),
        (b"\x8a\xff.", "the file ends early"),
        (b"h\x07.", "damaged"),
        (b"R.", "damaged"),
        (b"(.", "in the middle"),
        (b"(R.", "a value is missing"),
        (b"e.", "a mark is missing"),
        (b"NN.", "in the middle"),
        (b"}(]Nu.", "expected texts or whole numbers as keys"),
        (b"}(Nu.", "what is no dict"),
        (b"NNa.", "what is no list"),
        (b"\x8c\x02\xff\xff.", "damaged"),
        (b"", "the file ends early"),
        (b"N", "the file ends early"),
    ],
)
def test_tricks_are_refused(tmp_path: Path, instructions: bytes, message: str) -> None:
    tracemalloc.start()
    with pytest.raises(PickleError, match=message.replace(".", r"\.")):
        read_pickle(write(tmp_path / "a.pkl", b"\x80\x04" + instructions))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_long_chains_of_attributes_are_no_way_out(tmp_path: Path) -> None:
    """Protocol 4 resolves dots in names; here a name is looked up whole."""
    for name in ("dtype.__class__", "ndarray.__init_subclass__.__self__"):
        with pytest.raises(PickleError, match="it asks for"):
            read_pickle(write(tmp_path / "a.pkl", b"\x80\x04" + short("numpy") + short(name) + b"\x93."))


@pytest.mark.parametrize("data", [b"hello", b"PK\x03\x04", b"\x80\x09N.", b"\x80\x01N.", b"\xff\xd8\xff"])
def test_files_that_are_no_pickles(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(PickleError):
        read_pickle(write(tmp_path / "a.pkl", data))


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    whole = pickle.dumps({"a": np.arange(100), "b": [1, "x", 2.5]}, protocol=4)
    for length in range(len(whole)):
        with pytest.raises(PickleError):
            read_pickle(write(tmp_path / "a.pkl", whole[:length]))


def test_random_damage_gives_plain_values_or_the_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    whole = pickle.dumps({"a": np.arange(50), "b": [1, "x", 2.5, (None, b"x" * 300)]}, protocol=4)
    refused = 0
    for _ in range(2000):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(256)
        try:
            read_pickle(write(tmp_path / "a.pkl", bytes(data)))
        except PickleError:
            refused += 1
    assert 500 < refused < 2000


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pkl", pickle.dumps(VIDEO, protocol=4))
    found = read_pickle(path)
    os.truncate(path, 500)
    with pytest.raises(PickleError, match="ends early"):
        found.read()


def test_too_many_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rvm_training.datasets.plain_pickle.MAX_INSTRUCTIONS", 100)
    with pytest.raises(PickleError, match="more than 100 instructions"):
        read_pickle(write(tmp_path / "a.pkl", b"\x80\x04" + b"N0" * 200 + b"N."))


def test_the_instructions_are_the_ones_they_are_said_to_be() -> None:
    """Against Python's own table: none that makes objects, looks up extensions or allocates by a number."""
    from rvm_training.datasets.plain_pickle import _INSTRUCTIONS

    names = {opcode.name for opcode in pickletools.opcodes if opcode.code.encode("latin-1") in _INSTRUCTIONS}
    assert len(names) == len(_INSTRUCTIONS)
    assert {name for name in names if name in ("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD")} == {
        "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
    }  # fmt: skip
    refused = ("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER")
    assert not names & {*refused, "READONLY_BUFFER", "BYTEARRAY8", "LONG", "INT", "LONG4", "UNICODE", "STRING"}


def test_no_module_is_imported_for_a_pickle(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pkl", b"\x80\x04" + short("antigravity") + short("x") + b"\x93.")
    with pytest.raises(PickleError):
        read_pickle(path)
    assert "antigravity" not in sys.modules
