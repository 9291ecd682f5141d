"""The encoder: equal to the model frame by frame, and no second copy of the weights stays in memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rvm_core.checkpoint import load_checkpoint, weights_hash
from rvm_core.model import RVM
from rvm_training.evaluation.features import EngineEncoder

SIZE = (32, 48)
TOLERANCE = 1e-5
"""Between the engine and the model, both in float32."""


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8)


def make(path: Path, loaded: list[Any] | None = None) -> EngineEncoder:
    def load() -> tuple[RVM, str]:
        model = load_checkpoint(path)
        if loaded is not None:
            loaded.append(weakref.ref(model))
        return model, "tiny"

    return EngineEncoder(load, random=True, precision="fp32")


def test_features_are_those_of_the_model(tiny_path: Path, frames: np.ndarray) -> None:
    encoder = make(tiny_path)
    model = load_checkpoint(tiny_path)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        state = model.init_state(1, *SIZE)
        for found, image in zip(encoder.encode(frames, SIZE), pixels, strict=True):
            features, state = model(image[None], state)
            torch.testing.assert_close(found, features[0], rtol=0, atol=TOLERANCE)
    assert encoder.width == model.config.width and encoder.name == "tiny" and encoder.random


def test_a_reset_makes_every_frame_the_first(tiny_path: Path, frames: np.ndarray) -> None:
    encoder = make(tiny_path)
    reset = list(encoder.encode(frames, SIZE, reset_every_frame=True))
    alone = [next(encoder.encode(frame[None], SIZE)) for frame in frames]
    kept = list(encoder.encode(frames, SIZE))
    for found, expected in zip(reset, alone, strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(kept[0], alone[0]) and not torch.allclose(kept[2], alone[2])


def test_a_frame_is_taken_when_its_features_are_asked_for(tiny_path: Path, frames: np.ndarray) -> None:
    taken = []

    def watched() -> Iterator[np.ndarray]:
        for index, frame in enumerate(frames):
            taken.append(index)
            yield frame

    encoded = make(tiny_path).encode(watched(), SIZE)
    for index in range(3):
        assert len(taken) == index
        next(encoded)


def test_other_sizes_are_resized(tiny_path: Path) -> None:
    frame = np.full((20, 30, 3), 90, np.uint8)
    small = next(make(tiny_path).encode([frame], SIZE))
    exact = next(make(tiny_path).encode([np.full((*SIZE, 3), 90, np.uint8)], SIZE))
    assert torch.equal(small, exact)


def test_the_model_is_let_go_when_the_engine_has_it(tiny_path: Path, frames: np.ndarray) -> None:
    loaded: list[Any] = []
    encoder = make(tiny_path, loaded)
    next(encoder.encode(frames, SIZE))
    next(encoder.encode(frames, SIZE))
    assert [model() for model in loaded] == [None]
    next(encoder.encode([np.zeros((16, 32, 3), np.uint8)], (16, 32)))
    assert [model() for model in loaded] == [None, None]


def test_identity_says_what_decides_the_features(tiny_path: Path) -> None:
    encoder = make(tiny_path)
    identity = encoder.identity(SIZE)
    assert identity["weights_hash"] == weights_hash(load_checkpoint(tiny_path))
    assert (identity["backend"], identity["precision"], identity["image_size"]) == ("torch", "fp32", [32, 48])
    assert identity != encoder.identity((16, 32))
