"""The attentive readout that all heads are made of, and the embedding of query positions.

Shapes: B batch, T frames, N tokens of a frame, D width of the features, Q queries, W width of a given query, E
channels, K heads, C channels of a head (E = K * C), O numbers that come out for each query.

Numerics and parameters are those of the `AttentionReadout` in google-deepmind/representations4d (arXiv 2412.15212).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvm_core.layers import LAYER_NORM_EPS, MLP, Linear, SplitHeads
from rvm_core.readout_names import LEARNED_OR_GIVEN, parameters_from_release

PATCH_SIZE = (2, 8, 8)
"""Frames, rows and columns of the video that one query of a dense readout predicts."""

_EMBEDDING_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class ReadoutConfig:
    """Sizes of an `AttentionReadout`. Raises `ValueError` at construction for sizes that do not fit together."""

    features: int
    """Width D of the features."""
    frames: int
    """Frames T that are read at once."""
    channels: int
    """Channels E of queries, keys and values; `num_heads` must divide it."""
    num_heads: int
    """Attention heads K."""
    outputs: int
    """Numbers O for each query."""
    num_queries: int | None = None
    """Learned queries; None where queries are given."""
    query_width: int | None = None
    """Width W of given queries; None where queries are learned."""
    mlp_ratio: int = 4
    """Hidden channels of the MLP over `channels`."""
    video_size: tuple[int, int, int] | None = None
    """(frames, height, width) of a dense output, which the patches of all queries are put together to; else None."""
    patch_size: tuple[int, int, int] = PATCH_SIZE
    """(frames, height, width) of the patch of one query, where there is a `video_size`."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and value <= 0:
                raise ValueError(f"ReadoutConfig.{name} must be positive, got {value}")
        if self.channels % self.num_heads:
            raise ValueError(f"num_heads must divide channels, got {self.num_heads} and {self.channels}")
        if (self.num_queries is None) == (self.query_width is None):
            raise ValueError("expected either num_queries (learned queries) or query_width (given ones)")
        if self.video_size:
            self._check_video(self.video_size)

    def _check_video(self, size: tuple[int, int, int]) -> None:
        if any(side <= 0 or side % patch for side, patch in zip(size, self.patch_size, strict=True)):
            raise ValueError(f"expected a video_size of whole patches {self.patch_size}, got {size}")
        patches = math.prod(size) // math.prod(self.patch_size)
        if self.num_queries != patches:
            raise ValueError(f"a video of {size} needs {patches} learned queries, got {self.num_queries}")
        if self.outputs % math.prod(self.patch_size):
            raise ValueError(
                f"expected outputs of {math.prod(self.patch_size)} pixels a patch or a multiple, got {self.outputs}"
            )


class KeyValues(NamedTuple):
    """What the attention needs of frames whose places in a window are still open; see `AttentionReadout.project`."""

    keys: Tensor
    """(B, K, T*N, C)."""
    values: Tensor
    """(B, K, T*N, C)."""


