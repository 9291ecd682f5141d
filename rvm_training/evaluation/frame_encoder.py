"""Encoders under evaluation by functions and models instead of engines: frame by frame, or clips window by window.

Shapes: H x W processing size, N = H / 16 * W / 16 patch tokens, D width; T frames of a window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rvm_core.fourds import windows
from rvm_core.preprocess import Preprocess, ResizePolicy
from rvm_core.streaming import StreamingEncoder

UInt8Array = npt.NDArray[np.uint8]


class FrameEncoder:
    """Features of one frame after the other, by a function instead of an engine; an `evaluation.features.Encoder`.

    Args:
        name: for tables.
        width: D.
        step: (frame uint8 (H, W, 3), state) -> (tokens float32 (N+1, D), state); before the first frame it is None.
        random: whether the weights are random.
        facts: plain JSON: what decides the features beside the frames.
    """

    def __init__(
        self,
        name: str,
        width: int,
        step: Callable[[UInt8Array, Any], tuple[Tensor, Any]],
        *,
        random: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.width, self.step, self.random = name, width, step, random
        self._facts = {"name": name} if facts is None else dict(facts)

    def identity(self, image_size: tuple[int, int]) -> dict[str, Any]:
        """See `rvm_training.evaluation.features.Encoder`."""
        return {**self._facts, "image_size": list(image_size)}

    def encode(
        self,
        frames: Iterable[UInt8Array],
        image_size: tuple[int, int],
        *,
        policy: ResizePolicy = "stretch",
        reset_every_frame: bool = False,
    ) -> Iterator[Tensor]:
        """See `rvm_training.evaluation.features.Encoder`."""
        preprocess = Preprocess(height=image_size[0], width=image_size[1], policy=policy)
        state = None
        for frame in frames:
            tokens, after = self.step(preprocess(frame), state)
            state = None if reset_every_frame else after
            yield tokens


def model_step(model: StreamingEncoder, device: str = "cpu") -> Callable[[UInt8Array, Any], tuple[Tensor, Any]]:
    """The step of a `FrameEncoder` by a streaming model on this device."""

    @torch.inference_mode()
    def step(frame: UInt8Array, state: Any) -> tuple[Tensor, Any]:
        state = model.init_state(1, *frame.shape[:2]) if state is None else state
        features, state = model(to_pixels(frame[None], device), state)
        return features[0], state

    return step


def to_pixels(frames: UInt8Array, device: str) -> Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) float32 in [0, 1] on the device."""
    return torch.from_numpy(frames).to(device).movedim(-1, -3).to(torch.float32) / 255.0


class ClipModel(Protocol):
    """A clip encoder such as `FourDS`: (B, T, 3, H, W) in [0, 1] -> (B, T, N, D), for windows of `config.frames`."""

    @property
    def config(self) -> Any:
        """Has `width` and `frames`."""

    def __call__(self, clips: Tensor) -> Tensor: ...

    def with_frames(self, frames: int) -> ClipModel:
        """The same weights for windows of another length."""


class ClipEncoder:
    """Features of videos by a clip encoder; an `evaluation.features.Encoder`.

    In windows that follow each other, the last one filled with black frames, each frame is seen together with those
    after it in its window. `causal`: every frame is the last of a window of its own, so that no later one is seen, at
    as many times the cost; before the video starts, its first frame stands.

    [CLS], which these have not, is the mean token.
    """

    def __init__(
        self,
        name: str,
        model: ClipModel,
        *,
        device: str = "cpu",
        causal: bool = False,
        random: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.random = name, random
        self.width: int = model.config.width
        self._model, self._device, self._causal = model, device, causal
        self._facts = {"name": name} if facts is None else dict(facts)

    def identity(self, image_size: tuple[int, int]) -> dict[str, Any]:
        """See `rvm_training.evaluation.features.Encoder`."""
        frames = self._model.config.frames
        return {**self._facts, "window": frames, "causal": self._causal, "image_size": list(image_size)}

    def encode(
        self,
        frames: Iterable[UInt8Array],
        image_size: tuple[int, int],
        *,
        policy: ResizePolicy = "stretch",
        reset_every_frame: bool = False,
    ) -> Iterator[Tensor]:
        """See `rvm_training.evaluation.features.Encoder`. `reset_every_frame`: each frame is seen as a still clip."""
        preprocess = Preprocess(height=image_size[0], width=image_size[1], policy=policy)
        fitted = (preprocess(frame) for frame in frames)
        if reset_every_frame:
            yield from (self._encode([frame] * self._model.config.frames)[-1] for frame in fitted)
        elif self._causal:
            yield from self._last_of_each(fitted)
        else:
            yield from self._by_windows(fitted)

    def _by_windows(self, frames: Iterator[UInt8Array]) -> Iterator[Tensor]:
        length = self._model.config.frames
        while taken := list(islice(frames, length)):
            for clip, real in windows(torch.from_numpy(np.stack(taken)), length):
                yield from self._encode(list(clip.numpy()))[:real]

    def _last_of_each(self, frames: Iterator[UInt8Array]) -> Iterator[Tensor]:
        length = self._model.config.frames
        seen: deque[UInt8Array] = deque(maxlen=length)
        for frame in frames:
            seen.append(frame)
            yield self._encode([seen[0]] * (length - len(seen)) + list(seen))[-1]

    @torch.inference_mode()
    def _encode(self, frames: list[UInt8Array]) -> Tensor:
        """(T, N+1, D)."""
        features = self._model(to_pixels(np.stack(frames)[None], self._device))[0]
        return torch.cat([features.mean(dim=1, keepdim=True), features], dim=1)
