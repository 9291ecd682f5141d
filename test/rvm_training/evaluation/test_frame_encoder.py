"""Encoders by functions, and clip encoders window by window."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rvm_core.checkpoint import load_checkpoint
from rvm_core.preprocess import Preprocess
from rvm_training.evaluation.frame_encoder import ClipEncoder, FrameEncoder, model_step, to_pixels

SIZE = (32, 48)
CELLS = 6


@dataclass
class Config:
    width: int = 2
    frames: int = 4


class Window:
    """A clip encoder whose features are the brightness of a frame, and the sum of it over the window."""

    def __init__(self) -> None:
        self.config = Config()
        self.clips: list[list[int]] = []

    def __call__(self, clips: Tensor) -> Tensor:
        level = clips.mean(dim=(2, 3, 4)) * 255
        self.clips.append([round(value) for value in level[0].tolist()])
        features = torch.stack([level, level.sum(dim=1, keepdim=True).expand_as(level)], dim=-1)
        return features.unsqueeze(2).expand(-1, -1, CELLS, -1)

    def with_frames(self, frames: int) -> Window:
        raise AssertionError


def frames(count: int) -> list[np.ndarray]:
    return [np.full((*SIZE, 3), 10 * (index + 1), np.uint8) for index in range(count)]


def encoded(encoder: ClipEncoder, count: int, *, reset: bool = False) -> np.ndarray:
    return torch.stack(list(encoder.encode(frames(count), SIZE, reset_every_frame=reset))).numpy()


def test_windows_follow_each_other_and_the_last_is_filled_with_black() -> None:
    model = Window()
    found = encoded(ClipEncoder("window", model), 6)
    assert model.clips == [[10, 20, 30, 40], [50, 60, 0, 0]]
    assert found.shape == (6, 1 + CELLS, 2)
    np.testing.assert_allclose(found[:, 1, 0], [10, 20, 30, 40, 50, 60], rtol=1e-5)
    np.testing.assert_allclose(found[:, 0], found[:, 1:].mean(axis=1), rtol=1e-5)


def test_a_causal_clip_ends_with_its_frame() -> None:
    model = Window()
    found = encoded(ClipEncoder("window", model, causal=True), 5)
    assert model.clips == [
        [10, 10, 10, 10], [10, 10, 10, 20], [10, 10, 20, 30], [10, 20, 30, 40], [20, 30, 40, 50],
    ]  # fmt: skip
    np.testing.assert_allclose(found[:, 1, 0], [10, 20, 30, 40, 50], rtol=1e-5)


def test_a_frame_by_itself_is_a_still_clip() -> None:
    model = Window()
    encoded(ClipEncoder("window", model), 2, reset=True)
    assert model.clips == [[10] * 4, [20] * 4]


def test_a_clip_encoder_takes_frames_only_as_it_needs_them() -> None:
    taken: list[int] = []

    def camera() -> object:
        for index, frame in enumerate(frames(9)):
            taken.append(index)
            yield frame

    stream = ClipEncoder("window", Window()).encode(camera(), SIZE)  # type: ignore[arg-type]
    next(stream)
    assert taken == [0, 1, 2, 3]


def test_identity_tells_windows_and_what_was_given() -> None:
    encoder = ClipEncoder("window", Window(), causal=True, facts={"weights_hash": "abc"})
    assert encoder.identity(SIZE) == {"weights_hash": "abc", "window": 4, "causal": True, "image_size": [32, 48]}


def test_a_streaming_model_steps_with_its_state_and_can_forget_it(tiny_path: Path) -> None:
    model = load_checkpoint(tiny_path)
    encoder = FrameEncoder("tiny", model.config.width, model_step(model))
    images = [np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8) for seed in range(3)]
    fit = Preprocess(height=32, width=48, policy="stretch")
    state = model.init_state(1, 32, 48)
    with torch.inference_mode():
        for image, tokens in zip(images, encoder.encode(images, SIZE), strict=True):
            features, state = model(to_pixels(fit(image)[None], "cpu"), state)
            assert torch.equal(tokens, features[0])
        alone = list(encoder.encode(images, SIZE, reset_every_frame=True))
        first, _ = model(to_pixels(fit(images[2])[None], "cpu"), model.init_state(1, 32, 48))
    assert torch.equal(alone[2], first[0])
    assert not torch.equal(alone[2], features[0])


def test_pixels_are_in_the_unit_range_with_channels_first() -> None:
    image = np.zeros((2, 4, 5, 3), np.uint8)
    image[1, 2, 3] = (255, 51, 0)
    assert to_pixels(image, "cpu").shape == (2, 3, 4, 5)
    assert to_pixels(image, "cpu")[1, :, 2, 3].tolist() == pytest.approx([1.0, 0.2, 0.0])
