"""Heads after the protocol of 4DS (arXiv 2412.15212): points, boxes, depth, classes and relative pose.

Shapes: B batch, T frames, N tokens of a frame, D width of the features, Q tracks. Features are float (B, T, N, D), for
RVM with [CLS] first; no head depends on N. Positions are shares of the image, x right and y down, (0, 0) its upper left
corner and (1, 1) its lower right one. Defaults of the configurations are the protocol's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rvm_core.readout import (
    PATCH_SIZE,
    AttentionReadout,
    FourierQueries,
    KeyValues,
    ReadoutConfig,
    initialize_readout,
)
from rvm_core.readout_names import parameters_from_release
from rvm_core.rotation import project_to_rotation


def _check_positive(config: object) -> None:
    for name, value in vars(config).items():
        if isinstance(value, int) and value <= 0:
            raise ValueError(f"{type(config).__name__}.{name} must be positive, got {value}")


@dataclass(frozen=True, kw_only=True)
class PointHeadConfig:
    """Sizes of a `PointHead`. Raises `ValueError` at construction for sizes that do not fit together."""

    features: int
    """Width D of the features."""
    frames: int = 16
    """Frames T of a window; the queries are of its first."""
    channels: int = 1024
    """Channels of the attention; `num_heads` must divide it."""
    num_heads: int = 8
    """Attention heads."""
    copies: int = 8
    """Queries of a track, each for `frames / copies` frames in a row."""
    fourier_bases: int = 16
    """Octaves of the Fourier features of a start position."""
    query_hidden: int = 512
    """Hidden channels of the MLP that embeds a start position."""
    query_width: int = 512
    """Channels of an embedded start position."""
    mlp_ratio: int = 4
    """Hidden channels of the readout's MLP over `channels`."""

    def __post_init__(self) -> None:
        _check_positive(self)
        if self.frames % self.copies:
            raise ValueError(f"copies must divide frames, got {self.copies} and {self.frames}")


@dataclass(frozen=True, kw_only=True)
class BoxHeadConfig:
    """Sizes of a `BoxHead`. Raises `ValueError` at construction for sizes that are not positive."""

    features: int
    """Width D of the features."""
    frames: int = 16
    """Frames T of a window; the queries are of its first, and one query tells all frames."""
    channels: int = 1024
    """Channels of the attention; `num_heads` must divide it."""
    num_heads: int = 4
    """Attention heads."""
    fourier_bases: int = 16
    """Octaves of the Fourier features of a start box."""
    query_hidden: int = 512
    """Hidden channels of the MLP that embeds a start box."""
    query_width: int = 512
    """Channels of an embedded start box."""
    mlp_ratio: int = 4
    """Hidden channels of the readout's MLP over `channels`."""

    def __post_init__(self) -> None:
        _check_positive(self)


@dataclass(frozen=True, kw_only=True)
class DepthHeadConfig:
    """Sizes of a `DepthHead`. Raises `ValueError` at construction for sizes that are not positive."""

    features: int
    """Width D of the features."""
    frames: int = 16
    """Frames T of a window."""
    image_size: tuple[int, int] = (256, 256)
    """(height, width) of the depth maps in pixels; each with its frames must be whole patches."""
    patch_size: tuple[int, int, int] = PATCH_SIZE
    """(frames, height, width) that one learned query predicts."""
    channels: int = 1024
    """Channels of the attention; `num_heads` must divide it."""
    num_heads: int = 16
    """Attention heads."""
    mlp_ratio: int = 4
    """Hidden channels of the readout's MLP over `channels`."""

    def __post_init__(self) -> None:
        _check_positive(self)


@dataclass(frozen=True, kw_only=True)
class ClassHeadConfig:
    """Sizes of a `ClassHead`. The defaults are those for Something-Something v2; `kinetics` has the others."""

    features: int
    """Width D of the features."""
    classes: int = 174
    """Number of classes."""
    frames: int = 16
    """Frames T of a clip."""
    channels: int = 768
    """Channels of the attention; `num_heads` must divide it."""
    num_heads: int = 12
    """Attention heads."""
    mlp_ratio: int = 4
    """Hidden channels of the readout's MLP over `channels`."""

    def __post_init__(self) -> None:
        _check_positive(self)

    @classmethod
    def kinetics(cls, *, features: int, classes: int = 700) -> ClassHeadConfig:
        """The protocol's sizes for Kinetics, where the probabilities of 7 clips of a video are averaged."""
        return cls(features=features, classes=classes, channels=1024, num_heads=16)


