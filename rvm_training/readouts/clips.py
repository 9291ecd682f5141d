"""Clips with their truth, and the frozen encoders that make features of them.

Shapes: B clips, T frames of a clip, H x W image, N = H / 16 * W / 16 patch tokens, D width of the features, Q tracks, C
coordinates of a track (2 for a point: x, y; 4 for a box: x_min, y_min, x_max, y_max). Positions are shares of the
image, x right and y down, (0, 0) its upper left corner and (1, 1) its lower right one.

A source gives all it knows, so that one cache of features serves several tasks. Truth by name, arrays of the same shape
for every clip of a source:

    points.positions, boxes.positions   float32 (T, Q, C), looked at only where visible
    points.visible, boxes.visible       bool (T, Q)
    points.valid, boxes.valid           bool (T, Q): what is known at all
    points.startable, boxes.startable   bool (T, Q): where a query may begin
    depth.metres                        float32 (T, h, w), 0 where it is not known
    class.label                         int64 ()
    pose.rotation, pose.translation     float32 (3, 3) and (3,): from the first camera to that of the last frame
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rvm_core.checkpoint import weights_hash
from rvm_core.streaming import StreamingEncoder
from rvm_training.baselines import pixel_tokens

UInt8Array = npt.NDArray[np.uint8]
Task: TypeAlias = Literal["points", "boxes", "depth", "class", "pose"]
Truth: TypeAlias = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video and what is true of it."""

    video: UInt8Array
    """(T, H, W, 3), RGB, of the size that the encoder takes."""
    truth: Truth
    """Arrays by name, see the text on top of this file."""


class ClipSource(Protocol):
    """Clips by number. The same number gives the same clip, in any process and order."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Plain JSON: what decides the clips."""

    def __len__(self) -> int:
        """How many clips there are."""

    def clip(self, index: int) -> Clip:
        """Clip `index`, from 0. Raises `DatasetError` for one that cannot be read: it is left out, and counted."""


class ClipEncoder(Protocol):
    """A frozen encoder."""

    @property
    def width(self) -> int:
        """D."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Plain JSON: what decides the features of a clip."""

    def encode(self, videos: UInt8Array) -> Tensor:
        """uint8 (B, T, H, W, 3) -> float32 (B, T, N+1, D); each clip is seen as the start of a video."""


class ModelEncoder:
    """A streaming encoder of rvm_core, such as RVM.

    Args:
        model: float32; goes to `device` in eval mode and is not trained.
        device: None: where it is.
        autocast: bfloat16 products, which are faster on processors with AMX and on GPUs; features differ by about 1%.
    """

    def __init__(
        self, model: StreamingEncoder, *, device: str | torch.device | None = None, autocast: bool = False
    ) -> None:
        self._hash = weights_hash(model)
        self._memory = bool(getattr(model.config, "memory", True))
        self.width: int = model.config.width
        self._device = torch.device(device or next(model.parameters()).device)
        self._model = model.eval().requires_grad_(False).to(self._device)
        self._autocast = autocast

    @property
    def identity(self) -> Mapping[str, Any]:
        """See `ClipEncoder.identity`."""
        # The same weights make other features without memory.
        return {"weights_hash": self._hash, "memory": self._memory, "bfloat16": self._autocast}

    @torch.inference_mode()
    def encode(self, videos: UInt8Array) -> Tensor:
        """See `ClipEncoder.encode`."""
        batch, frames, height, width = videos.shape[:4]
        pixels = torch.from_numpy(np.ascontiguousarray(videos)).to(self._device)
        state = self._model.init_state(batch, height, width)
        features = []
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            for t in range(frames):
                tokens, state = self._model(pixels[:, t].permute(0, 3, 1, 2).float() / 255, state)
                features.append(tokens.float())
        return torch.stack(features, dim=1)


class FrameEncoder:
    """Features of single frames by a function of numpy, such as raw pixels: what a readout is worth without a model."""

    def __init__(self, name: str, encode: Callable[[UInt8Array], Tensor]) -> None:
        self._name, self._encode = name, encode
        self.width = int(encode(np.zeros((16, 16, 3), np.uint8)).shape[-1])

    @property
    def identity(self) -> Mapping[str, Any]:
        """See `ClipEncoder.identity`."""
        return {"frame_features": self._name}

    def encode(self, videos: UInt8Array) -> Tensor:
        """See `ClipEncoder.encode`."""
        return torch.stack([torch.stack([self._encode(frame).float() for frame in video]) for video in videos])


def pixel_encoder() -> FrameEncoder:
    """Raw pixels of each patch in place of features."""
    return FrameEncoder("raw pixels", pixel_tokens)
