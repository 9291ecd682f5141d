"""Masked reconstruction frame by frame is the model's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rvm_core import RVM
from rvm_core.config import RVMConfig
from rvm_core.reconstruction import SOURCES, Reconstructor, choose_visible, hide_patches

LEVELS = 1
"""Of 255: both round to whole levels."""


def test_result_is_that_of_the_model(tiny_model: RVM) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (SOURCES + 1, 64, 96, 3), np.uint8)
    visible = choose_visible(4, 6, 0.2)
    reconstructor = Reconstructor(tiny_model, visible)
    sources = [reconstructor.encode(frame) for frame in frames[:-1]]
    image = reconstructor.reconstruct(sources, frames[-1], gap=7)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float() / 255
    with torch.inference_mode():
        expected, _ = tiny_model.reconstruct(
            pixels[:, :-1], pixels[:, -1:], torch.tensor([[7]]), torch.from_numpy(visible)[None, None]
        )
    levels = expected[0, 0].clamp(0, 1).permute(1, 2, 0).numpy() * 255
    assert image.shape == (64, 96, 3) and image.dtype == np.uint8 and image.std() > 5
    np.testing.assert_allclose(image, levels, atol=LEVELS)


def test_no_decoder_no_reconstruction() -> None:
    config = RVMConfig(
        width=32, encoder_depth=1, encoder_heads=2, encoder_mlp_width=64, core_depth=1, core_heads=2, core_mlp_width=64
    )
    with pytest.raises(ValueError, match="has no decoder"):
        Reconstructor(RVM(config), choose_visible(4, 4, 0.1))


def test_as_many_patches_are_visible_as_in_training() -> None:
    visible = choose_visible(16, 16, 0.05)
    assert len(visible) == len(set(visible.tolist())) == 12 and (np.diff(visible) > 0).all()
    np.testing.assert_array_equal(choose_visible(16, 16, 0.05), visible)
    assert choose_visible(16, 16, 0.05, seed=1).tolist() != visible.tolist()
    assert len(choose_visible(2, 2, 0.01)) == 1 and len(choose_visible(2, 2, 0.999)) == 3
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            choose_visible(4, 4, share)


def test_only_visible_patches_are_shown() -> None:
    frame = np.random.default_rng(0).integers(120, 256, (32, 48, 3), np.uint8)
    hidden = hide_patches(frame, np.array([0, 5]), shade=7)
    np.testing.assert_array_equal(hidden[:16, :16], frame[:16, :16])
    np.testing.assert_array_equal(hidden[16:, 32:], frame[16:, 32:])
    assert (hidden[:16, 16:] == 7).all() and (hidden[16:, :32] == 7).all()
