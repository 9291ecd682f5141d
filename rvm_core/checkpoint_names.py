"""The table of RVM's parameters: the release's names and axes <-> those of `RVM.state_dict()`, with their shapes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from rvm_core.checkpoint_plan import Family
from rvm_core.config import IMAGE_SUFFIX, PATCH_SIZE, DecoderConfig, RVMConfig
from rvm_core.model import RVM
from rvm_core.parameter_layout import (
    BLOCK,
    MATRIX,
    PATCHES,
    VECTOR,
    Layout,
    Row,
    dense_rows,
    encoder_block_rows,
    norm_rows,
    normed_attention_rows,
    own_layout,
)


def _cross_transformer(name: str, stored: str, width: str, heads: str, mlp_width: str) -> list[Row]:
    return [
        *normed_attention_rows(
            f"{name}.blocks.{{}}.cross_attention", f"{stored}/xa_blocks_{{}}/ca_attention", width, heads
        ),
        *encoder_block_rows(f"{name}.blocks.{{}}", f"{stored}/xa_blocks_{{}}", width, heads, mlp_width),
        *norm_rows(f"{name}.output_norm", f"{stored}/output_norm", width),
    ]


_TABLE: tuple[Row, ...] = (
    Row(
        "encoder.patch_embedding.weight",
        "tokenizer/patch_embedding/Conv_0/kernel",
        ("width", 3, PATCH_SIZE, PATCH_SIZE),
        PATCHES,
    ),
    Row("encoder.patch_embedding.bias", "tokenizer/patch_embedding/Conv_0/bias", ("width",), VECTOR),
    Row("encoder.cls_token", "cls_token", (1, "width"), MATRIX),
    *encoder_block_rows("encoder.blocks.{}", "encoder/layers_{}", "width", "encoder_heads", "encoder_mlp_width"),
    *norm_rows("encoder.output_norm", "encoder/LayerNorm_0", "width"),
    *dense_rows("core.input_update", "rnn_core/input_update", "width", "width", bias=False),
    *dense_rows("core.input_reset", "rnn_core/input_reset", "width", "width", bias=False),
    *dense_rows("core.state_update", "rnn_core/state_update", "width", "width", bias=False),
    *dense_rows("core.state_reset", "rnn_core/state_reset", "width", "width", bias=False),
    Row("core.state_norm.weight", "rnn_core/state_layer_norm/scale", ("width",), VECTOR),
    *_cross_transformer("core.transformer", "rnn_core/transformer", "width", "core_heads", "core_mlp_width"),
    *dense_rows("decoder.embedding", "decoder_embedder", "width", "decoder_width"),
    *dense_rows("decoder.time_gap_embedding", "delta_embedder", "max_time_gap", "decoder_width"),
    Row("decoder.mask_token", "mask_token", (1, "decoder_width"), MATRIX),
    *_cross_transformer("decoder.transformer", "decoder", "decoder_width", "decoder_heads", "decoder_mlp_width"),
    *dense_rows("decoder.to_pixels", "detokenizer/Dense_0", "decoder_width", PATCH_SIZE * PATCH_SIZE * 3),
)
"""Every parameter of the model, as the release names it."""

_DEPTHS = {
    "encoder.blocks.": "encoder_depth",
    "core.transformer.blocks.": "core_depth",
    "decoder.transformer.blocks.": "decoder_depth",
}
"""Which depth counts the blocks of a name."""

OFFICIAL = Layout(_TABLE, rf"/(?:layers|xa_blocks)_{BLOCK}/", _DEPTHS)
"""The release's .npz."""

OWN = own_layout(_TABLE, _DEPTHS)
"""Our .safetensors."""


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
    sizes = {name: value for name, value in vars(config).items() if type(value) is int}
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


def _config(sizes: Mapping[str, int], parts: Collection[str]) -> RVMConfig:
    return make_config(sizes, decoder="decoder" in parts)


def _adjusted(config: RVMConfig, metadata: Mapping[str, str]) -> RVMConfig:
    return replace(config, memory=not metadata.get("model", "").endswith(IMAGE_SUFFIX))


FAMILY = Family(
    title="RVM",
    model_class=RVM,
    official=lambda names: OFFICIAL,
    own=OWN,
    optional=frozenset({"decoder"}),
    make_config=_config,
    sizes_of=sizes_of,
    make_model=lambda config: RVM(config, seed=None),
    adjusted=_adjusted,
)
"""RVM, as its checkpoints have it."""
