"""Tables of parameters: the names and axes of a file format <-> those of a model's state_dict, with their shapes.

Names: "{}" stands for the number of a block. Shapes are those of the state_dict; a string in them is a size to be
inferred from a checkpoint, "width/heads" the channels of one head.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

Shape = tuple[int, ...]
PartialShape = tuple[int | None, ...]
"""None for a size that is not known."""
Symbol = str | int


@dataclass(frozen=True)
class Axes:
    """How the axes of a parameter lie in a file."""

    order: tuple[int, ...]
    """For each axis in the state_dict, the file's axis it comes from."""
    leading_one: bool = False
    """The file has one more axis in front, of size 1."""

    def stored_shape(self, shape: PartialShape) -> PartialShape:
        return (1,) * self.leading_one + tuple(shape[i] for i in self._inverse())

    def own_shape(self, stored: Shape) -> Shape | None:
        """None if `stored` has another number of axes, so that it cannot be turned."""
        if len(stored) != len(self.order) + self.leading_one:
            return None
        return tuple(stored[i + self.leading_one] for i in self.order)

    def to_stored(self, tensor: Tensor) -> Tensor:
        turned = tensor.permute(self._inverse())
        return turned.unsqueeze(0) if self.leading_one else turned

    def to_own(self, stored: Tensor) -> Tensor:
        return (stored.squeeze(0) if self.leading_one else stored).permute(self.order)

    def _inverse(self) -> tuple[int, ...]:
        return tuple(self.order.index(i) for i in range(len(self.order)))


VECTOR = Axes((0,))
MATRIX = Axes((0, 1))
LINEAR = Axes((1, 0))
SPLIT_HEADS = Axes((1, 2, 0))
MERGE_HEADS = Axes((2, 0, 1))
PATCHES = Axes((3, 2, 0, 1), leading_one=True)


@dataclass(frozen=True)
class Row:
    """One row of the table: a parameter, or the same one of every block."""

    name: str
    """In the state_dict."""
    stored: str
    """In the file."""
    shape: tuple[Symbol, ...]
    """In the state_dict."""
    axes: Axes
    digits: int = 1
    """Of the number of a block in the file, at least; zeros fill it up."""


@dataclass(frozen=True)
class Parameter:
    """A row with the number of its block, "" where it is in none."""

    row: Row
    block: str = ""
    """Without zeros in front."""

    @property
    def name(self) -> str:
        return self.row.name.replace("{}", self.block)

    @property
    def stored(self) -> str:
        return self.row.stored.replace("{}", self.block.zfill(self.row.digits))

    def shape(self, sizes: Mapping[str, int]) -> PartialShape:
        """In the state_dict."""
        return tuple(_number(symbol, sizes) for symbol in self.row.shape)

    def stored_shape(self, sizes: Mapping[str, int]) -> PartialShape:
        """In the file."""
        return self.row.axes.stored_shape(self.shape(sizes))

    @property
    def part(self) -> str:
        """The part of the model it is in, the first word of its name."""
        return self.row.name.partition(".")[0]


def _number(symbol: Symbol, sizes: Mapping[str, int]) -> int | None:
    if isinstance(symbol, int):
        return symbol
    whole, _, parts = symbol.partition("/")
    if whole not in sizes or (parts and parts not in sizes):
        return None
    return sizes[whole] // sizes[parts] if parts else sizes[whole]


def norm_rows(name: str, stored: str, width: str) -> list[Row]:
    return [
        Row(f"{name}.weight", f"{stored}/scale", (width,), VECTOR),
        Row(f"{name}.bias", f"{stored}/bias", (width,), VECTOR),
    ]


def dense_rows(name: str, stored: str, inputs: Symbol, outputs: Symbol, *, bias: bool = True) -> list[Row]:
    weight = Row(f"{name}.weight", f"{stored}/kernel", (outputs, inputs), LINEAR)
    return [weight, Row(f"{name}.bias", f"{stored}/bias", (outputs,), VECTOR)] if bias else [weight]


def attention_rows(name: str, stored: str, width: str, heads: str) -> list[Row]:
    """Query, key, value and output."""
    head = f"{width}/{heads}"
    rows = []
    for part in ("query", "key", "value"):
        rows.append(Row(f"{name}.{part}.weight", f"{stored}/{part}/kernel", (heads, head, width), SPLIT_HEADS))
        rows.append(Row(f"{name}.{part}.bias", f"{stored}/{part}/bias", (heads, head), MATRIX))
    rows.append(Row(f"{name}.out.weight", f"{stored}/out/kernel", (width, heads, head), MERGE_HEADS))
    rows.append(Row(f"{name}.out.bias", f"{stored}/out/bias", (width,), VECTOR))
    return rows


