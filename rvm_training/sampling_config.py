"""What an example of pretraining is: which frames of a clip, how they are cropped, which patches are hidden."""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass
from typing import Literal

from rvm_core.config import PATCH_SIZE, TUBE_FRAMES, check_image_size
from rvm_training.config_values import ConfigError, check

Mask = Literal["tubes", "tubelets"]
Crops = Literal["frames", "clip"]


def _is_range(value: tuple[float, float], low: float, high: float) -> bool:
    return len(value) == 2 and low < value[0] <= value[1] <= high


@dataclass(frozen=True, kw_only=True)
class FrameSampling:
    """What all examples have. Raises `ConfigError` at construction."""

    mask_ratio: float = 0.95
    """Share of the patches that are hidden; at least one stays visible and one hidden."""
    image_size: int = 256
    """Height and width of all frames in pixels."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Least and greatest share of the frame's area that a random crop covers."""
    crop_aspect: tuple[float, float] = (0.75, 1.25)
    """Least and greatest ratio of width to height of a random crop."""
    flip: float = 0.5
    """Probability that a whole clip is mirrored left to right."""

    def __post_init__(self) -> None:
        check(self, "mask_ratio", 0 < self.mask_ratio < 1, "between 0 and 1")
        try:
            check_image_size(self.image_size, self.image_size)
        except ValueError as error:
            raise ConfigError(f"{type(self).__name__}.image_size: {error}") from error
        check(self, "image_size", self.patches > 1, "more than one patch")
        check(self, "crop_scale", _is_range(self.crop_scale, 0, 1), "two rising numbers above 0, at most 1")
        check(self, "crop_aspect", _is_range(self.crop_aspect, 0, math.inf), "two rising numbers above 0")
        check(self, "flip", 0 <= self.flip <= 1, "between 0 and 1")

    @property
    def patches(self) -> int:
        """Patches of a frame."""
        return (self.image_size // PATCH_SIZE) ** 2

    @property
    def places(self) -> int:
        """What is hidden or not, each as a whole."""
        return self.patches

    @property
    def visible(self) -> int:
        """How many of `places` are not hidden."""
        return min(max(math.floor(self.places * (1 - self.mask_ratio) + 1e-9), 1), self.places - 1)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(FrameSampling):
    """Source frames, seen whole, and target frames after them. Raises `ConfigError` at construction.

    Each target has hidden patches of its own.
    """

    crops: Crops = "frames"
    """What has a random crop of its own: each frame, as in the paper, or the clip, in which what rests then stays where
    it is and what moves goes on as it did."""

    source_frames: int = 4
    """Consecutive source frames, all of them seen whole."""
    targets: int = 4
    """Target frames of an example."""
    min_gap: int = 4
    """Smallest number of frames from the last source frame to a target."""
    max_gap: int = 48
    """Largest number of frames from the last source frame to a target, itself included."""
    clip_frames: int = 64
    """Frames of a clip of the data set."""

    def __post_init__(self) -> None:
        check(self, "crops", self.crops in typing.get_args(Crops), f"one of {', '.join(typing.get_args(Crops))}")
        for name in ("source_frames", "targets", "min_gap", "clip_frames"):
            check(self, name, getattr(self, name) >= 1, "at least 1")
        check(self, "max_gap", self.max_gap >= self.min_gap, f"at least min_gap, {self.min_gap}")
        needed = self.source_frames + self.max_gap
        check(self, "clip_frames", self.clip_frames >= needed, f"at least source_frames + max_gap = {needed}")
        super().__post_init__()

    def describe(self) -> str:
        """For people."""
        return (
            f"{self.source_frames} source and {self.targets} target frames of {self.image_size}x{self.image_size}, "
            f"{self.visible} of {self.patches} patches visible"
        )


@dataclass(frozen=True, kw_only=True)
class ClipSamplingConfig(FrameSampling):
    """Frames of one clip, all cropped alike, partly hidden. Raises `ConfigError` at construction."""

    frames: int = 16
    """Frames of an example."""
    stride: int = 2
    """Frames from one to the next."""
    mask: Mask = "tubes"
    """What is hidden as a whole: a patch in all frames, or in the two frames of a tubelet."""
    mask_ratio: float = 0.9
    """Share of the tubes or tubelets that are hidden; at least one stays visible and one hidden."""
    image_size: int = 224
    """Height and width of all frames in pixels."""

    def __post_init__(self) -> None:
        check(self, "mask", self.mask in typing.get_args(Mask), f"one of {', '.join(typing.get_args(Mask))}")
        for name in ("frames", "stride"):
            check(self, name, getattr(self, name) >= 1, "at least 1")
        if self.mask == "tubelets":
            check(self, "frames", self.frames % TUBE_FRAMES == 0, f"a multiple of {TUBE_FRAMES} for tubelets")
        super().__post_init__()

    @property
    def span(self) -> int:
        """Frames of the video from the first to the last of an example."""
        return (self.frames - 1) * self.stride + 1

    @property
    def places(self) -> int:
        """Tubes or tubelets of an example."""
        return self.patches * (self.frames // TUBE_FRAMES if self.mask == "tubelets" else 1)

    def describe(self) -> str:
        """For people."""
        return (
            f"{self.frames} frames of {self.image_size}x{self.image_size}, {self.stride} apart, {self.visible} of "
            f"{self.places} {self.mask} visible"
        )