class AttentionReadout(nn.Module):
    """Cross-attention from queries, learned or given, to the features of T frames, then a residual MLP.

    LayerNorm of the features, plus a learned embedding of the frame's place; one attention of the queries over all
    T * N tokens; the query is added back; an MLP on the LayerNorm, added; a linear output.

    Args:
        config: the sizes.
        seed: of the random initial weights; None leaves them uninitialised, for a loader that fills them.
    """

    def __init__(self, config: ReadoutConfig, *, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        channels, heads = config.channels, config.num_heads
        self.input_norm = nn.LayerNorm(config.features, eps=LAYER_NORM_EPS)
        self.temporal_posenc = nn.Parameter(torch.empty(1, config.frames, 1, config.features))
        if config.num_queries is not None:
            self.query = nn.Parameter(torch.empty(config.num_queries, heads, channels // heads))
        if config.query_width is not None:
            self.query_embedding = Linear(config.query_width, channels)
        self.key_embedding = _SplitFeatures(config.features, channels, heads)
        self.value_embedding = _SplitFeatures(config.features, channels, heads)
        self.attention_output = Linear(channels, channels)
        self.mlp_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.mlp = MLP(channels, channels * config.mlp_ratio)
        self.output = Linear(channels, config.outputs)
        if seed is not None:
            initialize_readout(self, seed)

    @classmethod
    def from_release(
        cls,
        params: Mapping[str, np.ndarray],
        *,
        video_size: tuple[int, int, int] | None = None,
        patch_size: tuple[int, int, int] = PATCH_SIZE,
    ) -> AttentionReadout:
        """The readout of the release's parameters, by their flat names ("key_embedding/kernel", "Dense_0/bias", ...).

        Every size is inferred. `video_size` (T, H, W) and `patch_size` make the output dense, as in `ReadoutConfig`.
        Raises `CheckpointError` with everything that is wrong with the parameters, `ValueError` for a video that does
        not fit them. The readout is float32 on the CPU, in eval mode.
        """
        _, sizes, state = parameters_from_release(params, LEARNED_OR_GIVEN)
        readout = cls(readout_config(sizes, video_size=video_size, patch_size=patch_size), seed=None)
        readout.load_state_dict(state)
        return readout.eval()

    def forward(self, features: Tensor, queries: Tensor | None = None) -> Tensor:
        """Reads T frames at once.

        features (B, T, N, D) float; queries (B, Q, W) float where they are given, None where they are learned.
        Returns float (B, Q, O); (B, O) for one learned query; (B, T, H, W, O / pixels of a patch) for a dense readout.
        Raises `ValueError` for another number of frames than `config.frames`, and for queries where they are learned
        or none where they are given.
        """
        if features.shape[1] != self.config.frames:
            raise ValueError(f"expected features of {self.config.frames} frames, got {features.shape[1]}")
        tokens = (self.input_norm(features) + self.temporal_posenc).flatten(1, 2)
        embedded = self._learned(features.shape[0]) if queries is None else self.embed(queries)
        return self._shape(self.attend(embedded, self.key_embedding(tokens), self.value_embedding(tokens)))

    def embed(self, queries: Tensor) -> Tensor:
        """Given queries (B, Q, W) to (B, Q, E)."""
        if self.config.query_width is None:
            raise ValueError("the queries of this readout are learned: call it with features alone")
        embedded: Tensor = self.query_embedding(queries)
        return embedded

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Embedded queries (B, Q, E), keys and values (B, K, M, C) of the tokens of a window -> (B, Q, O)."""
        heads = queries.unflatten(-1, (self.config.num_heads, -1)).transpose(1, 2).to(keys.dtype)
        found = F.scaled_dot_product_attention(heads, keys, values).transpose(1, 2).flatten(2)
        token = queries + self.attention_output(found)
        output: Tensor = self.output(token + self.mlp(self.mlp_norm(token)))
        return output

    def project(self, features: Tensor) -> KeyValues:
        """Keys and values of one frame (B, N, D), without its place in a window; `place` adds that.

        Both are linear in the features, so a frame is projected once, however many windows it is seen in.
        """
        tokens = self.input_norm(features)
        return KeyValues(self.key_embedding(tokens), self.value_embedding(tokens))

    def place(self, frames: list[KeyValues]) -> KeyValues:
        """Keys and values (B, K, T*N, C) of a window of T projected frames: what `forward` attends to."""
        if len(frames) != self.config.frames:
            raise ValueError(f"expected a window of {self.config.frames} frames, got {len(frames)}")
        places = self.temporal_posenc[0, :, 0]
        return KeyValues(
            self._add_places([frame.keys for frame in frames], self.key_embedding, places),
            self._add_places([frame.values for frame in frames], self.value_embedding, places),
        )

    @staticmethod
    def _add_places(frames: list[Tensor], projection: SplitHeads, places: Tensor) -> Tensor:
        # The bias is already in the frames.
        added = (projection(places) - projection.bias.unsqueeze(1)).unsqueeze(2)
        return (torch.stack(frames, dim=2) + added).flatten(2, 3)

    def _learned(self, batch: int) -> Tensor:
        if self.config.num_queries is None:
            raise ValueError(f"this readout needs queries (batch, queries, {self.config.query_width})")
        return self.query.flatten(1).expand(batch, -1, -1)

    def _shape(self, output: Tensor) -> Tensor:
        config = self.config
        if config.video_size:
            return assemble_patches(output, config.video_size, config.patch_size)
        return output.squeeze(1) if config.num_queries == 1 else output


class FourierQueries(nn.Module):
    """Positions (B, Q, coordinates) in [0, 1] -> queries (B, Q, width): Fourier features, then an MLP."""

    def __init__(self, coordinates: int, *, bases: int, hidden: int, width: int) -> None:
        super().__init__()
        self.bases = bases
        self.dense_in = Linear(2 * bases * coordinates, hidden)
        self.dense_out = Linear(hidden, width)

    def forward(self, positions: Tensor) -> Tensor:
        hidden = F.gelu(self.dense_in(fourier_features(positions, self.bases)), approximate="tanh")
        embedded: Tensor = self.dense_out(hidden)
        return embedded


def fourier_features(positions: Tensor, bases: int) -> Tensor:
    """(..., c) -> (..., 2 * bases * c): sines of positions * pi * 2^i, all c for one i together, then their cosines.

    The cosine is taken as the sine a quarter turn on, rounded to float32 as in the release: at the highest of 16 bases
    that rounding is far more than the last digit.
    """
    octaves = 2.0 ** torch.arange(bases, device=positions.device, dtype=positions.dtype)
    angles = ((positions * math.pi).unsqueeze(-2) * octaves.unsqueeze(-1)).flatten(-2)
    return torch.sin(torch.cat((angles, angles + 0.5 * math.pi), dim=-1))


def assemble_patches(patches: Tensor, video_size: tuple[int, int, int], patch_size: tuple[int, int, int]) -> Tensor:
    """(B, number of patches, values of a patch) -> (B, T, H, W, values of a pixel).

    Patches lie in the video in the order time, row, column, and values in a patch likewise, colours last.
    """
    (t, h, w), (pt, ph, pw) = video_size, patch_size
    split = patches.reshape(patches.shape[0], t // pt, h // ph, w // pw, pt, ph, pw, -1)
    return split.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(patches.shape[0], t, h, w, -1)


def readout_config(
    sizes: Mapping[str, int],
    *,
    video_size: tuple[int, int, int] | None = None,
    patch_size: tuple[int, int, int] = PATCH_SIZE,
) -> ReadoutConfig:
    """The configuration of inferred sizes (see `rvm_core.readout_names`)."""
    return ReadoutConfig(
        features=sizes["features"],
        frames=sizes["frames"],
        channels=sizes["channels"],
        num_heads=sizes["num_heads"],
        outputs=sizes["outputs"],
        num_queries=sizes.get("num_queries"),
        query_width=sizes.get("query_width"),
        mlp_ratio=sizes["mlp_width"] // sizes["channels"],
        video_size=video_size,
        patch_size=patch_size,
    )


@torch.no_grad()
def initialize_readout(module: nn.Module, seed: int) -> None:
    """Fills every parameter below `module` with the release's initial distributions.

    LeCun normal for projections, zeros for biases, ones for scales, normal (0.02) for queries and embeddings of places.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf == "bias":
            parameter.zero_()
        elif leaf != "weight":
            parameter.normal_(std=_EMBEDDING_STD, generator=generator)
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)


class _SplitFeatures(SplitHeads):
    """(B, M, D) -> (B, K, M, C): features of another width than the channels."""

    def __init__(self, features: int, channels: int, num_heads: int) -> None:
        super().__init__(channels, num_heads)
        self.weight = nn.Parameter(torch.empty(num_heads, channels // num_heads, features))
