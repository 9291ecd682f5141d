"""4DS as a masked autoencoder of clips: its last blocks decode.

As in the paper (arXiv 2412.15212), 95 % of the tubelets are hidden at random and there is no decoder beside the model:
the first blocks see the visible tubelets alone, the last ones mask tokens in the places of the others too. How many
blocks these are, and the norm before the pixels, are ours.

Shapes: B batch, T frames, H W frame in pixels, t = T/2, N patches of a frame, V visible tubelets among t*N, D width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from rvm_core.config import PATCH_SIZE, TUBE_FRAMES, FourDSConfig
from rvm_core.decoder import join_patches
from rvm_core.fourds import FourDS
from rvm_core.layers import LAYER_NORM_EPS, EncoderBlock, Linear, initialize
from rvm_training.mae_config import TubeletMAEConfig


class TubeletDecoder(nn.Module):
    """The last blocks of the model, and what makes pixels of their outputs."""

    def __init__(self, config: FourDSConfig, depth: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, config.width))
        self.blocks = nn.ModuleList(EncoderBlock(config.width, config.heads, config.mlp_width) for _ in range(depth))
        self.output_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.to_pixels = Linear(config.width, TUBE_FRAMES * PATCH_SIZE * PATCH_SIZE * 3)

    def forward(self, encoded: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """encoded (B, V, D); visible (B, V) int64; positions (t*N, D) -> pixels of all tubelets (B, t*N, 2*16*16*3)."""
        index = visible.unsqueeze(-1).expand(-1, -1, encoded.shape[-1])
        x = (self.mask_token + positions).expand(encoded.shape[0], -1, -1).scatter(1, index, encoded)
        for block in self.blocks:
            x = block(x)
        pixels: Tensor = self.to_pixels(self.output_norm(x))
        return pixels


class TubeletMAE(nn.Module):
    """The model that is pretrained. Its encoder is a `FourDS` of the first blocks.

    seed: of the random initial weights; None leaves them uninitialised.
    """

    def __init__(self, config: TubeletMAEConfig, *, seed: int | None) -> None:
        super().__init__()
        self.config = config
        self._first = config.encoder.depth - config.decoder_blocks
        self.encoder = FourDS(replace(config.encoder, depth=self._first), seed=None)
        self.decoder = TubeletDecoder(config.encoder, config.decoder_blocks)
        if seed is not None:
            initialize(self.decoder, torch.Generator().manual_seed(seed))
            self._take(FourDS(config.encoder, seed=seed))

    def reconstruct(self, frames: Tensor, visible: Tensor) -> Tensor:
        """frames (B, T, 3, H, W) in [0, 1]; visible (B, V) int64, ascending -> all pixels (B, T, 3, H, W)."""
        batch, count, _, height, width = frames.shape
        grid = (height // PATCH_SIZE, width // PATCH_SIZE)
        tokens = self.encoder.tokenize(frames)
        shown = tokens.gather(1, visible.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        pixels = self.decoder(self.encoder.encode(shown), visible, self.encoder.positions(*grid))
        # Each tubelet lies as (frame, row, column, colour) in its token.
        pixels = pixels.reshape(batch, count // TUBE_FRAMES, grid[0] * grid[1], TUBE_FRAMES, -1)
        return join_patches(pixels.transpose(2, 3).flatten(1, 2), grid)

    def pretrained(self) -> FourDS:
        """The whole model as it is used afterwards."""
        model = FourDS(self.config.encoder, seed=None)
        weights = self.encoder.state_dict()
        weights |= {self._moved(name): value for name, value in self.decoder.blocks.state_dict().items()}
        model.load_state_dict(weights)
        return model.eval()

    def _moved(self, name: str) -> str:
        """The name in the whole model of a parameter of the last blocks."""
        number, _, rest = name.partition(".")
        return f"blocks.{self._first + int(number)}.{rest}"

    def _take(self, model: FourDS) -> None:
        weights = model.state_dict()
        self.encoder.load_state_dict({name: weights[name] for name in self.encoder.state_dict()})
        last = self.decoder.blocks
        last.load_state_dict({name: weights[self._moved(name)] for name in last.state_dict()})
