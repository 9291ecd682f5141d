"""The encoder of one frame: a plain ViT.

Shapes: B batch, H W image, h = H/16, w = W/16, N = h*w patch tokens, D width; tokens carry [CLS] first, so N+1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rvm_core.config import PATCH_SIZE, RVMConfig, check_image_size
from rvm_core.layers import LAYER_NORM_EPS, EncoderBlock
from rvm_core.position import BASE_GRID, resize_grid, sincos_table


class PatchEmbedding(nn.Module):
    """(B, 3, H, W) -> (B, D, h, w). Parameters start uninitialised; see `layers.initialize`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 3, PATCH_SIZE, PATCH_SIZE))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, frames: Tensor) -> Tensor:
        return nn.functional.conv2d(frames, self.weight, self.bias, stride=PATCH_SIZE)


class Encoder(nn.Module):
    """ViT with fixed positions: `tokenize`, then `encode`."""

    position_table: Tensor

    def __init__(self, config: RVMConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config.width)
        self.cls_token = nn.Parameter(torch.empty(1, config.width))
        self.blocks = nn.ModuleList(
            EncoderBlock(config.width, config.encoder_heads, config.encoder_mlp_width)
            for _ in range(config.encoder_depth)
        )
        self.output_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        table = sincos_table(BASE_GRID**2, config.width).unflatten(0, (BASE_GRID, BASE_GRID))
        self.register_buffer("position_table", table, persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) float in [0, 1] -> (B, N+1, D)."""
        return self.encode(self.tokenize(frames))

    def tokenize(self, frames: Tensor) -> Tensor:
        """Patch tokens with their positions, without [CLS]: (B, 3, H, W) -> (B, N, D).

        Raises `ValueError` unless H and W are multiples of 16.
        """
        height, width = frames.shape[-2:]
        check_image_size(height, width)
        tokens = self.patch_embedding(frames).flatten(2).transpose(1, 2)
        return tokens + resize_grid(self.position_table, height // PATCH_SIZE, width // PATCH_SIZE).flatten(0, 1)

    def encode(self, tokens: Tensor) -> Tensor:
        """Puts [CLS] in front of any subset of a frame's patch tokens and encodes them: (B, n, D) -> (B, n+1, D)."""
        x = torch.cat([self.cls_token.expand(tokens.shape[0], 1, -1), tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.output_norm(x)