def normed_attention_rows(name: str, stored: str, width: str, heads: str) -> list[Row]:
    """The same, and the norm in front."""
    return [*norm_rows(f"{name}_norm", f"{stored}_norm", width), *attention_rows(name, stored, width, heads)]


def encoder_block_rows(name: str, stored: str, width: str, heads: str, mlp_width: str) -> list[Row]:
    return [
        *normed_attention_rows(f"{name}.attention", f"{stored}/attention", width, heads),
        *norm_rows(f"{name}.mlp_norm", f"{stored}/mlp_norm", width),
        *dense_rows(f"{name}.mlp.dense_in", f"{stored}/mlp/dense_in", width, mlp_width),
        *dense_rows(f"{name}.mlp.dense_out", f"{stored}/mlp/dense_out", mlp_width, width),
    ]


BLOCK = "([0-9]{1,5})"
"""The number of a block, in a pattern."""


class Layout:
    """The names, axes and shapes of one file format."""

    def __init__(self, rows: Iterable[Row], block: str, depths: Mapping[str, str] | None = None) -> None:
        """
        Args:
            block: a pattern whose one group is the number of a block in a stored name.
            depths: which size counts the blocks of a name in the state_dict, by what stands in front of their number.
        """
        self._rows = tuple(rows)
        self._depths = depths or {}
        self._block = re.compile(block)
        self._by_stored = {row.stored: row for row in self._rows}

    def find(self, stored: str) -> Parameter | None:
        """The parameter of a name in the file; None if it is no parameter's."""
        match = self._block.search(stored)
        if not match:
            return Parameter(self._by_stored[stored]) if stored in self._by_stored and "{}" not in stored else None
        row = self._by_stored.get(f"{stored[: match.start(1)]}{{}}{stored[match.end(1) :]}")
        parameter = Parameter(row, match.group(1).lstrip("0") or "0") if row else None
        return parameter if parameter and parameter.stored == stored else None

    def infer_sizes(self, shapes: Mapping[str, Shape]) -> dict[str, int]:
        """Sizes from the names and shapes in a file; other names are passed over.

        Each size is the one that most parameters have, so that one wrong shape is told from the others, and each
        depth is the number of different blocks, so that a block named 99999 costs nothing. Sizes that no parameter
        tells are left out.
        """
        votes: dict[str, Counter[int]] = {}
        blocks: dict[str, set[str]] = {}
        for name, stored in shapes.items():
            parameter = self.find(name)
            if parameter is None:
                continue
            row = parameter.row
            if parameter.block:
                blocks.setdefault(self._depths[row.name.partition("{}")[0]], set()).add(parameter.block)
            for symbol, size in zip(row.shape, row.axes.own_shape(stored) or (), strict=False):
                if isinstance(symbol, str) and "/" not in symbol and size > 0:
                    votes.setdefault(symbol, Counter())[size] += 1
        sizes = {symbol: count.most_common(1)[0][0] for symbol, count in votes.items()}
        return sizes | {depth: len(numbers) for depth, numbers in blocks.items()}

    def parameters(self, sizes: Mapping[str, int], *, without: Collection[str] = ()) -> list[Parameter]:
        """Every parameter of a model of these sizes without some parts; a depth that is not known counts as 1."""
        parameters = []
        for row in self._rows:
            prefix, in_blocks, _ = row.name.partition("{}")
            blocks = map(str, range(sizes.get(self._depths[prefix], 1))) if in_blocks else [""]
            parameters += [Parameter(row, block) for block in blocks]
        return [parameter for parameter in parameters if parameter.part not in without]

    def with_prefix(self, prefix: str) -> Layout:
        """The layout of a file in which all names have something in front."""
        rows = (replace(row, stored=prefix + row.stored) for row in self._rows)
        return Layout(rows, self._block.pattern, self._depths)


def own_layout(rows: Iterable[Row], depths: Mapping[str, str] | None = None) -> Layout:
    """The layout of our .safetensors: names and axes of the state_dict."""
    plain = (replace(row, stored=row.name, axes=Axes(tuple(range(len(row.shape)))), digits=1) for row in rows)
    return Layout(plain, rf"(?:^|\.)blocks\.{BLOCK}\.", depths)
