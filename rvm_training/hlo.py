"""Counts matrix products and collectives in the text of a compiled XLA program, loops as often as they run.

XLA's own cost analysis counts the body of a loop once. Here each computation is counted where it is called: a loop's
body as often as its condition lets it run, the larger of two branches of a condition. Only products are counted,
`dot` and `convolution` (a TPU's compiler makes convolutions of all products); norms, softmax and activations are not.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16}
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = ")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,<=]*)\]")
_CALLS = re.compile(r"\b(?:calls|to_apply|\w+_computations?)=(?:\{([^}]*)\}|%?([\w.-]+))")
_COMMENT = re.compile(r"/\*.*?\*/")


class HloError(ValueError):
    """The text is not what this reader knows of XLA's programs."""


@dataclass(frozen=True)
class Array:
    """Type and shape of a value."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Without the padding of tiles."""
        return math.ceil(math.prod(self.shape) * _bytes(self.dtype))


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    """Of the result; several for a tuple."""
    operands: tuple[str, ...]
    """Names in the same computation; of a parameter its number, of a constant its value."""
    attributes: str
    """What follows the operands."""
    is_root: bool

    @cached_property
    def calls(self) -> tuple[str, ...]:
        """Computations it names, without those of loops."""
        names = [name for several, one in _CALLS.findall(self.attributes) for name in (several or one).split(",")]
        return tuple(name.strip().lstrip("%") for name in names)


@dataclass(frozen=True)
class Computation:
    """A function of the program."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        """The instruction whose result is returned."""
        return next(instruction for instruction in self.instructions.values() if instruction.is_root)


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind."""

    count: int
    """How often one runs."""
    bytes: int
    """The sum over all of the array that is whole on a device: what `all-gather` gives, what the others take."""


@dataclass(frozen=True)
class Work:
    """What one device does in one run of a program."""

    flops: int
    """Of products, two for each multiplication."""
    flops_bodies_once: int
    """The same with the bodies of loops counted once, as XLA's own analysis counts them."""
    collectives: dict[str, Traffic]
    """By kind."""


def count_work(text: str) -> Work:
    """The work of a program's entry. Raises `HloError` if the text cannot be followed, as with a loop without end."""
    program = parse(text)
    entry = _entry(text)
    if entry not in program:
        raise HloError("expected the text of a compiled XLA program, found no ENTRY computation")
    counter = _Counter(program)
    collectives = counter.collectives(entry)
    kinds = sorted({kind for kind, _ in collectives})
    return Work(
        flops=counter.flops(entry, True),
        flops_bodies_once=counter.flops(entry, False),
        collectives={kind: Traffic(collectives[kind, "count"], collectives[kind, "bytes"]) for kind in kinds},
    )


def parse(text: str) -> dict[str, Computation]:
    """The computations of a program, by name."""
    program: dict[str, Computation] = {}
    current: Computation | None = None
    for line in text.splitlines():
        if line.startswith("}"):
            current = None
        elif current is None:
            if header := _COMPUTATION.match(line):
                current = program[header[2]] = Computation(header[2])
        elif instruction := _parse_instruction(line):
            current.instructions[instruction.name] = instruction
    return program


def _entry(text: str) -> str:
    found = re.search(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE)
    return found[1] if found else ""


def _parse_instruction(line: str) -> Instruction | None:
    start = _INSTRUCTION.match(line)
    if not start:
        return None
    rest = _COMMENT.sub("", line[start.end() :])
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    arrays = tuple(Array(dtype, _sizes(shape)) for dtype, shape in _ARRAY.findall(rest[:end]))
    # An operand may be written with its type before its name.
    operands = tuple(part.split(" ")[-1].lstrip("%") for part in _split(rest[opening + 1 : closing]))
    return Instruction(start[2], rest[end:opening].strip(), arrays, operands, rest[closing + 1 :], start[1] is not None)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size.lstrip("<=")) for size in text.split(",") if size)


