"""Layers shared by encoder, core and decoder.

Shapes: B batch, N tokens, M tokens attended to, D width, K heads, C channels of a head (D = K * C), F hidden channels.

Every linear layer computes in the dtype of its own weight and the residual stream stays float32, so casting the linear
layers of the blocks to bfloat16 gives the mixed precision of the release: bfloat16 products, float32 softmax,
LayerNorm and residuals.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYER_NORM_EPS = 1e-6


class Linear(nn.Module):
    """(..., in) -> (..., out), in the dtype of the weight. Parameters start uninitialised; see `initialize`."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class SplitHeads(nn.Module):
    """(B, N, D) -> (B, K, N, C). The parameters keep the head axis, so that their shapes tell the number of heads."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, width // num_heads, width))
        self.bias = nn.Parameter(torch.empty(num_heads, width // num_heads))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x.to(self.weight.dtype), self.weight.flatten(0, 1), self.bias.flatten())
        return y.unflatten(-1, self.bias.shape).transpose(-3, -2)


class MergeHeads(nn.Module):
    """(B, K, N, C) -> (B, N, D)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, num_heads, width // num_heads))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        merged = x.transpose(-3, -2).flatten(-2)
        return F.linear(merged.to(self.weight.dtype), self.weight.flatten(1), self.bias)


class Attention(nn.Module):
    """Multi-head attention of x (B, N, D) over context (B, M, D) -> (B, N, D).

    Items of x may share a context: with context (B / G, M, D), each G items of x that follow each other do.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.query = SplitHeads(width, num_heads)
        self.key = SplitHeads(width, num_heads)
        self.value = SplitHeads(width, num_heads)
        self.out = MergeHeads(width, num_heads)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        queries = x if x.shape[0] == context.shape[0] else x.reshape(context.shape[0], -1, x.shape[-1])
        attended = F.scaled_dot_product_attention(self.query(queries), self.key(context), self.value(context))
        return self.out(attended).reshape(x.shape) if queries is not x else self.out(attended)


class MLP(nn.Module):
    """(B, N, D) -> (B, N, D) through F hidden channels and the tanh form of GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense_in = Linear(width, hidden)
        self.dense_out = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_out(F.gelu(self.dense_in(x), approximate="tanh"))


class EncoderBlock(nn.Module):
    """Pre-norm ViT block: self-attention, then MLP."""

    def __init__(self, width: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attention = Attention(width, num_heads)
        self.mlp_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = MLP(width, mlp_width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed)
        return x + self.mlp(self.mlp_norm(x))


class CrossBlock(nn.Module):
    """Block of core and decoder: cross-attention to a context, MLP, then self-attention, in this order.

    The context is taken as it is, without a normalisation of its own.
    """

    def __init__(self, width: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.cross_attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.cross_attention = Attention(width, num_heads)
        self.mlp_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = MLP(width, mlp_width)
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attention = Attention(width, num_heads)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.cross_attention(self.cross_attention_norm(x), context)
        x = x + self.mlp(self.mlp_norm(x))
        normed = self.attention_norm(x)
        return x + self.attention(normed, normed)


class CrossTransformer(nn.Module):
    """A stack of `CrossBlock`s and a final LayerNorm: x (B, N, D), context (B, M, D) -> (B, N, D)."""

    def __init__(self, width: int, depth: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CrossBlock(width, num_heads, mlp_width) for _ in range(depth))
        self.output_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, context)
        return self.output_norm(x)


@torch.no_grad()
def initialize(module: nn.Module, generator: torch.Generator) -> None:
    """Fills every parameter below `module` with the release's initial distributions, drawn from `generator`.

    LeCun normal for projections, Glorot uniform for MLPs, zeros for biases, ones for scales, normal (0.02) for tokens.
    """
    for name, parameter in module.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf.endswith("_token"):
            parameter.normal_(std=0.02, generator=generator)
        elif leaf == "bias":
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            # Of all the weights only those that split heads have their inputs on the last axis alone.
            fan_out = parameter.shape[:2].numel() if _splits_heads(name) else parameter.shape[0]
            fan_in = parameter.numel() // fan_out
            if ".mlp." in name:
                bound = (6 / (fan_in + fan_out)) ** 0.5
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.normal_(std=fan_in**-0.5, generator=generator)


def _splits_heads(parameter_name: str) -> bool:
    return parameter_name.endswith((".query.weight", ".key.weight", ".value.weight"))
