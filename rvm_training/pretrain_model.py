"""The torch model that is pretrained: an RVM, its ablation with self-attention in the place of the core, or another.

Shapes: B batch, T source frames, N+1 tokens of a frame with [CLS] first, D width.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from rvm_core.config import RVMConfig
from rvm_core.layers import LAYER_NORM_EPS, EncoderBlock, initialize
from rvm_core.model import RVM
from rvm_core.position import sincos_table
from rvm_training.fourds_mae import TubeletMAE
from rvm_training.mae_config import TubeletMAEConfig, TubeMAEConfig
from rvm_training.pretrain_config import PretrainConfig
from rvm_training.trecvit_mae import TubeMAE


class SelfAttentionAggregator(nn.Module):
    """Full self-attention over the tokens of all source frames, instead of the recurrent core.

    As deep as the core, and with as many weights: its MLPs are wider by what the core's cross-attention and gates have.
    A fixed sin-cos table tells the frames apart.
    """

    def __init__(self, config: RVMConfig) -> None:
        super().__init__()
        width = config.width
        mlp_width = aggregator_mlp_width(config)
        self.blocks = nn.ModuleList(EncoderBlock(width, config.core_heads, mlp_width) for _ in range(config.core_depth))
        self.output_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def unroll(self, tokens: Tensor) -> Tensor:
        """Encoded tokens (B, T, N+1, D) -> features of each frame, alike."""
        times = sincos_table(tokens.shape[1], tokens.shape[-1]).to(tokens)
        x = (tokens + times[:, None]).flatten(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.output_norm(x).unflatten(1, tokens.shape[1:3])


def aggregator_mlp_width(config: RVMConfig) -> int:
    """Hidden channels with which a `SelfAttentionAggregator` has as many weights as the core of the same depth."""
    return config.core_mlp_width + 2 * config.width + 2 * config.width // config.core_depth


PretrainModel: TypeAlias = Any
"""An `RVM` with decoder, a `TubeMAE` or a `TubeletMAE`: a torch module with a method `reconstruct`."""


def build_model(config: PretrainConfig, *, seed: int | None) -> PretrainModel:
    """The model of a configuration, with random weights drawn from `seed`, or uninitialised ones for None.

    With aggregator "self_attention", `core` is a `SelfAttentionAggregator`: such a model reconstructs, but has no step.
    """
    if isinstance(config.model, TubeMAEConfig):
        return TubeMAE(config.model, seed=seed)
    if isinstance(config.model, TubeletMAEConfig):
        return TubeletMAE(config.model, seed=seed)
    if config.aggregator == "core":
        return RVM(config.model, seed=seed)
    model = RVM(config.model, seed=None)
    model.add_module("core", SelfAttentionAggregator(config.model))
    if seed is not None:
        initialize(model, torch.Generator().manual_seed(seed))
    return model
