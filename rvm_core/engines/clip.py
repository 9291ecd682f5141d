"""Frames to check and to calibrate engines with, all made of one bundled clip.

Frames are uint8 (H, W, 3) RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np

from rvm_core.engines.base import EngineError
from rvm_core.preprocess import Preprocess

CLIP = Path(__file__).parents[1] / "data" / "clip.mp4"
"""61 frames of one shot; README.md beside it says where they are from."""

GATE_STEPS = 64
"""Longer than errors take to settle: with random weights they are no larger over 600 steps."""

CALIBRATION_STEPS = 64

_PATCH = 16
_FLAT = ((0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 255, 255), (255, 0, 255), (255, 255, 0))

Alteration = Callable[[np.ndarray, int], np.ndarray]
"""Makes another frame of one; the number is that of the step."""


def gate_frames(image_size: tuple[int, int], steps: int = GATE_STEPS) -> Iterator[np.ndarray]:
    """Frames of the clip, stretched to (height, width) in pixels.

    The clip plays forwards and backwards in turn, so that no cut ever comes. Raises `EngineError` if it cannot be read.
    """
    resize = Preprocess(height=image_size[0], width=image_size[1], policy="stretch")
    forwards = [resize(image) for image in _read_clip()]
    yield from islice(cycle(forwards + forwards[-2:0:-1]), steps)


def calibration_frames(image_size: tuple[int, int]) -> Iterator[np.ndarray]:
    """`CALIBRATION_STEPS` frames from which the ranges of 8-bit numbers are taken: the clip, altered in eight ways.

    Ranges must hold for all that a camera may show. With those of the clip as it is, the error of S on a darkened or
    tinted clip is ten times as large as with these, 0.3 of the features' norm.
    """
    return _altered(image_size, CALIBRATION_STEPS, _CALIBRATION, CALIBRATION_STEPS // len(_CALIBRATION))


def unseen_frames(image_size: tuple[int, int], steps: int) -> Iterator[np.ndarray]:
    """Frames unlike those of the calibration: the clip at dusk, in red light, at night with noise, and in fog, which
    change every four steps."""
    return _altered(image_size, steps, _UNSEEN, 4)


def _altered(
    image_size: tuple[int, int], steps: int, alterations: tuple[Alteration, ...], each: int
) -> Iterator[np.ndarray]:
    for number, frame in enumerate(gate_frames(image_size, steps)):
        yield np.ascontiguousarray(alterations[number // each % len(alterations)](frame, number))


def _light(frame: np.ndarray, gain: float | tuple[float, float, float], offset: float | np.ndarray = 0.0) -> np.ndarray:
    return np.clip(frame * np.asarray(gain) + offset, 0, 255).astype(np.uint8)


def _blocks(frame: np.ndarray, number: int) -> np.ndarray:
    """Another colour in every patch of the model, at random."""
    rows, columns = frame.shape[0] // _PATCH, frame.shape[1] // _PATCH
    colours = np.random.default_rng(number).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return colours.repeat(_PATCH, axis=0).repeat(_PATCH, axis=1)


_CALIBRATION: tuple[Alteration, ...] = (
    lambda frame, number: frame,
    lambda frame, number: 255 - frame,
    lambda frame, number: _light(frame, 2, -128)[::-1],
    _blocks,
    lambda frame, number: _light(frame, 0.25),
    lambda frame, number: _light(frame, 0.5, 127),
    lambda frame, number: _light(frame, 0.08),
    lambda frame, number: np.broadcast_to(np.array(_FLAT[number % len(_FLAT)], np.uint8), frame.shape),
)
_UNSEEN: tuple[Alteration, ...] = (
    lambda frame, number: _light(frame, 0.15 + number % 64 / 128)[:, ::-1],
    lambda frame, number: _light(frame, (1.0, 0.2, 0.2)),
    lambda frame, number: _light(frame, 0.2, 20 + 15 * np.random.default_rng(number).standard_normal(frame.shape)),
    lambda frame, number: _light(frame, 0.3, 150)[:, ::-1],
)


def _read_clip() -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(CLIP))
    images = []
    try:
        while True:
            ok, image = capture.read()
            if not ok:
                break
            images.append(np.ascontiguousarray(image[:, :, ::-1], np.uint8))
    finally:
        capture.release()
    if len(images) < 2:
        raise EngineError(f"cannot read the clip for checking engines, {CLIP}: reinstall rvm_perception")
    return images
