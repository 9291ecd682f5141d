"""The one table of parameters: the release's names and axes <-> those of `RVM.state_dict()`, with their shapes.

Names: "{}" stands for the number of a block. Shapes are those of the state_dict; a string in them is a size to be
inferred from a checkpoint, "width/encoder_heads" the channels of one head.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from rvm_core.config import PATCH_SIZE, DecoderConfig, RVMConfig

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


_VECTOR = Axes((0,))
_MATRIX = Axes((0, 1))
_LINEAR = Axes((1, 0))
_SPLIT_HEADS = Axes((1, 2, 0))
_MERGE_HEADS = Axes((2, 0, 1))
_PATCHES = Axes((3, 2, 0, 1), leading_one=True)


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


@dataclass(frozen=True)
class Parameter:
    """A row with the number of its block, "" where it is in none."""

    row: Row
    block: str = ""

    @property
    def name(self) -> str:
        return self.row.name.replace("{}", self.block)

    @property
    def stored(self) -> str:
        return self.row.stored.replace("{}", self.block)

    def shape(self, sizes: Mapping[str, int]) -> PartialShape:
        """In the state_dict."""
        return tuple(_number(symbol, sizes) for symbol in self.row.shape)

    def stored_shape(self, sizes: Mapping[str, int]) -> PartialShape:
        """In the file."""
        return self.row.axes.stored_shape(self.shape(sizes))

    @property
    def in_decoder(self) -> bool:
        return self.row.name.startswith("decoder.")


def _number(symbol: Symbol, sizes: Mapping[str, int]) -> int | None:
    if isinstance(symbol, int):
        return symbol
    whole, _, parts = symbol.partition("/")
    if whole not in sizes or (parts and parts not in sizes):
        return None
    return sizes[whole] // sizes[parts] if parts else sizes[whole]


def _norm(name: str, stored: str, width: str) -> list[Row]:
    return [
        Row(f"{name}.weight", f"{stored}/scale", (width,), _VECTOR),
        Row(f"{name}.bias", f"{stored}/bias", (width,), _VECTOR),
    ]


def _dense(name: str, stored: str, inputs: Symbol, outputs: Symbol, *, bias: bool = True) -> list[Row]:
    weight = Row(f"{name}.weight", f"{stored}/kernel", (outputs, inputs), _LINEAR)
    return [weight, Row(f"{name}.bias", f"{stored}/bias", (outputs,), _VECTOR)] if bias else [weight]


def _attention(name: str, stored: str, width: str, heads: str) -> list[Row]:
    head = f"{width}/{heads}"
    rows = _norm(f"{name}_norm", f"{stored}_norm", width)
    for part in ("query", "key", "value"):
        rows.append(Row(f"{name}.{part}.weight", f"{stored}/{part}/kernel", (heads, head, width), _SPLIT_HEADS))
        rows.append(Row(f"{name}.{part}.bias", f"{stored}/{part}/bias", (heads, head), _MATRIX))
    rows.append(Row(f"{name}.out.weight", f"{stored}/out/kernel", (width, heads, head), _MERGE_HEADS))
    rows.append(Row(f"{name}.out.bias", f"{stored}/out/bias", (width,), _VECTOR))
    return rows


def _encoder_block(name: str, stored: str, width: str, heads: str, mlp_width: str) -> list[Row]:
    return [
        *_attention(f"{name}.attention", f"{stored}/attention", width, heads),
        *_norm(f"{name}.mlp_norm", f"{stored}/mlp_norm", width),
        *_dense(f"{name}.mlp.dense_in", f"{stored}/mlp/dense_in", width, mlp_width),
        *_dense(f"{name}.mlp.dense_out", f"{stored}/mlp/dense_out", mlp_width, width),
    ]


def _cross_transformer(name: str, stored: str, width: str, heads: str, mlp_width: str) -> list[Row]:
    return [
        *_attention(f"{name}.blocks.{{}}.cross_attention", f"{stored}/xa_blocks_{{}}/ca_attention", width, heads),
        *_encoder_block(f"{name}.blocks.{{}}", f"{stored}/xa_blocks_{{}}", width, heads, mlp_width),
        *_norm(f"{name}.output_norm", f"{stored}/output_norm", width),
    ]


_TABLE: tuple[Row, ...] = (
    Row(
        "encoder.patch_embedding.weight",
        "tokenizer/patch_embedding/Conv_0/kernel",
        ("width", 3, PATCH_SIZE, PATCH_SIZE),
        _PATCHES,
    ),
    Row("encoder.patch_embedding.bias", "tokenizer/patch_embedding/Conv_0/bias", ("width",), _VECTOR),
    Row("encoder.cls_token", "cls_token", (1, "width"), _MATRIX),
    *_encoder_block("encoder.blocks.{}", "encoder/layers_{}", "width", "encoder_heads", "encoder_mlp_width"),
    *_norm("encoder.output_norm", "encoder/LayerNorm_0", "width"),
    *_dense("core.input_update", "rnn_core/input_update", "width", "width", bias=False),
    *_dense("core.input_reset", "rnn_core/input_reset", "width", "width", bias=False),
    *_dense("core.state_update", "rnn_core/state_update", "width", "width", bias=False),
    *_dense("core.state_reset", "rnn_core/state_reset", "width", "width", bias=False),
    Row("core.state_norm.weight", "rnn_core/state_layer_norm/scale", ("width",), _VECTOR),
    *_cross_transformer("core.transformer", "rnn_core/transformer", "width", "core_heads", "core_mlp_width"),
    *_dense("decoder.embedding", "decoder_embedder", "width", "decoder_width"),
    *_dense("decoder.time_gap_embedding", "delta_embedder", "max_time_gap", "decoder_width"),
    Row("decoder.mask_token", "mask_token", (1, "decoder_width"), _MATRIX),
    *_cross_transformer("decoder.transformer", "decoder", "decoder_width", "decoder_heads", "decoder_mlp_width"),
    *_dense("decoder.to_pixels", "detokenizer/Dense_0", "decoder_width", PATCH_SIZE * PATCH_SIZE * 3),
)
"""Every parameter of the model, as the release names it."""

_DEPTHS = {
    "encoder.blocks.": "encoder_depth",
    "core.transformer.blocks.": "core_depth",
    "decoder.transformer.blocks.": "decoder_depth",
}
"""Which depth counts the blocks of a name."""

_BLOCK = "(0|[1-9][0-9]{0,4})"


class Layout:
    """The names, axes and shapes of one file format."""

    def __init__(self, rows: Iterable[Row], block: str) -> None:
        """`block` is a pattern whose one group is the number of a block in a stored name."""
        self._rows = tuple(rows)
        self._block = re.compile(block)
        self._by_stored = {row.stored: row for row in self._rows}

    def find(self, stored: str) -> Parameter | None:
        """The parameter of a name in the file; None if it is no parameter's."""
        match = self._block.search(stored)
        if not match:
            return Parameter(self._by_stored[stored]) if stored in self._by_stored and "{}" not in stored else None
        row = self._by_stored.get(f"{stored[: match.start(1)]}{{}}{stored[match.end(1) :]}")
        return Parameter(row, match.group(1)) if row else None

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
                blocks.setdefault(_DEPTHS[row.name.partition("{}")[0]], set()).add(parameter.block)
            for symbol, size in zip(row.shape, row.axes.own_shape(stored) or (), strict=False):
                if isinstance(symbol, str) and "/" not in symbol and size > 0:
                    votes.setdefault(symbol, Counter())[size] += 1
        sizes = {symbol: count.most_common(1)[0][0] for symbol, count in votes.items()}
        return sizes | {depth: len(numbers) for depth, numbers in blocks.items()}

    def parameters(self, sizes: Mapping[str, int], *, decoder: bool) -> list[Parameter]:
        """Every parameter of a model of these sizes; a depth that is not known counts as 1."""
        parameters = []
        for row in self._rows:
            prefix, in_blocks, _ = row.name.partition("{}")
            blocks = map(str, range(sizes.get(_DEPTHS[prefix], 1))) if in_blocks else [""]
            parameters += [Parameter(row, block) for block in blocks]
        return [parameter for parameter in parameters if decoder or not parameter.in_decoder]


