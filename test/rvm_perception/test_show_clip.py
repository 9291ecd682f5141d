"""Parts of videos and bags as clips, and their features."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rvm_core.preprocess import Preprocess
from rvm_perception.show_clip import Clip, Frame, Part, VideoClip, encode
from rvm_perception.video import VideoError
from video_clip import FRAMES, HEIGHT, RATE, WIDTH, level_of, make_clip

LEVELS = 4
"""By which lossy compression changes a grey level at most."""


class Counter:
    """In place of an engine: its features are the number of steps since the state's start."""

    def __init__(self, broken_at: int = -1) -> None:
        self.broken_at = broken_at

    def init_state(self) -> int:
        return 0

    def step(self, frames: np.ndarray, state: int) -> tuple[torch.Tensor, int]:
        assert frames.shape == (1, 32, 48, 3) and frames.dtype == np.uint8
        value = float("nan") if state == self.broken_at else float(state)
        return torch.full((1, 7, 4), value), state + 1


PREPROCESS = Preprocess(height=32, width=48, policy="letterbox")


def steps_of(clip: Clip) -> list[int]:
    with tempfile.TemporaryFile() as file:
        done = encode(clip, clip.frames(), Counter(), PREPROCESS, file)
        assert done.features.shape[1:] == (2, 3, 4)
        return np.asarray(done.features[:, 0, 0, 0], int).tolist()


@pytest.mark.parametrize(
    ("part", "first", "last"),
    [
        (Part(), 0, FRAMES - 1),
        (Part(start=0.4), 10, FRAMES - 1),
        (Part(start=0.41), 11, FRAMES - 1),
        (Part(seconds=0.2), 0, 4),
        (Part(start=0.4, seconds=0.12), 10, 12),
        (Part(start=0.9, seconds=5.0), 23, FRAMES - 1),
    ],
)
def test_part_of_a_video(tmp_path: Path, part: Part, first: int, last: int) -> None:
    clip = VideoClip(make_clip(tmp_path), part)
    assert (clip.name, clip.rate) == ("clip.avi", RATE)
    for _ in range(2):
        frames = list(clip.frames())
        assert [frame.seconds for frame in frames] == pytest.approx([i / RATE for i in range(first, last + 1)])
        levels = [frame.image[-4, -4].mean() for frame in frames]
        np.testing.assert_allclose(levels, [level_of(i) for i in range(first, last + 1)], atol=LEVELS)
    assert clip.expected is not None and abs(clip.expected - len(frames)) <= 1


def test_part_after_the_end_is_empty(tmp_path: Path) -> None:
    clip = VideoClip(make_clip(tmp_path), Part(start=1.0))
    assert list(clip.frames()) == [] and clip.expected == 0
    with tempfile.TemporaryFile() as file, pytest.raises(VideoError, match="has no frame"):
        encode(clip, clip.frames(), Counter(), PREPROCESS, file)


def test_each_frame_steps_the_model_on(tmp_path: Path) -> None:
    assert steps_of(VideoClip(make_clip(tmp_path), Part(start=0.4))) == list(range(15))


class Given:
    """A clip of given frames."""

    name, rate, recovered = "given", 10.0, ""

    def __init__(self, frames: list[Frame]) -> None:
        self._frames = frames
        self.expected: int | None = None

    def frames(self) -> Iterator[Frame]:
        yield from self._frames


def frame(number: int, size: tuple[int, int] = (HEIGHT, WIDTH), starts: bool = False) -> Frame:
    return Frame(number / 10, np.zeros((*size, 3), np.uint8), starts)


def test_state_starts_anew_where_the_clip_says() -> None:
    assert steps_of(Given([frame(i, starts=i == 3) for i in range(5)])) == [0, 1, 2, 0, 1]


def test_clip_of_changing_size_is_refused() -> None:
    clip = Given([frame(0), frame(1, size=(48, 48))])
    with tempfile.TemporaryFile() as file, pytest.raises(VideoError, match="changes its size at 0.10 s"):
        encode(clip, clip.frames(), Counter(), PREPROCESS, file)


def test_features_that_are_not_finite_are_refused() -> None:
    clip = Given([frame(i) for i in range(4)])
    with tempfile.TemporaryFile() as file, pytest.raises(VideoError, match="frame 2 of given: the engine returned NaN"):
        encode(clip, clip.frames(), Counter(broken_at=2), PREPROCESS, file)


def test_frames_come_with_their_features() -> None:
    clip = Given([frame(i) for i in range(3)])
    with tempfile.TemporaryFile() as file:
        done = encode(clip, clip.frames(), Counter(), PREPROCESS, file)
        pairs: list[Any] = [(shown.seconds, float(features[0, 0, 0])) for shown, features in done.frames()]
        assert pairs == [(0.0, 0.0), (0.1, 1.0), (0.2, 2.0)] and done.starts == [0]
        assert [done.frame_at(seconds) for seconds in (None, 0.0, 0.05, 0.2)] == [0, 0, 1, 2]
        with pytest.raises(VideoError, match=r"shown from 0.00 s to 0.20 s: there is no frame at 0.21 s"):
            done.frame_at(0.21)
