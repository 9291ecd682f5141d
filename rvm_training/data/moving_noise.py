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

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]

GROUP = 4
"""Squares that cover a frame twice as wide and high."""
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


def generate_noise_clip(
    config: NoiseConfig, seed: int, *, path_seed: int | None = None, shift: tuple[int, int] = (0, 0)
) -> NoiseClip:
    """The clip of a seed. The same arguments always give the same clip.

    path_seed: of where the square starts and which way it goes; None: `seed`, which decides the noise.
    shift: the square is so many pixels further down and to the right than these say.
    """
    random = np.random.default_rng([seed, 0])
    path = np.random.default_rng([seed if path_seed is None else path_seed, 1])
    size, side = config.size, config.square
    background = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
    square = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
    start = path.integers(0, size, 2) + shift
    step = config.speed * np.array(_DIRECTIONS[path.integers(len(_DIRECTIONS))])
    video = np.repeat(background[None], config.num_frames, axis=0)
    inside = np.zeros(video.shape[:3], bool)
    for t in range(config.num_frames):
        rows, columns = ((start[axis] + step[axis] * t + np.arange(side)) % size for axis in (0, 1))
        video[t][np.ix_(rows, columns)] = square
        inside[t][np.ix_(rows, columns)] = True
    return NoiseClip(video, inside)


def balanced_clips(config: NoiseConfig, groups: int) -> Iterator[NoiseClip]:
    """Clips to learn from, in groups of `GROUP`: together the squares of a group cover every pixel of a frame once.

    So there is nothing to learn from positions. Their noise is that of the seeds from 0 on. Raises `ValueError` for a
    square that is not half as wide as the frame.
    """
    if 2 * config.square != config.size:
        raise ValueError(f"expected a square of half of {config.size} pixels, got {config.square}")
    for group in range(groups):
        for place in range(GROUP):
            shift = (place // 2 * config.square, place % 2 * config.square)
            yield generate_noise_clip(config, GROUP * group + place, path_seed=group, shift=shift)


def covered_cells(inside: BoolArray, patch_size: int) -> BoolArray:
    """Cells (T, h, w) of which the square covers at least half; `inside` is (T, H, W)."""
    frames, height, width = inside.shape
    cells = inside.reshape(frames, height // patch_size, patch_size, width // patch_size, patch_size)
    shares: npt.NDArray[np.float64] = cells.mean(axis=(2, 4))
    return np.asarray(shares >= 0.5)
