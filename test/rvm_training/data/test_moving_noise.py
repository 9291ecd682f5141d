"""The stimulus: nothing in one frame tells where the square is, and everything in two does."""

from __future__ import annotations

import numpy as np
import pytest

from rvm_training.data.moving_noise import NoiseConfig, balanced_clips, covered_cells, generate_noise_clip

CONFIG = NoiseConfig(size=96, square=48, speed=4, num_frames=12)
SPREAD = 4.0
"""Standard errors; a fixed seed passes or not, and of many statistics one is beyond so many once in 16,000."""


def test_the_same_seed_gives_the_same_clip() -> None:
    a, b, other = (generate_noise_clip(CONFIG, seed) for seed in (3, 3, 4))
    assert (a.video == b.video).all() and (a.inside == b.inside).all()
    assert (a.video != other.video).any()


@pytest.mark.parametrize("seed", range(8))
def test_background_stands_still_and_the_square_moves(seed: int) -> None:
    clip = generate_noise_clip(CONFIG, seed)
    assert (clip.inside.sum(axis=(1, 2)) == 48**2).all()
    shifts = set()
    for t in range(1, len(clip.video)):
        never = ~clip.inside[t - 1] & ~clip.inside[t]
        assert (clip.video[t][never] == clip.video[t - 1][never]).all()
        found = [
            (dy, dx)
            for dy in (-4, 0, 4)
            for dx in (-4, 0, 4)
            if (np.roll(clip.inside[t - 1], (dy, dx), (0, 1)) == clip.inside[t]).all()
            and (np.roll(clip.video[t - 1], (dy, dx), (0, 1))[clip.inside[t]] == clip.video[t][clip.inside[t]]).all()
        ]
        assert len(found) == 1 and found != [(0, 0)]
        shifts.update(found)
    assert len(shifts) == 1


@pytest.mark.parametrize("seed", range(4))
def test_single_frames_are_uniform_noise_everywhere(seed: int) -> None:
    clip = generate_noise_clip(NoiseConfig(num_frames=2), seed)
    frame, inside = clip.video[1].astype(np.float64), clip.inside[1]
    spread = np.sqrt((256**2 - 1) / 12)
    for mask in (inside, ~inside):
        values = frame[mask].ravel()
        assert abs(values.mean() - 127.5) < SPREAD * spread / np.sqrt(values.size)
        assert abs(values.std() / spread - 1) < SPREAD / np.sqrt(values.size)
    # Neighbours are independent: within the square, within the background, and across the edge between them.
    steps = np.diff(frame, axis=1) ** 2
    crossing = inside[:, 1:] != inside[:, :-1]
    both = inside[:, 1:] & inside[:, :-1]
    expected, deviation = 2 * spread**2, steps.std()
    for mask in (crossing, both, ~crossing & ~both):
        values = steps[mask].ravel()
        assert abs(values.mean() - expected) < SPREAD * deviation / np.sqrt(values.size)


def test_every_place_is_covered_equally_often() -> None:
    config = NoiseConfig(size=32, square=16, speed=4, num_frames=2)
    share = np.mean([generate_noise_clip(config, seed).inside[-1] for seed in range(1500)], axis=0)
    assert abs(share - 0.25).max() < (SPREAD + 1) * np.sqrt(0.25 * 0.75 / 1500)


def test_groups_cover_every_place_once_with_noise_of_their_own() -> None:
    clips = list(balanced_clips(CONFIG, 2))
    assert len(clips) == 8
    for group in (clips[:4], clips[4:]):
        assert (np.sum([clip.inside for clip in group], axis=0) == 1).all()
    assert len({clip.video[0].tobytes() for clip in clips}) == 8
    assert (clips[0].inside != clips[4].inside).any()
    with pytest.raises(ValueError, match="half of 96 pixels, got 32"):
        next(balanced_clips(NoiseConfig(size=96, square=32), 1))


def test_cells_count_from_half_on() -> None:
    inside = np.zeros((1, 8, 8), bool)
    inside[0, :4, :2] = True
    inside[0, 4:, 4] = True
    assert covered_cells(inside, 4).tolist() == [[[True, False], [False, False]]]


@pytest.mark.parametrize("wrong", [{"square": 256}, {"square": 0}, {"speed": 0}, {"num_frames": 0}])
def test_what_makes_no_clip(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        NoiseConfig(**wrong)