@dataclass(frozen=True, kw_only=True)
class PoseHeadConfig:
    """Sizes of a `PoseHead`. The protocol does not say channels and heads; these are its usual ones."""

    features: int
    """Width D of the features."""
    channels: int = 1024
    """Channels of the attention; `num_heads` must divide it."""
    num_heads: int = 16
    """Attention heads."""
    mlp_ratio: int = 4
    """Hidden channels of the readout's MLP over `channels`."""

    def __post_init__(self) -> None:
        _check_positive(self)


class PointOutput(NamedTuple):
    """Positions and logits of points; (...) is (B, T, Q), or (B, Q) where one frame was asked for."""

    positions: Tensor
    """(..., 2): x, y."""
    logits_visible: Tensor
    """(..., 1)."""
    logits_certainty: Tensor
    """(..., 1): of the position being right."""

    @property
    def confidence(self) -> Tensor:
        """(..., 1): probability that the point is visible and its position right."""
        return torch.sigmoid(self.logits_visible) * torch.sigmoid(self.logits_certainty)

    @property
    def visible(self) -> Tensor:
        """Bool (..., 1): where the release calls a point visible."""
        return self.confidence > 0.5


class PointHead(nn.Module):
    """Where points of the first frame of a window are in each of its frames, and whether they are seen.

    Args:
        config: the sizes.
        seed: of the random initial weights; None leaves them uninitialised, for a loader that fills them.
    """

    coordinates = 2

    def __init__(self, config: PointHeadConfig, *, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.frames_per_query = config.frames // config.copies
        self.queries = _fourier_queries(config, self.coordinates)
        readout = _readout(config, config.frames, 4 * self.frames_per_query, query_width=config.query_width)
        self.copy_embedding = nn.Parameter(torch.empty(1, 1, config.copies, config.query_width))
        self.readout = AttentionReadout(readout, seed=None)
        if seed is not None:
            initialize_readout(self, seed)

    @classmethod
    def from_release(cls, params: Mapping[str, np.ndarray]) -> PointHead:
        """The head of the release's parameters, by their flat names. Raises `CheckpointError` as `AttentionReadout`."""
        _, sizes, state = parameters_from_release(params, ("points",))
        head = cls(point_config(sizes), seed=None)
        head.load_state_dict(state)
        return head.eval()

    def forward(self, features: Tensor, queries: Tensor) -> PointOutput:
        """features (B, T, N, D), queries (B, Q, 2): x and y of each point in the first frame -> (B, T, Q, ...)."""
        raw = self.readout(features, self._copies(queries, slice(None)).flatten(1, 2))
        by_frame = raw.unflatten(-1, (self.frames_per_query, 4)).unflatten(1, (-1, self.config.copies))
        return self._split(by_frame.flatten(2, 3).transpose(1, 2))

    def read(self, window: KeyValues, queries: Tensor, frame: int) -> PointOutput:
        """What `forward` gives for one frame, 0 to T-1, at the cost of that frame's queries: (B, Q, ...).

        `window` is from `readout.place`.
        """
        copy, place = divmod(frame, self.frames_per_query)
        asked = self.readout.embed(self._copies(queries, slice(copy, copy + 1)).squeeze(2))
        raw = self.readout.attend(asked, *window)
        return self._split(raw.unflatten(-1, (self.frames_per_query, 4))[:, :, place])

    def _copies(self, queries: Tensor, copies: slice) -> Tensor:
        embedded: Tensor = self.queries(queries).unsqueeze(2) + self.copy_embedding[:, :, copies]
        return embedded

    @staticmethod
    def _split(raw: Tensor) -> PointOutput:
        return PointOutput(torch.sigmoid(raw[..., :2]), raw[..., 2:3], raw[..., 3:])


class BoxHead(nn.Module):
    """Where boxes of the first frame of a window are in each of its frames.

    The four numbers of a box are two opposite corners, in the order of the training; the release's are
    (y_min, x_min, y_max, x_max).

    Args:
        config: the sizes.
        seed: of the random initial weights; None leaves them uninitialised, for a loader that fills them.
    """

    coordinates = 4

    def __init__(self, config: BoxHeadConfig, *, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.queries = _fourier_queries(config, self.coordinates)
        readout = _readout(config, config.frames, 4 * config.frames, query_width=config.query_width)
        self.readout = AttentionReadout(readout, seed=None)
        if seed is not None:
            initialize_readout(self, seed)

    @classmethod
    def from_release(cls, params: Mapping[str, np.ndarray]) -> BoxHead:
        """The head of the release's parameters, by their flat names. Raises `CheckpointError` as `AttentionReadout`."""
        _, sizes, state = parameters_from_release(params, ("boxes",))
        head = cls(box_config(sizes), seed=None)
        head.load_state_dict(state)
        return head.eval()

    def forward(self, features: Tensor, queries: Tensor) -> Tensor:
        """features (B, T, N, D), queries (B, Q, 4): each box in the first frame -> boxes (B, T, Q, 4)."""
        raw: Tensor = self.readout(features, self.queries(queries))
        return raw.unflatten(-1, (self.config.frames, 4)).transpose(1, 2)

    def read(self, window: KeyValues, queries: Tensor, frame: int) -> Tensor:
        """What `forward` gives for one frame, 0 to T-1: (B, Q, 4). `window` is from `readout.place`."""
        raw = self.readout.attend(self.readout.embed(self.queries(queries)), *window)
        return raw[..., 4 * frame : 4 * frame + 4]


class DepthHead(nn.Module):
    """Depth of every pixel of a window.

    Args:
        config: the sizes.
        seed: of the random initial weights; None leaves them uninitialised, for a loader that fills them.
    """

    def __init__(self, config: DepthHeadConfig, *, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        video_size = (config.frames, *config.image_size)
        patch = math.prod(config.patch_size)
        queries = math.prod(video_size) // patch
        readout = _readout(
            config, config.frames, patch, num_queries=queries, video_size=video_size, patch_size=config.patch_size
        )
        self.readout = AttentionReadout(readout, seed=seed)

    def forward(self, features: Tensor) -> Tensor:
        """features (B, T, N, D) -> (B, T, H, W, 1): the logarithm of the depth in metres, as `depth_loss` trains it."""
        log_depth: Tensor = self.readout(features)
        return log_depth


class ClassHead(nn.Module):
    """Which class a clip is of.

    Args:
        config: the sizes.
        seed: of the random initial weights; None leaves them uninitialised, for a loader that fills them.
    """

    def __init__(self, config: ClassHeadConfig, *, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        readout = _readout(config, config.frames, config.classes, num_queries=1)
        self.readout = AttentionReadout(readout, seed=seed)

    def forward(self, features: Tensor) -> Tensor:
        """features (B, T, N, D) -> logits (B, classes)."""
        logits: Tensor = self.readout(features)
        return logits


class Pose(NamedTuple):
    """The rigid motion that takes points from the first camera's coordinates to the last one's."""

    rotation: Tensor
    """(B, 3, 3), orthogonal with determinant +1."""
    translation: Tensor
    """(B, 3), in the unit of the training data."""


class PoseHead(nn.Module):
    """Relative pose of the cameras of the first and the last frame.

    Args:
        config: the sizes.
        seed: of the random initial weights; None leaves them uninitialised, for a loader that fills them.
    """

    def __init__(self, config: PoseHeadConfig, *, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        readout = _readout(config, 2, 12, num_queries=1)
        self.readout = AttentionReadout(readout, seed=seed)

    def forward(self, features: Tensor) -> Pose:
        """features (B, T, N, D) of two or more frames, of which the first and the last are read -> `Pose`.

        The 12 numbers are rows (rotation | translation), 3 by 4.
        """
        raw = self.readout(torch.stack((features[:, 0], features[:, -1]), dim=1)).unflatten(-1, (3, 4))
        return Pose(project_to_rotation(raw[..., :3]), raw[..., 3])


def point_config(sizes: Mapping[str, int]) -> PointHeadConfig:
    """The configuration of inferred sizes (see `rvm_core.readout_names`)."""
    return PointHeadConfig(copies=sizes["copies"], **_tracking_sizes(sizes, PointHead.coordinates))


def box_config(sizes: Mapping[str, int]) -> BoxHeadConfig:
    """The configuration of inferred sizes (see `rvm_core.readout_names`)."""
    return BoxHeadConfig(**_tracking_sizes(sizes, BoxHead.coordinates))


def _tracking_sizes(sizes: Mapping[str, int], coordinates: int) -> dict[str, int]:
    same = ("features", "frames", "channels", "num_heads", "query_hidden", "query_width")
    return {name: sizes[name] for name in same} | {
        "fourier_bases": sizes["query_inputs"] // (2 * coordinates),
        "mlp_ratio": sizes["mlp_width"] // sizes["channels"],
    }


def _fourier_queries(config: PointHeadConfig | BoxHeadConfig, coordinates: int) -> FourierQueries:
    return FourierQueries(coordinates, bases=config.fourier_bases, hidden=config.query_hidden, width=config.query_width)


def _readout(
    config: PointHeadConfig | BoxHeadConfig | DepthHeadConfig | ClassHeadConfig | PoseHeadConfig,
    frames: int,
    outputs: int,
    **others: Any,
) -> ReadoutConfig:
    return ReadoutConfig(
        features=config.features,
        frames=frames,
        channels=config.channels,
        num_heads=config.num_heads,
        outputs=outputs,
        mlp_ratio=config.mlp_ratio,
        **others,
    )
