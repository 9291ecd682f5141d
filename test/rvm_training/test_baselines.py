"""Raw pixels and histograms of colours as features."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from rvm_training.baselines import COLOUR_LEVELS, colour_tokens, pixel_tokens

FRAME = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)


def test_pixels_of_each_patch() -> None:
    tokens = pixel_tokens(FRAME)
    assert tokens.shape == (1 + 2 * 3, 768) and tokens.dtype == torch.float32
    # Row 1, column 2 of the grid.
    patch = FRAME[16:32, 32:48] / 255 - FRAME.mean(axis=(0, 1)) / 255
    np.testing.assert_allclose(tokens[1 + 5].numpy(), patch.ravel(), atol=1e-6)
    np.testing.assert_allclose(tokens[0], tokens[1:].mean(dim=0), atol=1e-6)


def test_a_brighter_frame_has_the_same_pixels() -> None:
    dark = FRAME // 2
    torch.testing.assert_close(pixel_tokens(dark + 40), pixel_tokens(dark))


def test_colours_of_each_patch() -> None:
    frame = np.zeros((16, 32, 3), np.uint8)
    frame[:4, :16] = 255, 0, 0
    frame[4:, :16] = 0, 255, 0
    frame[:, 16:] = 255, 255, 255
    tokens = colour_tokens(frame).numpy()
    assert tokens.shape == (3, COLOUR_LEVELS**3) and tokens.dtype == np.float32
    # Roots of shares: a quarter is red, the rest green.
    assert tokens[1, 5 * 36] == pytest.approx(0.5) and tokens[1, 5 * 6] == pytest.approx(np.sqrt(0.75))
    assert tokens[2, -1] == 1
    np.testing.assert_allclose(np.linalg.norm(tokens[1:], axis=1), 1, atol=1e-6)


def test_colours_do_not_tell_order() -> None:
    patch = FRAME[:16, :16]
    torch.testing.assert_close(colour_tokens(patch[::-1].copy()), colour_tokens(patch))
    assert not torch.equal(pixel_tokens(patch[::-1].copy()), pixel_tokens(patch))


@pytest.mark.parametrize("function", [pixel_tokens, colour_tokens])
def test_frames_of_other_sizes(function: Callable[[np.ndarray], torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="multiples of 16, got \\(30, 48, 3\\)"):
        function(FRAME[:30])
