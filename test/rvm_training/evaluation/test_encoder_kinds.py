"""TRecViT and RVM without memory as encoders under evaluation."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from readout_data import write_release
from rvm_core.checkpoint import load_encoder
from rvm_training.evaluation.command import add_model_options, load_model
from rvm_training.evaluation.features import EngineEncoder

SIZE = (32, 48)
TOLERANCE = 2e-5
"""Between the engine and the model, both in float32."""


@pytest.fixture
def trecvit_path(tmp_path: Path) -> Path:
    return write_release("trecvit_tiny", tmp_path)


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, *SIZE, 3), dtype=np.uint8)


def encoder_of(*arguments: str) -> EngineEncoder:
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    args = parser.parse_args(arguments)
    return EngineEncoder(lambda: load_model(args), random=not args.weights, precision="fp32")


def test_trecvit_is_evaluated(trecvit_path: Path, frames: np.ndarray) -> None:
    encoder = encoder_of("--weights", str(trecvit_path))
    assert (encoder.width, encoder.name) == (64, "trecvit_custom (trecvit_tiny.npz)")
    model = load_encoder(trecvit_path)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        state = model.init_state(1, *SIZE)
        for found, image in zip(encoder.encode(frames, SIZE), pixels, strict=True):
            features, state = model(image[None], state)
            torch.testing.assert_close(found, features[0], rtol=0, atol=TOLERANCE)


def test_image_baseline_sees_every_frame_as_the_first(tiny_path: Path, frames: np.ndarray) -> None:
    image, stream = encoder_of("--weights", str(tiny_path), "--image"), encoder_of("--weights", str(tiny_path))
    assert image.name == f"rvm_custom_image ({tiny_path.name})"
    found, expected = image.encode(frames, SIZE), stream.encode(frames, SIZE, reset_every_frame=True)
    for features, first in zip(found, expected, strict=True):
        torch.testing.assert_close(features, first, rtol=0, atol=TOLERANCE)


def test_figures_of_both_forms_are_kept_apart(tiny_path: Path) -> None:
    """They have one hash of weights."""
    image, stream = encoder_of("--weights", str(tiny_path), "--image"), encoder_of("--weights", str(tiny_path))
    assert image.identity(SIZE) != stream.identity(SIZE)
    assert image.identity(SIZE) == stream.identity(SIZE) | {"form": "image"}


def test_trecvit_has_no_image_form(trecvit_path: Path) -> None:
    with pytest.raises(ValueError, match="only RVM has a form without memory"):
        encoder_of("--weights", str(trecvit_path), "--image")
