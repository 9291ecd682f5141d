"""Clips of a square of noise that moves over a background of noise: only motion tells where the square is.

Every pixel of the background and of the square is drawn by itself from the same uniform distribution. The background
stands still; the square's noise moves with the square, by whole pixels. So each single frame is nothing but uniform
noise, with the same distribution everywhere, without an edge or a change of texture: no function of one frame can do
better than chance. (A shift by parts of a pixel would blur the square and give it away.)

A square that stayed within the image would cover its middle more often than its border, and a guess from the position
alone would beat chance. So the square leaves at one side and comes in at the other, and starts anywhere: every pixel is
covered with the same probability, and chance is exactly 0.5 in the area under the ROC curve.

T frames, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]

_DIRECTIONS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """What clips look like. Raises `ValueError` for a square that does not fit or does not move."""

    size: int = 256
    """Height and width of the frames, pixels."""
    square: int = 128
    """Side of the square, pixels."""
    speed: int = 4
    """Pixels by which it moves in a frame, in x, in y, or in both."""
    num_frames: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.square < self.size:
            raise ValueError(f"expected a square smaller than the frame's {self.size} pixels, got {self.square}")
        if not 0 < self.speed < self.size or self.num_frames < 1:
            raise ValueError(f"expected a speed and a number of frames over 0, got {self.speed}, {self.num_frames}")


@dataclass(frozen=True)
class NoiseClip:
    """A clip and where its square is."""

    video: UInt8Array
    """(T, H, W, 3) RGB."""
    inside: BoolArray
    """(T, H, W)."""


def generate_noise_clip(config: NoiseConfig, seed: int) -> NoiseClip:
    """The clip of a seed. The same arguments always give the same clip."""
    random = np.random.default_rng(seed)
    size, side = config.size, config.square
    background = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
    square = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
    start = random.integers(0, size, 2)
    step = config.speed * np.array(_DIRECTIONS[random.integers(len(_DIRECTIONS))])
    video = np.repeat(background[None], config.num_frames, axis=0)
    inside = np.zeros(video.shape[:3], bool)
    for t in range(config.num_frames):
        rows, columns = ((start[axis] + step[axis] * t + np.arange(side)) % size for axis in (0, 1))
        video[t][np.ix_(rows, columns)] = square
        inside[t][np.ix_(rows, columns)] = True
    return NoiseClip(video, inside)


def covered_cells(inside: BoolArray, patch_size: int) -> BoolArray:
    """Cells (T, h, w) of which the square covers at least half; `inside` is (T, H, W)."""
    frames, height, width = inside.shape
    cells = inside.reshape(frames, height // patch_size, patch_size, width // patch_size, patch_size)
    shares: npt.NDArray[np.float64] = cells.mean(axis=(2, 4))
    return np.asarray(shares >= 0.5)
