"""Textures have structure at every scale, and palettes differ."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from rvm_training.data.textures import NUM_COLOURS, make_palette, make_texture


def texture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return make_texture(rng, make_palette(rng), 128, 160)


def test_shape_and_determinism() -> None:
    assert texture(0).shape == (128, 160, 3) and texture(0).dtype == np.uint8
    assert np.array_equal(texture(0), texture(0)) and not np.array_equal(texture(0), texture(1))


@pytest.mark.parametrize("seed", range(4))
def test_there_is_structure_at_every_scale(seed: int) -> None:
    gray = texture(seed).mean(axis=2).astype(np.float32)
    blurred = [gray] + [cv2.GaussianBlur(gray, (0, 0), sigma) for sigma in (1, 2, 4, 8, 16)]
    for fine, coarse in zip(blurred[:-1], blurred[1:], strict=True):
        # Grey levels. Far over the noise of the scenes, so that each scale can be matched.
        assert (fine - coarse).std() > 3


def test_palettes() -> None:
    palette = make_palette(np.random.default_rng(0))
    assert palette.shape == (NUM_COLOURS, 3) and palette.min() >= 0 and palette.max() <= 255
    brightness = np.sort(palette.mean(axis=1))
    assert brightness[-1] - brightness[0] > 50
