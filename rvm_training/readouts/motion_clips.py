"""Clips whose class is how things move in them: single frames say nothing of it.

All objects of a scene move together, one of 8 ways: to the right, left, down or up, turning clockwise or against it,
growing or shrinking. Where they are, what they look like and how they lie is random, so that every frame alone is as
likely in one class as in any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rvm_training.data.textures import make_palette, make_texture
from rvm_training.readouts.clips import Clip

CLASSES = ("right", "left", "down", "up", "clockwise", "against the clock", "growing", "shrinking")
"""By number."""
_STEP = 0.35
"""Share of the shorter side that objects move in a clip."""
_TURN = 1.6
"""Radians that they turn in a clip."""
_GROWTH = 0.6
"""They grow by exp(this) in a clip."""

UInt8Array = npt.NDArray[np.uint8]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class MotionClips:
    """A `ClipSource` for classes."""

    height: int
    width: int
    frames: int
    """Of a clip, 2 or more."""
    count: int
    first_seed: int
    objects: int = 3

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise ValueError(f"motion needs clips of 2 frames or more, got {self.frames}")

    @property
    def name(self) -> str:
        """See `ClipSource.name`."""
        return "synthetic motions"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by number."""
        return CLASSES

    @property
    def identity(self) -> Mapping[str, Any]:
        """See `ClipSource.identity`."""
        return {"source": "motions"} | {name: value for name, value in asdict(self).items() if name != "count"}

    def __len__(self) -> int:
        return self.count

    def clip(self, index: int) -> Clip:
        """See `ClipSource.clip`."""
        rng = np.random.default_rng([self.first_seed + index, 0x307])
        label = int(rng.integers(len(CLASSES)))
        video = np.repeat(make_texture(rng, make_palette(rng), self.height, self.width)[None], self.frames, axis=0)
        for _ in range(self.objects):
            self._paint(rng, video, label)
        noise = 2.0 * rng.standard_normal(video.shape, dtype=np.float32)
        video = np.clip(np.rint(video + noise), 0, 255).astype(np.uint8)
        return Clip(video=video, truth={"class.label": np.array(label, np.int64)})

    def _paint(self, rng: np.random.Generator, video: UInt8Array, label: int) -> None:
        """Draws an object into all frames."""
        side = min(self.height, self.width)
        size = max(8, int(0.3 * side * rng.uniform(0.8, 1.2)))
        texture = make_texture(rng, make_palette(rng), size, size)
        middle = rng.uniform(0.25, 0.75, 2) * (self.width, self.height)
        angle = rng.uniform(0, 2 * np.pi)
        speed = rng.uniform(0.6, 1.0)
        # From one end of the way to the other, with the middle in the middle: no place tells the class.
        for t, share in enumerate(np.linspace(-0.5, 0.5, self.frames) * speed):
            affine = _affine(label, share, middle, angle, side, size)
            cover = cv2.warpAffine(np.full((size, size), 255, np.uint8), affine, (self.width, self.height))
            moved = cv2.warpAffine(texture, affine, (self.width, self.height), flags=cv2.INTER_LINEAR)
            video[t] = np.where(cover[..., None] > 127, moved, video[t])


def _affine(label: int, share: float, middle: Float64Array, angle: float, side: int, size: int) -> Float64Array:
    """(2, 3): from the texture's pixels to the image's, where OpenCV has pixel centres at whole numbers."""
    way = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)], np.float64)[label] if label < 4 else np.zeros(2)
    turn = {4: 1.0, 5: -1.0}.get(label, 0.0) * _TURN * share
    scale = np.exp({6: 1.0, 7: -1.0}.get(label, 0.0) * _GROWTH * share)
    cos, sin = scale * np.cos(angle + turn), scale * np.sin(angle + turn)
    linear = np.array([[cos, -sin], [sin, cos]])
    place = middle + way * _STEP * side * share
    offset = place - linear @ np.array([size / 2, size / 2])
    return np.column_stack([linear, offset])
