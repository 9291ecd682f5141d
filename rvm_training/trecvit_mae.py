"""TRecViT as a masked autoencoder of clips: the same patches are hidden in all frames, and all pixels are decoded.

The paper (arXiv 2412.14294) tells of its pretraining: tubes are masked, 90 % of them, and the loss is the square error
of all pixels. Nothing of its decoder is public. Ours is the simplest that can do it: a few ViT blocks over the tokens
of each frame by itself, as what a frame knows of the others is in its features.

Shapes: B batch, T frames, H W frame in pixels, N patches of a frame, V visible ones among them, D width of the encoder,
E width of the decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rvm_core.config import PATCH_SIZE, TRecViTConfig
from rvm_core.decoder import join_patches
from rvm_core.layers import LAYER_NORM_EPS, EncoderBlock, Linear, initialize
from rvm_core.position import sincos_table
from rvm_core.trecvit import TRecViT, TRecViTBlock
from rvm_training.mae_config import TubeDecoderConfig, TubeMAEConfig


class ClipBlock(TRecViTBlock):
    """The block over a whole clip, with nothing before its first frame."""

    def __init__(self, config: TRecViTConfig) -> None:
        super().__init__(config)
        self._window, self._width = config.conv_width - 1, config.recurrent_width

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, T, V+1, D) -> the same. The recurrence is an associative scan."""
        batch, _, tokens, _ = x.shape
        inputs = x.new_zeros(batch, self._window, tokens, self._width)
        hidden = x.new_zeros(batch, tokens, self._width)
        return super().forward(x, inputs, hidden, x.new_zeros(batch))[0]


class TubeDecoder(nn.Module):
    """Features of the visible patches of each frame -> all pixels of the frame."""

    def __init__(self, config: TubeDecoderConfig, encoder_width: int) -> None:
        super().__init__()
        self.embedding = Linear(encoder_width, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, config.width))
        self.blocks = nn.ModuleList(
            EncoderBlock(config.width, config.num_heads, config.mlp_width) for _ in range(config.depth)
        )
        self.output_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.to_pixels = Linear(config.width, PATCH_SIZE * PATCH_SIZE * 3)

    def forward(self, features: Tensor, visible: Tensor, grid: tuple[int, int]) -> Tensor:
        """features (B, T, V+1, D), [CLS] first; visible (B, V) int64 -> (B, T, 3, H, W)."""
        batch, frames = features.shape[:2]
        embedded = self.embedding(features)
        width = embedded.shape[-1]
        index = visible[:, None, :, None].expand(-1, frames, -1, width)
        patches = grid[0] * grid[1]
        tokens = self.mask_token.expand(batch, frames, patches, width).scatter(2, index, embedded[:, :, 1:])
        tokens = tokens + sincos_table(patches, width).to(tokens)
        x = torch.cat([embedded[:, :, :1], tokens], dim=2).flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        pixels = self.to_pixels(self.output_norm(x)[:, 1:])
        return join_patches(pixels.unflatten(0, (batch, frames)), grid)


class TubeMAE(nn.Module):
    """The model that is pretrained. Its encoder has the parameters of a `TRecViT`, by the same names.

    seed: of the random initial weights; None leaves them uninitialised.
    """

    def __init__(self, config: TubeMAEConfig, *, seed: int | None) -> None:
        super().__init__()
        self.config = config
        self.encoder = TRecViT(config.encoder, seed=seed)
        weights = self.encoder.blocks.state_dict()
        self.encoder.blocks = nn.ModuleList(ClipBlock(config.encoder) for _ in range(config.encoder.depth))
        self.encoder.blocks.load_state_dict(weights)
        self.decoder = TubeDecoder(config.decoder, config.encoder.width)
        if seed is not None:
            initialize(self.decoder, torch.Generator().manual_seed(seed))

    def reconstruct(self, frames: Tensor, visible: Tensor) -> Tensor:
        """frames (B, T, 3, H, W) in [0, 1]; visible (B, V) int64, ascending -> all pixels (B, T, 3, H, W)."""
        batch, count = frames.shape[:2]
        tokens = self.encoder.tokenizer(frames.flatten(0, 1)).unflatten(0, (batch, count))
        index = visible[:, None, :, None].expand(-1, count, -1, tokens.shape[-1])
        cls_tokens = self.encoder.tokenizer.cls_token.expand(batch, count, 1, -1)
        x = torch.cat([cls_tokens, tokens.gather(2, index)], dim=2)
        for block in self.encoder.blocks:
            x = block(x)
        grid = (frames.shape[-2] // PATCH_SIZE, frames.shape[-1] // PATCH_SIZE)
        pixels: Tensor = self.decoder(self.encoder.output_norm(x), visible, grid)
        return pixels

    def pretrained(self) -> TRecViT:
        """The encoder as it is used afterwards."""
        encoder = TRecViT(self.config.encoder, seed=None)
        encoder.load_state_dict(self.encoder.state_dict())
        return encoder.eval()