def _closing(text: str, opening: int) -> int:
    """Place of the bracket that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise HloError(f"a bracket is not closed in {text[:80]!r}")


def _split(text: str) -> Iterator[str]:
    """The parts between commas outside of all brackets."""
    depth, start = 0, 0
    for match in re.finditer(r"[(){}\[\],]", text):
        if match[0] == "," and depth == 0:
            yield text[start : match.start()].strip()
            start = match.end()
        elif match[0] != ",":
            depth += 1 if match[0] in "({[" else -1
    if text[start:].strip():
        yield text[start:].strip()


def _bytes(dtype: str) -> float:
    if dtype in _BYTES:
        return _BYTES[dtype]
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return int(digits[1]) / 8 if digits else 0


class _Counter:
    """Walks a program from its entry; each computation is counted once and remembered."""

    def __init__(self, program: Mapping[str, Computation]) -> None:
        self._program = program
        self._flops: dict[tuple[str, bool], int] = {}
        self._collectives: dict[str, Counter[tuple[str, str]]] = {}

    def flops(self, name: str, with_loops: bool) -> int:
        """Of one run of a computation."""
        if (name, with_loops) not in self._flops:
            computation = self._program[name]
            total = 0
            for instruction in computation.instructions.values():
                if instruction.opcode in ("convolution", "dot"):
                    total += product_flops(instruction, computation)
                inner = [self.flops(called, with_loops) for called in instruction.calls]
                total += _joined(instruction, inner)
                if instruction.opcode == "while":
                    trips = trip_count(self._program, computation, instruction) if with_loops else 1
                    total += trips * self.flops(_attribute(instruction, "body"), with_loops)
            self._flops[name, with_loops] = total
        return self._flops[name, with_loops]

    def collectives(self, name: str) -> Counter[tuple[str, str]]:
        """(kind, "count" or "bytes") -> number, of one run of a computation."""
        if name not in self._collectives:
            computation = self._program[name]
            total: Counter[tuple[str, str]] = Counter()
            for instruction in computation.instructions.values():
                kind = instruction.opcode.removesuffix("-start")
                if kind in _COLLECTIVES:
                    # A TPU's compiler makes a sum of which each device keeps a part of a whole sum and a slice.
                    scattered = kind == "all-reduce" and name.startswith("all-reduce-scatter")
                    shown = "reduce-scatter" if scattered else kind
                    total[shown, "count"] += 1
                    total[shown, "bytes"] += _payload(kind, instruction, computation)
                for called in instruction.calls:
                    total.update(self.collectives(called))
                if instruction.opcode == "while":
                    trips = trip_count(self._program, computation, instruction)
                    body = self.collectives(_attribute(instruction, "body"))
                    total.update({key: trips * number for key, number in body.items()})
            self._collectives[name] = total
        return self._collectives[name]


def _joined(instruction: Instruction, inner: Sequence[int]) -> int:
    """Of the computations that an instruction names: all, or the largest of branches."""
    return max(inner, default=0) if instruction.opcode == "conditional" else sum(inner)


def _payload(kind: str, instruction: Instruction, computation: Computation) -> int:
    if kind == "all-gather":
        arrays: Sequence[Array] = instruction.arrays
        if instruction.opcode.endswith("-start"):
            # What it takes comes first, then what it gives.
            arrays = arrays[len(arrays) // 2 :]
        return sum(array.bytes for array in arrays)
    return sum(array.bytes for operand in instruction.operands for array in computation.instructions[operand].arrays)


def _attribute(instruction: Instruction, name: str) -> str:
    found = re.search(rf"\b{name}=%?([\w.-]+)", instruction.attributes)
    if not found:
        raise HloError(f"{instruction.name} has no {name}")
    return found[1]


# Loops


def trip_count(program: Mapping[str, Computation], computation: Computation, loop: Instruction) -> int:
    """How often a `while` runs whose condition is that a counter is under a constant; the counter rises by 1.

    Raises `HloError` for any other loop.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if known:
        return int(known[1])
    condition = program[_attribute(loop, "condition")]
    compare = condition.root
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        raise HloError(f"the loop {loop.name} does not end at a constant: its condition is {compare.opcode}")
    counter, bound = (_source(condition, name) for name in compare.operands)
    if counter.opcode != "get-tuple-element":
        raise HloError(f"the loop {loop.name} has no counter")
    index = _attribute(counter, "index")
    start = _source(computation, _tuple_element(computation, loop.operands[0], int(index)))
    end = bound
    if bound.opcode == "get-tuple-element":
        element = int(_attribute(bound, "index"))
        end = _source(computation, _tuple_element(computation, loop.operands[0], element))
    if start.opcode != "constant" or end.opcode != "constant":
        raise HloError(f"the loop {loop.name} runs from {start.opcode} to {end.opcode}, expected constants")
    return max(int(end.operands[0]) - int(start.operands[0]), 0)


