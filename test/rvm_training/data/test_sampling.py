"""Frames and masks of examples: their ranges, and how they are distributed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distributions import assert_uniform_counts
from rvm_training.data.sampling import bounce, draw_clip, draw_frames, draw_visible
from rvm_training.pretrain_config import ClipSamplingConfig, SamplingConfig

DRAWS = 4000


def drawn(length: int, **changes: int) -> list:
    random = np.random.default_rng(5)
    return [draw_frames(random, SamplingConfig(**changes), length) for _ in range(DRAWS)]


def test_sources_follow_each_other_and_targets_are_their_gap_after_the_last() -> None:
    for frames in drawn(64)[:200]:
        assert (np.diff(frames.source) == 1).all()
        np.testing.assert_array_equal(frames.target, frames.source[-1] + frames.gaps)
        assert frames.source.min() >= 0 and frames.target.max() < 64
        assert frames.gaps.dtype == np.int32


def test_gaps_are_uniform_from_4_to_48() -> None:
    gaps = np.concatenate([frames.gaps for frames in drawn(64)])
    assert gaps.min() == 4 and gaps.max() == 48
    assert_uniform_counts(np.bincount(gaps - 4, minlength=45))


def test_gaps_of_an_example_are_independent() -> None:
    gaps = np.stack([frames.gaps for frames in drawn(64, min_gap=4, max_gap=8)]) - 4
    for other in range(1, 4):
        assert_uniform_counts(np.bincount(gaps[:, 0] * 5 + gaps[:, other], minlength=25))


def test_starts_are_uniform_and_independent_of_gaps() -> None:
    frames = drawn(64, min_gap=44, max_gap=48)
    starts = np.array([f.source[0] for f in frames])
    assert_uniform_counts(np.bincount(starts, minlength=13))
    assert_uniform_counts(np.bincount(starts * 5 + [f.gaps[0] - 44 for f in frames], minlength=65))


def test_a_longer_clip_is_used_to_its_end() -> None:
    frames = drawn(100)
    assert {f.source[0] for f in frames} == set(range(49))
    assert max(f.target.max() for f in frames) == 99


@pytest.mark.parametrize("length", [1, 2, 5, 51, 52])
def test_a_short_clip_is_played_forth_and_back(length: int) -> None:
    for frames in drawn(length)[:200]:
        places = np.concatenate([frames.source, frames.target])
        assert places.min() >= 0 and places.max() < length
        assert 4 <= frames.gaps.min() and frames.gaps.max() <= 48
        assert np.abs(np.diff(frames.source)).tolist() == [min(1, length - 1)] * 3


def test_bounce() -> None:
    assert bounce(np.arange(9), 4).tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2]


def test_a_clip_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="one frame or more"):
        draw_frames(np.random.default_rng(0), SamplingConfig(), 0)


@pytest.mark.parametrize(
    ("size", "ratio", "visible"), [(256, 0.95, 12), (128, 0.95, 3), (64, 0.95, 1), (32, 0.95, 1), (256, 0.75, 64)]
)
def test_number_of_visible_patches(size: int, ratio: float, visible: int) -> None:
    sampling = SamplingConfig(image_size=size, mask_ratio=ratio)
    places = draw_visible(np.random.default_rng(0), sampling, sampling.targets)
    assert places.shape == (4, visible) and places.dtype == np.int32
    assert places.min() >= 0 and places.max() < (size // 16) ** 2
    assert (np.diff(places, axis=1) > 0).all()


def test_every_patch_is_visible_as_often() -> None:
    random = np.random.default_rng(2)
    places = np.stack([draw_visible(random, SamplingConfig(), SamplingConfig().targets) for _ in range(DRAWS // 4)])
    assert_uniform_counts(np.bincount(places[:, 0].ravel(), minlength=256))


def test_every_pair_of_patches_is_as_likely() -> None:
    random = np.random.default_rng(4)
    sampling = SamplingConfig(image_size=48, mask_ratio=0.75)  # 2 of 9
    pairs = np.concatenate([draw_visible(random, sampling, sampling.targets) for _ in range(DRAWS)])
    counts = np.bincount(pairs[:, 0] * 9 + pairs[:, 1], minlength=81).reshape(9, 9)
    assert_uniform_counts(counts[np.triu_indices(9, 1)])
    assert counts.sum() == counts[np.triu_indices(9, 1)].sum()


def test_targets_of_an_example_have_masks_of_their_own() -> None:
    random = np.random.default_rng(6)
    sampling = SamplingConfig(image_size=64)  # one of 16
    masks = np.stack([draw_visible(random, sampling, sampling.targets)[:, 0] for _ in range(DRAWS)])
    assert_uniform_counts(np.bincount(masks[:, 0] * 16 + masks[:, 1], minlength=256))


def test_a_clip_starts_anywhere_where_it_fits() -> None:
    random = np.random.default_rng(0)
    sampling = ClipSamplingConfig(frames=5, stride=3)
    clips = np.stack([draw_clip(random, sampling, 16) for _ in range(DRAWS)])
    assert (np.diff(clips, axis=1) == 3).all()
    starts = np.bincount(clips[:, 0], minlength=4)
    assert len(starts) == 4 and starts.min() > 0.8 * DRAWS / 4
    np.testing.assert_array_equal(draw_clip(random, sampling, 7), [0, 3, 6, 3, 0])  # forth and back
    with pytest.raises(ValueError, match="one frame or more"):
        draw_clip(random, sampling, 0)


@pytest.mark.parametrize(("mask", "places"), [("tubes", 196), ("tubelets", 8 * 196)])
def test_every_tube_and_tubelet_is_visible_as_often(mask: Any, places: int) -> None:
    """At the ratios of the papers, 19 of 196 tubes and 78 of 1568 tubelets are visible."""
    sampling = ClipSamplingConfig(mask=mask, mask_ratio=0.9 if mask == "tubes" else 0.95)
    assert (sampling.places, sampling.visible) == (places, 19 if mask == "tubes" else 78)
    drawn = draw_visible(np.random.default_rng(0), sampling, 4000)
    assert drawn.shape == (4000, sampling.visible) and (np.diff(drawn, axis=1) > 0).all()
    counts = np.bincount(drawn.ravel(), minlength=places)
    expected = drawn.size / places
    assert len(counts) == places and np.abs(counts - expected).max() < 6 * expected**0.5
