"""The decoder: reconstructs masked target frames from source features. Training and visual checks only.

Shapes: B batch, T source frames, K target frames, N patch tokens, V visible ones among them, D width of the encoder,
E width of the decoder, G number of time gaps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvm_core.config import PATCH_SIZE, DecoderConfig
from rvm_core.layers import CrossTransformer, Linear
from rvm_core.position import sincos_table


class Decoder(nn.Module):
    """Source features and the encoded visible tokens of each target -> pixels of the whole target."""

    def __init__(self, config: DecoderConfig, encoder_width: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = Linear(encoder_width, config.width)
        self.time_gap_embedding = Linear(config.max_time_gap, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, config.width))
        self.transformer = CrossTransformer(config.width, config.depth, config.num_heads, config.mlp_width)
        self.to_pixels = Linear(config.width, PATCH_SIZE * PATCH_SIZE * 3)

    def forward(
        self, features: Tensor, targets: Tensor, visible: Tensor, time_gaps: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """Reconstructs targets.

        features (B, T, N+1, D); targets (B, K, V+1, D), each [CLS] and its visible tokens, encoded; visible (B, K, V)
        int64, their places in the grid; time_gaps (B, K) int64 in frames; grid (rows, cols) of a target.
        Returns pixels (B, K, 3, H, W) in the scale of the input, not clipped.
        """
        batch, num_targets = targets.shape[:2]
        rows, cols = grid
        width = self.config.width
        embedded = self.embedding(targets)
        index = visible.unsqueeze(-1).expand(-1, -1, -1, width)
        tokens = self.mask_token.expand(batch, num_targets, rows * cols, width).scatter(2, index, embedded[:, :, 1:])
        gaps = F.one_hot(time_gaps, self.config.max_time_gap).to(tokens.dtype)
        positions = sincos_table(rows * cols, width).to(tokens)
        tokens = tokens + self.time_gap_embedding(gaps).unsqueeze(2) + positions
        x = torch.cat([embedded[:, :, :1], tokens], dim=2).flatten(0, 1)
        context = self.embedding(features.flatten(1, 2))  # shared by all targets of an example
        pixels = self.to_pixels(self.transformer(x, context)[:, 1:])
        return join_patches(pixels.unflatten(0, (batch, num_targets)), grid)


def join_patches(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pixels of the patches of pictures (..., rows * cols, 16 * 16 * 3) -> the pictures (..., 3, H, W).

    Each patch lies as (row, column, colour) in its token.
    """
    rows, cols = grid
    parts = patches.reshape(-1, rows, cols, PATCH_SIZE, PATCH_SIZE, 3).permute(0, 5, 1, 3, 2, 4)
    return parts.reshape(*patches.shape[:-2], 3, rows * PATCH_SIZE, cols * PATCH_SIZE)


def visible_patches(mask: Tensor) -> Tensor:
    """Places of the visible patches: mask bool (..., rows, cols), True where hidden -> int64 (..., V), ascending.

    Raises `ValueError` if the masks do not all hide the same number of patches, or hide none or all.
    """
    hidden = mask.bool().flatten(-2)
    counts = (~hidden).sum(-1)
    count = int(counts.flatten()[0])
    if not bool((counts == count).all()) or not 0 < count < hidden.shape[-1]:
        raise ValueError(
            f"every mask must hide the same number of patches, and not none or all; visible patches: {counts.tolist()}"
        )
    return torch.nonzero(~hidden)[:, -1].reshape(*hidden.shape[:-1], count)