def _source(computation: Computation, name: str) -> Instruction:
    """The instruction whose value this is, before copies."""
    instruction = computation.instructions[name]
    while instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def _tuple_element(computation: Computation, name: str, index: int) -> str:
    """The name of an element of a tuple."""
    made = _source(computation, name)
    if made.opcode != "tuple":
        raise HloError(f"expected {name} to be a tuple, found {made.opcode}")
    return made.operands[index]


# Products


def product_flops(instruction: Instruction, computation: Computation) -> int:
    """Of a `dot` or `convolution`: two for each multiplication of values that are there, so not of padding."""
    left, right = (computation.instructions[name].arrays[0] for name in instruction.operands[:2])
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        sizes = [left.shape[axis] for axis in _sizes(contracted[1])] if contracted else []
        return 2 * math.prod(instruction.arrays[0].shape) * math.prod(sizes)
    return _convolution_flops(instruction, left, right)


def _convolution_flops(instruction: Instruction, left: Array, right: Array) -> int:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if not labels:
        raise HloError(f"the convolution {instruction.name} has no dim_labels")
    left_axes, right_axes, out_axes = labels[1], labels[2], labels[3]
    out = instruction.arrays[0]
    dimensions = sum(label.isdigit() for label in left_axes)
    places = 1
    for axis, (size, stride, low, left_dilation, right_dilation) in enumerate(_windows(instruction, dimensions)):
        label = str(axis)
        inputs, outputs = left.shape[left_axes.index(label)], out.shape[out_axes.index(label)]
        places *= _valid_places(inputs, outputs, size, stride, low, left_dilation, right_dilation)
    channels = left.shape[left_axes.index("f")] // _count(instruction, "feature_group_count")
    batch = left.shape[left_axes.index("b")] // _count(instruction, "batch_group_count")
    return 2 * channels * right.shape[right_axes.index("o")] * batch * places


def _count(instruction: Instruction, name: str) -> int:
    found = re.search(rf"\b{name}=(\d+)", instruction.attributes)
    return int(found[1]) if found else 1


def _windows(instruction: Instruction, dimensions: int) -> list[tuple[int, int, int, int, int]]:
    """(size, stride, padding before, dilation of the left, of the right) of each spatial axis."""
    if not dimensions:
        return []
    found = re.search(r"\bwindow=\{([^}]*)\}", instruction.attributes)
    parts = dict(part.split("=") for part in found[1].split()) if found else {}

    def values(name: str, default: str) -> list[int]:
        return [int(value.split("_")[0]) for value in parts.get(name, "x".join([default] * dimensions)).split("x")]

    defaults = {"size": "1", "stride": "1", "pad": "0", "lhs_dilate": "1", "rhs_dilate": "1"}
    return list(zip(*(values(name, default) for name, default in defaults.items()), strict=True))


@lru_cache(maxsize=4096)
def _valid_places(
    inputs: int, outputs: int, size: int, stride: int, low: int, left_dilation: int, right_dilation: int
) -> int:
    """Pairs of a place of the result and one of the window that meet a value, not padding or a gap."""
    count = 0
    for window in range(size):
        for out in range(outputs):
            place, gap = divmod(out * stride - low + window * right_dilation, left_dilation)
            count += gap == 0 and 0 <= place < inputs
    return count
