"""What `rvm show --depth` makes of a clip: the depth of its frames by a clip encoder, as colours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import cv2
import numpy as np

from rvm_core.clip_depth import ClipDepth
from rvm_core.preprocess import Preprocess
from rvm_core.similarity import heat_colors
from rvm_core.visualize import side_by_side
from rvm_perception.show import PANEL, Picture
from rvm_perception.show_clip import Clip, Float16Array, Frame, StoredFeatures
from rvm_perception.video import VideoError

_ENDS = (2.0, 98.0)
"""Percentiles of the depths of the clip that are drawn brightest and black."""
_MAPS_FOR_ENDS = 64


@dataclass(kw_only=True)
class DepthView:
    """Each frame beside its depth, near bright and far black, by one scale for the whole clip."""

    clip: Clip
    model: ClipDepth
    depths: Float16Array
    """(T, H, W) of all frames, from `measure_depth`."""
    name: str = field(default="depth", init=False)
    description: str = field(default="pictures of depth", init=False)
    moments: Sequence[int] = field(default=(), init=False)

    def __post_init__(self) -> None:
        some = np.linspace(0, len(self.depths) - 1, min(len(self.depths), _MAPS_FOR_ENDS)).astype(int)
        near, far = np.percentile(self.depths[some].astype(np.float32), _ENDS)
        self._near, self._far = float(near), float(far)

    def pictures(self) -> Iterator[Picture]:
        for frame, depth in zip(self.clip.frames(), self.depths, strict=True):
            height, width = frame.image.shape[:2]
            scale = min(1.0, PANEL / max(height, width))
            size = max(1, round(width * scale)), max(1, round(height * scale))
            image = np.asarray(cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA), np.uint8)
            colors = heat_colors(-depth.astype(np.float32), -self._far, -self._near)
            painted = np.asarray(cv2.resize(colors, size, interpolation=cv2.INTER_LINEAR), np.uint8)
            yield Picture(frame.seconds, side_by_side([image, painted]), f"{frame.seconds:.2f} s")

    def summary(self) -> dict[str, Any]:
        return {
            "model": self.model.model,
            "weights_hash": self.model.weights_hash,
            "frames_at_once": self.model.frames,
            "near": round(self._near, 4),
            "far": round(self._far, 4),
        }


def measure_depth(
    clip: Clip, frames: Iterable[Frame], model: ClipDepth, file: IO[bytes]
) -> tuple[Float16Array, list[float]]:
    """The depth (T, H, W) of all frames of a clip and their times; where a stream would start anew, a window does.

    Args:
        frames: those of the clip, perhaps wrapped in a progress bar.
        file: where the maps are kept; the result can be used while it is open.

    Raises `VideoError` for a clip without frames or a depth that is not finite.
    """
    height, width = model.image_size
    # As in the release: the encoder was trained on frames without borders.
    preprocess = Preprocess(height=height, width=width, policy="stretch")
    stored, seconds = StoredFeatures(file), []
    for window in _windows(frames, model.frames):
        for depth in model([preprocess(frame.image) for frame in window]):
            if not np.isfinite(depth).all():
                raise VideoError(f"{clip.name}: the depth near {window[0].seconds:.2f} s is not finite")
            stored.append(depth)
        seconds += [frame.seconds for frame in window]
    if not seconds:
        raise VideoError(f"{clip.name} has no frame in the part that is asked for")
    return stored.array(), seconds


def _windows(frames: Iterable[Frame], length: int) -> Iterator[list[Frame]]:
    window: list[Frame] = []
    for frame in frames:
        if window and (len(window) == length or frame.starts):
            yield window
            window = []
        window.append(frame)
    if window:
        yield window
