"""A recurrent readout of points or boxes: each track carries a state of its own from frame to frame, at constant cost.

Shapes: B batch, h rows and w columns of the grid, N = h * w, D width of the features, Q tracks, E channels, C
coordinates of a track (2 for a point, 4 for a box). Tokens are float (B, N+1, D), [CLS] first. Positions are shares of
the image, x right and y down; a box is x_min, y_min, x_max, y_max.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvm_core.heads import PointOutput
from rvm_core.layers import LAYER_NORM_EPS, MLP, Attention, Linear
from rvm_core.readout import FourierQueries, fourier_features, initialize_readout

TrackKind: TypeAlias = Literal["points", "boxes"]

_FORGET = -2.0
"""First bias of the gate: a new readout changes its state slowly."""
_SHARPNESS = 20.0
"""First factor of similarities, which are cosines."""

_NEARNESS = math.log(10.0)
"""First bias of the logarithm of the weight of squared distances: at a quarter of the image it outweighs little."""

_MAX_LOG_SCALE = 2.0
"""Of the sides of a box against those of its query."""


@dataclass(frozen=True, kw_only=True)
class RecurrentReadoutConfig:
    """Sizes of a `RecurrentReadout`. Raises `ValueError` at construction for sizes that do not fit together."""

    features: int
    """Width D of the features."""
    kind: TrackKind = "points"
    """What is followed."""
    channels: int = 256
    """Channels E of a track's state; `num_heads` must divide it."""
    num_heads: int = 8
    """Heads of the attention to the newest frame."""
    fourier_bases: int = 8
    """Octaves of the Fourier features of a position."""
    mlp_ratio: int = 4
    """Hidden channels of the MLP over `channels`."""

    def __post_init__(self) -> None:
        if self.kind not in ("points", "boxes"):
            raise ValueError(f"RecurrentReadoutConfig.kind must be points or boxes, got {self.kind!r}")
        for name, value in vars(self).items():
            if isinstance(value, int) and value <= 0:
                raise ValueError(f"RecurrentReadoutConfig.{name} must be positive, got {value}")
        if self.channels % self.num_heads:
            raise ValueError(f"num_heads must divide channels, got {self.num_heads} and {self.channels}")

    @property
    def coordinates(self) -> int:
        """C: 2 for points, 4 for boxes."""
        return 2 if self.kind == "points" else 4


class TrackState(NamedTuple):
    """What a `RecurrentReadout` carries of each track."""

    token: Tensor
    """(B, Q, E): what the track is like now."""
    first: Tensor
    """(B, Q, E): what it was like where it began, which does not change."""
    begin: Tensor
    """(B, Q, C): where it began, which does not change."""
    position: Tensor
    """(B, Q, C): where it was last."""


class FrameContext(NamedTuple):
    """What a `RecurrentReadout` reads of a frame; K heads of C channels."""

    keys: Tensor
    """(B, K, N+1, C)."""
    values: Tensor
    """(B, K, N+1, C)."""
    cells: Tensor
    """(B, N, E), each of length 1: what tracks are compared with."""


