"""4DS (arXiv 2412.15212): a ViT over the tubes of a clip, all attending to all.

Shapes: B batch, T frames of a window, H W image in pixels, t = T/2, h = H/16, w = W/16, N = h*w patches of a frame, D
width. There is no [CLS] and no norm after the last block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvm_core.config import PATCH_SIZE, TUBE_FRAMES, FourDSConfig, check_image_size
from rvm_core.layers import EncoderBlock, initialize
from rvm_core.position import resize_axis

READOUT_DEPTH = 0.95
"""How deep in the list of the layers' features readouts look."""


class TubeEmbedding(nn.Module):
    """(B, 3, T, H, W) -> (B, D, t, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 3, TUBE_FRAMES, PATCH_SIZE, PATCH_SIZE))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, clips: Tensor) -> Tensor:
        return F.conv3d(clips, self.weight, self.bias, stride=(TUBE_FRAMES, PATCH_SIZE, PATCH_SIZE))


class FourDS(nn.Module):
    """The clip encoder: a window of frames at once, in no order.

    Args:
        config: the sizes; `config.frames` is the length of a window.
        seed: of the random initial weights; None leaves them uninitialised, for a loader that fills them.
    """

    def __init__(self, config: FourDSConfig, *, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = TubeEmbedding(config.width)
        self.position_table = nn.Parameter(torch.empty(*config.position_grid, config.width))
        self.blocks = nn.ModuleList(
            EncoderBlock(config.width, config.heads, config.mlp_width) for _ in range(config.depth)
        )
        if seed is not None:
            initialize(self, torch.Generator().manual_seed(seed))
            with torch.no_grad():
                self.position_table.normal_(std=0.02, generator=torch.Generator().manual_seed(seed))

    def forward(self, clips: Tensor) -> Tensor:
        """What readouts look at: the features of the layer at `READOUT_DEPTH`, one map a frame.

        clips (B, T, 3, H, W) float RGB in [0, 1], T = `config.frames`, H and W multiples of 16. Returns (B, T, N, D).
        Raises `ValueError` for another number of frames or size.
        """
        blocks = int((self.config.depth + 1) * READOUT_DEPTH) - 2
        tubes = self.encode(self.tokenize(clips), blocks=max(blocks, 0))
        return resize_axis(tubes.unflatten(1, (self.config.position_grid[0], -1)), 1, self.config.frames)

    def with_frames(self, frames: int) -> FourDS:
        """The same weights, shared, for windows of another even length: the positions are resized along time."""
        if frames < TUBE_FRAMES or frames % TUBE_FRAMES:
            raise ValueError(f"expected windows of an even number of frames, got {frames}")
        tubes = frames // TUBE_FRAMES
        with torch.device("meta"):
            model = FourDS(replace(self.config, position_grid=(tubes, *self.config.position_grid[1:])), seed=None)
        model.patch_embedding, model.blocks = self.patch_embedding, self.blocks
        model.position_table = nn.Parameter(resize_axis(self.position_table.detach(), 0, tubes))
        return model.eval()

    def tokenize(self, clips: Tensor) -> Tensor:
        """Tokens of tubes with their positions: (B, T, 3, H, W) -> (B, t*N, D), in the order time, row, column."""
        frames, _, height, width = clips.shape[1:]
        check_image_size(height, width)
        if frames != self.config.frames:
            raise ValueError(f"expected clips of {self.config.frames} frames, got {frames}; cut them with windows()")
        tubes = self.patch_embedding(clips.transpose(1, 2)).movedim(1, -1)
        return tubes.flatten(1, 3) + self.positions(height // PATCH_SIZE, width // PATCH_SIZE)

    def positions(self, rows: int, cols: int) -> Tensor:
        """Of all tubes of a clip (t * rows * cols, D), resized where that is not the learned grid."""
        return resize_axis(resize_axis(self.position_table, 1, rows), 2, cols).flatten(0, 2)

    def encode(self, tokens: Tensor, *, blocks: int | None = None) -> Tensor:
        """Any subset of a clip's tokens through all blocks, or the first so many: (B, n, D) -> (B, n, D)."""
        for block in list(self.blocks)[:blocks]:
            tokens = block(tokens)
        return tokens


def windows(frames: Tensor, length: int) -> Iterator[tuple[Tensor, int]]:
    """Cuts a video (T, ...) in clips of this length, the last one filled with zeros; with how many frames are real."""
    for clip in frames.split(length):
        missing = length - clip.shape[0]
        filled = torch.cat([clip, clip.new_zeros(missing, *clip.shape[1:])]) if missing else clip
        yield filled, clip.shape[0]
