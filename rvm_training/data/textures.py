"""Random textures with structure at every scale, from few colours."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

NUM_COLOURS = 5
"""Of a palette."""
_COARSEST, _FINEST = 64, 4
"""Sides of the cells of the noise, pixels; each octave halves them."""
_GRAIN = 12.0
"""Standard deviation of the finest structure, grey levels."""
_PIXELS_PER_STROKE = 500
_NARROWEST, _WIDEST = 2.0, 26.0
"""Half the width of strokes and blobs, pixels."""

Palette = npt.NDArray[np.float32]
"""(NUM_COLOURS, 3), RGB levels in [0, 255]."""
UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]


def make_palette(rng: np.random.Generator) -> Palette:
    """Colours around one colour, from dark to bright, that differ in hue too."""
    base = rng.uniform(70, 185, 3)
    brightness = rng.permutation(np.linspace(-62, 62, NUM_COLOURS))[:, None]
    return np.clip(base + brightness + rng.normal(0, 24, (NUM_COLOURS, 3)), 8, 247).astype(np.float32)


def make_texture(rng: np.random.Generator, palette: Palette, height: int, width: int) -> UInt8Array:
    """A texture (height, width, 3), RGB: bands of soft noise, strokes and blobs over them, and grain over all."""
    field = _octaves(rng, height, width, _COARSEST, _FINEST, roughness=0.6)
    # The rank of each value, so that every colour has about the same share.
    levels = np.interp(field, np.quantile(field, np.linspace(0, 1, 9)), np.linspace(0, len(palette), 9))
    index = np.clip(levels.astype(np.intp), 0, len(palette) - 1)
    image = np.ascontiguousarray(palette[index])
    _draw_strokes(rng, image, palette)
    grain = _octaves(rng, height, width, 4 * _FINEST, _FINEST // 2, roughness=0.9)
    image += _GRAIN * grain[:, :, None]
    return np.clip(image, 0, 255).astype(np.uint8)


def _octaves(
    rng: np.random.Generator, height: int, width: int, coarsest: int, finest: int, *, roughness: float
) -> Float32Array:
    """Smooth noise (height, width) of mean 0 and deviation 1; each octave is weaker than the last by `roughness`."""
    total = np.zeros((height, width), np.float32)
    cell, weight = coarsest, 1.0
    while cell >= finest:
        values = rng.standard_normal((height // cell + 3, width // cell + 3), dtype=np.float32)
        size = (values.shape[1] * cell, values.shape[0] * cell)
        grown = cv2.resize(values, size, interpolation=cv2.INTER_CUBIC)
        total += weight * grown[cell : cell + height, cell : cell + width]
        cell, weight = cell // 2, weight * roughness
    return (total - total.mean()) / max(float(total.std()), 1e-6)


def _draw_strokes(rng: np.random.Generator, image: Float32Array, palette: Palette) -> None:
    """Draws ellipses, from blobs to thin strokes, large ones first so that small ones stay visible."""
    height, width = image.shape[:2]
    count = max(6, height * width // _PIXELS_PER_STROKE)
    # Sizes are spread evenly over the scales.
    radii = np.sort(_NARROWEST * (_WIDEST / _NARROWEST) ** (rng.random(count) ** 2))[::-1]
    centres = rng.uniform((0, 0), (width, height), (count, 2))
    colours = palette[rng.integers(len(palette), size=count)] * rng.uniform(0.75, 1.2, (count, 1))
    for radius, centre, colour in zip(radii, centres, colours, strict=True):
        axes = (radius, radius * rng.uniform(0.3, 1.0))
        box = (tuple(map(float, centre)), tuple(2 * float(a) for a in axes), float(rng.uniform(0, 180)))
        cv2.ellipse(image, box, tuple(map(float, colour)), thickness=-1, lineType=cv2.LINE_8)
