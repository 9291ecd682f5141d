"""The step of a trained model rewritten for speed, algebraically the same.

Products that share their input become one: query, key and value of a self-attention; keys and values of every core
block, which all attend to the same context; update and reset gate. Frames enter as uint8.

Shapes: B batch, H W image, N+1 tokens with [CLS] first, D width, K heads, C channels of a head, L core blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvm_core.encoder import Encoder
from rvm_core.layers import Attention, CrossBlock, CrossTransformer, EncoderBlock, Linear, MergeHeads, SplitHeads
from rvm_core.model import RVM
from rvm_core.streaming import State, StreamingEncoder
from rvm_core.trecvit import RecurrentBlock, TRecViT, TRecViTBlock


class Projection(nn.Module):
    """Several projections of one input as one product: (..., D) -> (..., out), in the dtype of the weight."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False) if bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


def _stacked(parts: list[SplitHeads]) -> Projection:
    weight = torch.cat([part.weight.flatten(0, 1) for part in parts])
    return Projection(weight, torch.cat([part.bias.flatten() for part in parts]))


class SelfAttention(nn.Module):
    """x (B, N, D) -> (B, N, D), with one product for query, key and value."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.num_heads = attention.query.bias.shape[0]
        self.query_key_value = _stacked([attention.query, attention.key, attention.value])
        self.out = attention.out

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query_key_value(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(query, key, value))


class FusedEncoderBlock(nn.Module):
    """x (B, N, D) -> (B, N, D)."""

    def __init__(self, block: EncoderBlock) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm, self.mlp = block.attention_norm, block.mlp_norm, block.mlp
        self.attention = SelfAttention(block.attention)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class FusedCoreBlock(nn.Module):
    """x (B, N, D), key and value (B, K, M, C) of the context, made beforehand -> (B, N, D)."""

    def __init__(self, block: CrossBlock) -> None:
        super().__init__()
        self.cross_attention_norm = block.cross_attention_norm
        self.cross_query, self.cross_out = block.cross_attention.query, block.cross_attention.out
        self.mlp_norm, self.mlp, self.attention_norm = block.mlp_norm, block.mlp, block.attention_norm
        self.attention = SelfAttention(block.attention)

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query = self.cross_query(self.cross_attention_norm(x))
        x = x + self.cross_out(F.scaled_dot_product_attention(query, key, value))
        x = x + self.mlp(self.mlp_norm(x))
        return x + self.attention(self.attention_norm(x))


class FusedStep(nn.Module):
    """frames uint8 (B, H, W, 3) RGB, state (B, N+1, D) float32 -> features, also the new state, (B, N+1, D) float32.

    Shares with the model the parameters that are not fused, and their dtypes. Without a state, it is zeros.
    """

    def __init__(self, model: RVM) -> None:
        super().__init__()
        self.encoder = _fused_encoder(model.encoder)
        core = model.core
        self.input_gates = Projection(torch.cat([core.input_update.weight, core.input_reset.weight]), None)
        self.state_gates = Projection(torch.cat([core.state_update.weight, core.state_reset.weight]), None)
        self.state_norm, self.core_norm = core.state_norm, core.transformer.output_norm
        core_blocks = cast("list[CrossBlock]", list(core.transformer.blocks))
        self.core_blocks = nn.ModuleList(FusedCoreBlock(block) for block in core_blocks)
        pairs = [(block.cross_attention.key, block.cross_attention.value) for block in core_blocks]
        self.context_key_value = _stacked([part for pair in pairs for part in pair])
        self.core_heads = core_blocks[0].cross_attention.query.bias.shape[0]

    def forward(self, frames: Tensor, state: Tensor | None) -> Tensor:
        x = self.encoder(to_pixels(frames))
        state = torch.zeros_like(x) if state is None else state
        update, reset = torch.sigmoid(self.input_gates(x) + self.state_gates(state)).chunk(2, dim=-1)
        context = self.context_key_value(reset * self.state_norm(state))
        pairs = context.unflatten(-1, (len(self.core_blocks), 2, self.core_heads, -1)).permute(2, 3, 0, 4, 1, 5)
        for i, block in enumerate(self.core_blocks):
            x = block(x, pairs[i, 0], pairs[i, 1])
        return (1 - update) * state + update * self.core_norm(x)


class Step(nn.Module):
    """The fused step of any model: frames uint8 (B, H, W, 3) RGB, state -> (features (B, N+1, D), the new state).

    Shares with the model the parameters that are not fused, and their dtypes.
    """

    def __init__(self, model: StreamingEncoder) -> None:
        super().__init__()
        self.inner: nn.Module
        if isinstance(model, RVM):
            self.inner = FusedStep(model)
        else:
            self.inner = _fused_trecvit(model) if isinstance(model, TRecViT) else model
        self._memory = not isinstance(model, RVM) or model.config.memory

    def forward(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        if isinstance(self.inner, FusedStep):
            features = self.inner(frames, state if self._memory else None)
            return features, features if self._memory else ()
        features, state = self.inner(to_pixels(frames), state)
        return features, state


def to_pixels(frames: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [0, 1]."""
    return frames.permute(0, 3, 1, 2).to(torch.float32) / 255.0


Model = TypeVar("Model", bound=StreamingEncoder)


def cast_blocks(model: Model, dtype: torch.dtype) -> Model:
    """Casts, in place, the linear layers inside the blocks; patch embedding, gates and norms stay float32."""
    for layer in _block_layers(model):
        layer.to(dtype)
    return model


def cast_copy(model: Model, dtype: torch.dtype) -> Model:
    """A copy as `cast_blocks` would make it, without ever holding another one of the blocks in float32."""
    weights = (parameter for layer in _block_layers(model) for parameter in layer.parameters())
    cast_weights = {id(weight): nn.Parameter(weight.detach().to(dtype, copy=True), False) for weight in weights}
    # What is in the dictionary counts as copied already.
    return copy.deepcopy(model, cast_weights)


def _block_layers(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        if isinstance(module, (EncoderBlock, CrossTransformer, RecurrentBlock)):
            yield from (layer for layer in module.modules() if isinstance(layer, (Linear, SplitHeads, MergeHeads)))


def _fused_encoder(encoder: Encoder) -> Encoder:
    """Shares everything but the blocks: those of the model need not be kept for it."""
    fused = copy.copy(encoder)
    blocks = cast("list[EncoderBlock]", list(encoder.blocks))
    fused._modules = encoder._modules | {"blocks": nn.ModuleList(map(FusedEncoderBlock, blocks))}
    return fused


def _fused_trecvit(model: TRecViT) -> TRecViT:
    """Shares everything but the ViT blocks."""
    fused = copy.copy(model)
    blocks = cast("list[TRecViTBlock]", list(model.blocks))
    fused._modules = model._modules | {"blocks": nn.ModuleList(map(_fused_trecvit_block, blocks))}
    return fused


def _fused_trecvit_block(block: TRecViTBlock) -> TRecViTBlock:
    fused = copy.copy(block)
    fused._modules = block._modules | {"spatial": FusedEncoderBlock(block.spatial)}
    return fused
