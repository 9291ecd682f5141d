"""Models of the frame memory task: a small recurrent encoder, and a linear layer that paints the frame it remembers.

Shapes: B batch, T frames, N patches of a frame, H W frame in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rvm_core.config import PATCH_SIZE, RVMConfig, TRecViTConfig
from rvm_core.decoder import join_patches
from rvm_core.layers import Linear, initialize
from rvm_core.model import RVM
from rvm_core.trecvit import TRecViT

MODELS = ("rvm", "trecvit")
"""Recurrent cores that are compared."""


def rvm_config(width: int) -> RVMConfig:
    """A small RVM; its blocks have nearly as many weights as those of `trecvit_config`."""
    return RVMConfig(
        width=width,
        encoder_depth=2,
        encoder_heads=4,
        encoder_mlp_width=4 * width,
        core_depth=2,
        core_heads=4,
        core_mlp_width=4 * width,
    )


def trecvit_config(width: int, image_size: int) -> TRecViTConfig:
    """A small TRecViT of the proportions of the released one: a recurrence of twice the width."""
    return TRecViTConfig(
        width=width,
        depth=3,
        heads=4,
        mlp_width=4 * width,
        recurrent_width=2 * width,
        recurrent_heads=4,
        position_grid=image_size // PATCH_SIZE,
    )


class Rememberer(nn.Module):
    """Watches a clip and paints one frame from its newest features: what it has of the past is in its state alone."""

    def __init__(self, name: str, *, width: int, image_size: int, seed: int) -> None:
        """Raises `ValueError` for a name that is not in `MODELS`."""
        super().__init__()
        self.encoder: RVM | TRecViT
        if name == "rvm":
            self.encoder = RVM(rvm_config(width), seed=seed)
        elif name == "trecvit":
            self.encoder = TRecViT(trecvit_config(width, image_size), seed=seed)
        else:
            raise ValueError(f"unknown model {name!r}; known models: {', '.join(MODELS)}")
        self.readout = nn.Sequential(nn.LayerNorm(width), Linear(width, PATCH_SIZE * PATCH_SIZE * 3))
        initialize(self.readout, torch.Generator().manual_seed(seed))

    def forward(self, frames: Tensor, after: tuple[int, ...]) -> Tensor:
        """frames (B, T, 3, H, W) in [0, 1]; after: numbers of frames, each 1 to T, that have been seen.

        Returns what is remembered after each of these numbers: (B, len(after), 3, H, W), not clipped.
        """
        height, width = frames.shape[-2:]
        seen = [count - 1 for count in after]
        pixels = self.readout(self._features(frames)[:, seen, 1:])
        return join_patches(pixels, (height // PATCH_SIZE, width // PATCH_SIZE))

    def _features(self, frames: Tensor) -> Tensor:
        """Of every frame: (B, T, N+1, D)."""
        if isinstance(self.encoder, TRecViT):
            return self.encoder.encode_clip(frames)[0]
        tokens = self.encoder.encoder(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        features: Tensor = self.encoder.core.unroll(tokens)
        return features