class RecurrentReadout(nn.Module):
    """Follows points or boxes through the features of one frame after another.

    A track begins as the features under its query. In each frame its token attends to all tokens of the frame; a gate
    mixes what it finds with what it knows; the position is the mean of the cells' centres, weighted by how like the
    token they are and how near to where the track was last (how much that matters, the token says), plus an offset of
    one cell at the most; the size of a box is that of its query times a factor.

    Args:
        config: the sizes.
        seed: of the random initial weights; None leaves them uninitialised, for a loader that fills them.
    """

    def __init__(self, config: RecurrentReadoutConfig, *, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        features, channels = config.features, config.channels
        self.input_norm = nn.LayerNorm(features, eps=LAYER_NORM_EPS)
        self.input_embedding = Linear(features, channels)
        self.cell_embedding = Linear(4 * config.fourier_bases, channels)
        self.position_embedding = FourierQueries(
            config.coordinates, bases=config.fourier_bases, hidden=channels, width=channels
        )
        self.query_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.attention = Attention(channels, config.num_heads)
        self.mlp_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.mlp = MLP(channels, channels * config.mlp_ratio)
        self.candidate_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.update = Linear(2 * channels, channels)
        self.match = Linear(2 * channels, channels)
        self.cell_match = Linear(features, channels)
        self.sharpness = nn.Parameter(torch.empty(1))
        self.near = Linear(channels, 1)
        self.offset = Linear(channels, config.coordinates)
        self.seen = Linear(channels + 1, 2)
        if seed is not None:
            initialize_readout(self, seed)
            self._start_plainly()

    @torch.no_grad()
    def _start_plainly(self) -> None:
        """Before training a track is in the cells that are most like what it was like where it began."""
        channels = self.config.channels
        self.match.weight.copy_(torch.eye(channels, 2 * channels).roll(channels, dims=1))
        self.cell_match.weight.copy_(self.input_embedding.weight)
        self.sharpness.fill_(_SHARPNESS)
        self.offset.weight.zero_()
        self.near.weight.zero_()
        for layer, value in ((self.near, _NEARNESS), (self.update, _FORGET)):
            if layer.bias is not None:
                layer.bias.fill_(value)

    def start(self, tokens: Tensor, queries: Tensor, grid: tuple[int, int]) -> TrackState:
        """Tracks that begin in this frame: tokens (B, N+1, D), queries (B, Q, C), grid (h, w) -> `TrackState`."""
        shares = cell_shares(queries, grid)
        token = shares @ self.input_embedding(self.input_norm(tokens[:, 1:]))
        return TrackState(token, token, queries, queries)

    def forward(self, tokens: Tensor, state: TrackState, grid: tuple[int, int]) -> tuple[PointOutput, TrackState]:
        """The next frame: tokens (B, N+1, D), grid (h, w) -> where the tracks are, (B, Q, ...), and their new state.

        The output of boxes is a `PointOutput` with four coordinates.
        """
        return self.advance(self.look(tokens, grid), state, grid)

    def look(self, tokens: Tensor, grid: tuple[int, int]) -> FrameContext:
        """What is read of frames, which no track changes: tokens (B, N+1, D) -> `FrameContext`.

        Frames of a whole clip may be looked at together, as a larger batch.
        """
        normed, centers = self.input_norm(tokens), cell_centers(grid, tokens)
        context = self.input_embedding(normed)
        cells = self.cell_embedding(fourier_features(centers, self.config.fourier_bases))
        # [CLS] has no place.
        context = torch.cat((context[:, :1], context[:, 1:] + cells), dim=1)
        return FrameContext(
            self.attention.key(context),
            self.attention.value(context),
            F.normalize(self.cell_match(normed[:, 1:]), dim=-1),
        )

    def advance(self, frame: FrameContext, state: TrackState, grid: tuple[int, int]) -> tuple[PointOutput, TrackState]:
        """`forward` of a frame that was looked at."""
        token = self._update(frame, state)
        likeness = self._compare(frame.cells, token, state)
        centers = cell_centers(grid, token)
        far = torch.exp(self.near(token)) * self._square_distances(centers, state)
        mean = torch.softmax(self.sharpness * likeness - far, dim=-1) @ centers
        position = self._place(mean, torch.tanh(self.offset(token)), grid, state)
        seen = self.seen(torch.cat((token, likeness.amax(dim=-1, keepdim=True)), dim=-1))
        return PointOutput(position, seen[..., :1], seen[..., 1:]), state._replace(token=token, position=position)

    def _update(self, frame: FrameContext, state: TrackState) -> Tensor:
        """The new tokens (B, Q, E)."""
        # Through the high octaves of the position, gradients of earlier frames would explode.
        query = self.query_norm(state.token + self.position_embedding(state.position.detach()))
        heads = F.scaled_dot_product_attention(self.attention.query(query), frame.keys, frame.values)
        found = state.token + self.attention.out(heads)
        candidate = self.candidate_norm(found + self.mlp(self.mlp_norm(found)))
        gate = torch.sigmoid(self.update(torch.cat((state.token, candidate), dim=-1)))
        return (1 - gate) * state.token + gate * candidate

    def _compare(self, cells: Tensor, token: Tensor, state: TrackState) -> Tensor:
        """How like each track each cell is, in [-1, 1]: (B, Q, N)."""
        wanted = F.normalize(self.match(torch.cat((token, state.first), dim=-1)), dim=-1)
        return wanted @ cells.transpose(1, 2)

    def _square_distances(self, centers: Tensor, state: TrackState) -> Tensor:
        """(B, Q, N): of each cell from the middle of where each track was last, shares of the image."""
        last = state.position.detach()
        middle = (last[..., :2] + last[..., -2:]) / 2
        return (centers - middle.unsqueeze(-2)).square().sum(dim=-1)

    def _place(self, mean: Tensor, offset: Tensor, grid: tuple[int, int], state: TrackState) -> Tensor:
        """Positions (B, Q, C) from the mean of the cells (B, Q, 2) and corrections in [-1, 1] (B, Q, C)."""
        rows, columns = grid
        center = mean + offset[..., :2] / mean.new_tensor([columns, rows])
        if self.config.kind == "points":
            return center
        half = (state.begin[..., 2:] - state.begin[..., :2]) / 2 * torch.exp(_MAX_LOG_SCALE * offset[..., 2:])
        return torch.cat((center - half, center + half), dim=-1)


def recurrent_config(sizes: Mapping[str, int]) -> RecurrentReadoutConfig:
    """The configuration of inferred sizes (see `rvm_core.readout_names`)."""
    return RecurrentReadoutConfig(
        features=sizes["features"],
        kind="points" if sizes["coordinates"] == 2 else "boxes",
        channels=sizes["channels"],
        num_heads=sizes["num_heads"],
        fourier_bases=sizes["cell_inputs"] // 4,
        mlp_ratio=sizes["mlp_width"] // sizes["channels"],
    )


def cell_centers(grid: tuple[int, int], like: Tensor) -> Tensor:
    """(N, 2): x and y of each cell's centre, in shares of the image; device and dtype of `like`."""
    rows, columns = grid
    y = (torch.arange(rows, device=like.device, dtype=like.dtype) + 0.5) / rows
    x = (torch.arange(columns, device=like.device, dtype=like.dtype) + 0.5) / columns
    return torch.stack((x.expand(rows, -1), y.unsqueeze(-1).expand(-1, columns)), dim=-1).flatten(0, 1)


def cell_shares(queries: Tensor, grid: tuple[int, int]) -> Tensor:
    """How much of each query lies in each cell: (B, Q, C) -> (B, Q, N), rows with sum 1.

    Points, and boxes narrower than a cell, are widened to the size of a cell: for a point these are the weights of
    bilinear interpolation.
    """
    rows, columns = grid
    low, high = queries[..., :2], queries[..., -2:]
    along_x = _overlaps(low[..., 0] * columns, high[..., 0] * columns, columns)
    along_y = _overlaps(low[..., 1] * rows, high[..., 1] * rows, rows)
    shares = (along_y.unsqueeze(-1) * along_x.unsqueeze(-2)).flatten(-2)
    return shares / shares.sum(dim=-1, keepdim=True)


def _overlaps(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """Length of [low, high] (...), in cells, in each cell: (..., cells). The interval is held on the grid."""
    center = ((low + high) / 2).clamp(0.5, cells - 0.5).unsqueeze(-1)
    half = ((high - low) / 2).clamp(min=0.5).unsqueeze(-1)
    edges = torch.arange(cells, device=low.device, dtype=low.dtype)
    return (torch.minimum(center + half, edges + 1) - torch.maximum(center - half, edges)).clamp(min=0)