OFFICIAL = Layout(_TABLE, rf"/(?:layers|xa_blocks)_{_BLOCK}/")
"""The release's .npz."""

OWN = Layout(
    (replace(row, stored=row.name, axes=Axes(tuple(range(len(row.shape))))) for row in _TABLE), rf"\.{_BLOCK}\."
)
"""Our .safetensors: names and axes of the state_dict."""


def make_config(sizes: Mapping[str, int], *, decoder: bool) -> RVMConfig:
    """The configuration of these sizes. Raises `KeyError` if one is not known and `ValueError` if they do not fit."""
    return RVMConfig(
        width=sizes["width"],
        encoder_depth=sizes["encoder_depth"],
        encoder_heads=sizes["encoder_heads"],
        encoder_mlp_width=sizes["encoder_mlp_width"],
        core_depth=sizes["core_depth"],
        core_heads=sizes["core_heads"],
        core_mlp_width=sizes["core_mlp_width"],
        decoder=DecoderConfig(
            width=sizes["decoder_width"],
            depth=sizes["decoder_depth"],
            num_heads=sizes["decoder_heads"],
            mlp_width=sizes["decoder_mlp_width"],
            max_time_gap=sizes["max_time_gap"],
        )
        if decoder
        else None,
    )


def sizes_of(config: RVMConfig) -> dict[str, int]:
    """The sizes of a configuration; `make_config` the other way round."""
    sizes = {name: value for name, value in vars(config).items() if isinstance(value, int)}
    if config.decoder:
        decoder = config.decoder
        sizes |= {
            "decoder_width": decoder.width,
            "decoder_depth": decoder.depth,
            "decoder_heads": decoder.num_heads,
            "decoder_mlp_width": decoder.mlp_width,
            "max_time_gap": decoder.max_time_gap,
        }
    return sizes
