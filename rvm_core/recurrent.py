"""The recurrent core: a GRU whose candidate state is a transformer attending to the gated old state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rvm_core.config import RVMConfig
from rvm_core.layers import CrossTransformer, Linear

STATE_NORM_EPS = 1e-4


class RecurrentCore(nn.Module):
    """(encoded tokens (B, N+1, D), state (B, N+1, D)) -> new state (B, N+1, D), which is also the feature map.

    Paper, section on the Transformer-GRU core; order and constants as in the released weights' code.
    """

    def __init__(self, config: RVMConfig) -> None:
        super().__init__()
        width = config.width
        self.input_update = Linear(width, width, bias=False)
        self.input_reset = Linear(width, width, bias=False)
        self.state_update = Linear(width, width, bias=False)
        self.state_reset = Linear(width, width, bias=False)
        self.state_norm = nn.LayerNorm(width, eps=STATE_NORM_EPS, bias=False)
        self.transformer = CrossTransformer(width, config.core_depth, config.core_heads, config.core_mlp_width)

    def forward(self, tokens: Tensor, state: Tensor) -> Tensor:
        update = torch.sigmoid(self.input_update(tokens) + self.state_update(state))
        reset = torch.sigmoid(self.input_reset(tokens) + self.state_reset(state))
        candidate = self.transformer(tokens, reset * self.state_norm(state))
        return (1 - update) * state + update * candidate

    def unroll(self, tokens: Tensor) -> Tensor:
        """Runs over time from the state of zeros: tokens (B, T, N+1, D) -> the features of each frame, alike."""
        state = torch.zeros_like(tokens[:, 0])
        features = []
        for frame in tokens.unbind(1):
            state = self(frame, state)
            features.append(state)
        return torch.stack(features, dim=1)
