"""The table of TRecViT's parameters: the release's names and axes <-> those of `TRecViT.state_dict()`, with shapes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from rvm_core.checkpoint_plan import Family
from rvm_core.config import PATCH_SIZE, TRecViTConfig
from rvm_core.parameter_layout import (
    BLOCK,
    MATRIX,
    PATCHES,
    VECTOR,
    Axes,
    Layout,
    Row,
    attention_rows,
    dense_rows,
    norm_rows,
    own_layout,
)
from rvm_core.trecvit import TRecViT

_MATRIX_OF_ONE = Axes((0, 1), leading_one=True)
_CUBE = Axes((0, 1, 2))


def _gate(name: str, stored: str) -> list[Row]:
    group = "recurrent_width/recurrent_heads"
    return [
        Row(f"{name}.weight", f"{stored}/w", ("recurrent_heads", group, group), _CUBE),
        Row(f"{name}.bias", f"{stored}/b", ("recurrent_heads", group), MATRIX),
    ]


def _recurrent_block(name: str, stored: str) -> list[Row]:
    inside = f"{stored}/recurrent_block"
    rows = [
        Row(f"{name}.norm.weight", f"{stored}/temporal_pre_norm/scale", ("width",), VECTOR),
        *dense_rows(f"{name}.linear_x", f"{inside}/linear_x", "width", "recurrent_width"),
        *dense_rows(f"{name}.linear_y", f"{inside}/linear_y", "width", "recurrent_width"),
        *dense_rows(f"{name}.linear_out", f"{inside}/linear_out", "recurrent_width", "width"),
        Row(f"{name}.convolution.weight", f"{inside}/conv_1d/w", ("conv_width", "recurrent_width"), MATRIX),
        Row(f"{name}.convolution.bias", f"{inside}/conv_1d/b", ("recurrent_width",), VECTOR),
        *_gate(f"{name}.unit.input_gate", f"{inside}/rg_lru/input_gate"),
        *_gate(f"{name}.unit.decay_gate", f"{inside}/rg_lru/a_gate"),
        Row(f"{name}.unit.decay", f"{inside}/rg_lru/a_param", ("recurrent_width",), VECTOR),
    ]
    return [replace(row, digits=2) for row in rows]


def _spatial_block(name: str, stored: str) -> list[Row]:
    return [
        *norm_rows(f"{name}.attention_norm", f"{stored}/LayerNorm_0", "width"),
        *attention_rows(f"{name}.attention", f"{stored}/MultiHeadDotProductAttention_0", "width", "heads"),
        *norm_rows(f"{name}.mlp_norm", f"{stored}/LayerNorm_1", "width"),
        *dense_rows(f"{name}.mlp.dense_in", f"{stored}/MlpBlock_0/Dense_0", "width", "mlp_width"),
        *dense_rows(f"{name}.mlp.dense_out", f"{stored}/MlpBlock_0/Dense_1", "mlp_width", "width"),
    ]


_TABLE: tuple[Row, ...] = (
    Row(
        "tokenizer.patch_embedding.weight",
        "tokenizer/embedding/kernel",
        ("width", 3, PATCH_SIZE, PATCH_SIZE),
        PATCHES,
    ),
    Row("tokenizer.patch_embedding.bias", "tokenizer/embedding/bias", ("width",), VECTOR),
    Row("tokenizer.position_table", "tokenizer/pos_embedding", ("positions", "width"), _MATRIX_OF_ONE),
    Row("tokenizer.cls_token", "tokenizer/cls", (1, "width"), _MATRIX_OF_ONE),
    *_recurrent_block("blocks.{}.recurrent", "encoder/residualblock_{}"),
    *_spatial_block("blocks.{}.spatial", "encoder/encoderblock_{}"),
    *norm_rows("output_norm", "encoder/encoder_norm", "width"),
    *dense_rows("classifier.pre_logits", "decoder/pre_logits", "width", "classifier_width"),
    *dense_rows("classifier.to_logits", "decoder/cls_head", "classifier_width", "classes"),
)
_DEPTHS = {"blocks.": "depth"}

OFFICIAL = Layout(_TABLE, rf"(?:encoder|residual)block_{BLOCK}/", _DEPTHS)
"""The release's .npz."""

OWN = own_layout(_TABLE, _DEPTHS)
"""Our .safetensors."""


def make_config(sizes: Mapping[str, int], *, classifier: bool) -> TRecViTConfig:
    """The configuration of these sizes. Raises `KeyError` if one is not known and `ValueError` if they do not fit."""
    side = math.isqrt(sizes["positions"])
    if side**2 != sizes["positions"]:
        raise ValueError(f"expected positions of a square grid, got {sizes['positions']}")
    return TRecViTConfig(
        width=sizes["width"],
        depth=sizes["depth"],
        heads=sizes["heads"],
        mlp_width=sizes["mlp_width"],
        recurrent_width=sizes["recurrent_width"],
        recurrent_heads=sizes["recurrent_heads"],
        conv_width=sizes["conv_width"],
        position_grid=side,
        classifier_width=sizes["classifier_width"] if classifier else None,
        classes=sizes["classes"] if classifier else None,
    )


def sizes_of(config: TRecViTConfig) -> dict[str, int]:
    """The sizes of a configuration; `make_config` the other way round."""
    sizes = {name: value for name, value in vars(config).items() if isinstance(value, int)}
    return sizes | {"positions": sizes.pop("position_grid") ** 2}


def _config(sizes: Mapping[str, int], parts: Collection[str]) -> TRecViTConfig:
    return make_config(sizes, classifier="classifier" in parts)


def _other_decoder(names: Collection[str]) -> set[str]:
    """The names of a decoder that is no classifier: that of the masked pretraining, of which nothing is published."""
    inside = {name for name in names if name.startswith("decoder/")}
    return inside if not any(OFFICIAL.find(name) for name in inside) else set()


FAMILY = Family(
    title="TRecViT",
    model_class=TRecViT,
    official=lambda names: OFFICIAL,
    own=OWN,
    optional=frozenset({"classifier"}),
    make_config=_config,
    sizes_of=sizes_of,
    make_model=lambda config: TRecViT(config, seed=None),
    passed_over=_other_decoder,
)
"""TRecViT, as its checkpoints have it."""
