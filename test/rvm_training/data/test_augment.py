"""Crops and mirror images: their distribution, and that pixels come out where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr

from distributions import SIGNIFICANCE, assert_counts, assert_uniform, assert_uniform_counts
from rvm_training.data.augment import crop_frame, draw_crops, draw_flip
from rvm_training.pretrain_config import SamplingConfig

SIDE = 4000
"""Large, so that whole pixels do not show in the distribution."""
INTERPOLATION_TOLERANCE = 1.25
"""Grey levels: values are rounded, twice where a large crop is made smaller in two steps."""


def crops(count: int, height: int = SIDE, width: int = SIDE, **changes: tuple[float, float]) -> np.ndarray:
    return draw_crops(np.random.default_rng(11), SamplingConfig(**changes), count, height, width).astype(np.float64)


def largest_share(aspect: np.ndarray) -> np.ndarray:
    """Of a square's area, that a crop of this ratio can cover."""
    return np.minimum(aspect, 1 / aspect)


def test_aspect_is_uniform() -> None:
    _, _, height, width = crops(3000).T
    assert_uniform(width / height, 0.75, 1.25)


def test_area_is_uniform_up_to_what_fits() -> None:
    _, _, height, width = crops(3000).T
    share, aspect = height * width / SIDE**2, width / height
    assert_uniform((share - 0.3) / (largest_share(aspect) - 0.3), 0, 1)
    assert share.min() >= 0.3 * (1 - 2 / SIDE) and share.max() <= 1


def test_place_is_uniform_among_those_that_fit() -> None:
    y, x, height, width = crops(3000).T
    assert_uniform((y + 0.5) / (SIDE - height + 1), 0, 1)
    assert_uniform((x + 0.5) / (SIDE - width + 1), 0, 1)
    assert (y + height).max() <= SIDE and (x + width).max() <= SIDE and min(y.min(), x.min()) >= 0


def test_frames_have_crops_of_their_own() -> None:
    """Crops of two frames of one clip do not go together."""
    random = np.random.default_rng(3)
    pairs = np.stack([draw_crops(random, SamplingConfig(), 2, SIDE, SIDE) for _ in range(1000)])
    for column in range(4):
        assert pearsonr(pairs[:, 0, column], pairs[:, 1, column]).pvalue > SIGNIFICANCE


@pytest.mark.parametrize(("height", "width"), [(100, 400), (400, 100)])
def test_the_window_of_a_long_frame_is_one_for_the_clip_and_anywhere(height: int, width: int) -> None:
    random = np.random.default_rng(8)
    axis = int(width > height)
    starts = []
    for _ in range(2000):
        clip = draw_crops(random, SamplingConfig(crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0)), 8, height, width)
        assert (clip == clip[0]).all() and clip[0, 1 - axis] == 0 and clip[0, 2:].tolist() == [100, 100]
        starts.append(clip[0, axis])
    assert min(starts) == 0 and max(starts) == 300
    assert_uniform_counts(np.histogram(starts, bins=7, range=(0, 301))[0])


def test_a_crop_that_cannot_fit_is_the_largest_that_does() -> None:
    y, x, height, width = crops(100, crop_scale=(0.9, 1.0), crop_aspect=(2.0, 2.0)).T
    assert (width == SIDE).all() and (height == SIDE / 2).all() and (x == 0).all()


def test_half_of_the_clips_are_mirrored() -> None:
    random = np.random.default_rng(0)
    flips = sum(draw_flip(random, SamplingConfig()) for _ in range(4000))
    assert_counts([flips, 4000 - flips], [0.5, 0.5])
    assert not any(draw_flip(random, SamplingConfig(flip=0.0)) for _ in range(100))
    assert all(draw_flip(random, SamplingConfig(flip=1.0)) for _ in range(100))


def ramp(height: int, width: int) -> np.ndarray:
    """Red is the column, green the row."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [(0, 0, 128, 128), (10, 30, 64, 90), (5, 100, 100, 80), (0, 0, 200, 200)])
def test_pixels_of_a_crop_come_from_its_place(crop: tuple[int, int, int, int], flip: bool) -> None:
    out = np.zeros((64, 64, 3), np.uint8)
    crop_frame(ramp(200, 240), np.array(crop), flip, out)
    y, x, height, width = crop
    centres = (np.arange(64) + 0.5) / 64
    columns, rows = x + centres * width - 0.5, y + centres * height - 0.5
    inner = slice(2, -2)  # at the border, interpolation repeats the last pixels
    seen = out[:, ::-1] if flip else out
    np.testing.assert_allclose(seen[32, inner, 0], columns[inner], atol=INTERPOLATION_TOLERANCE)
    np.testing.assert_allclose(seen[inner, 32, 1], rows[inner], atol=INTERPOLATION_TOLERANCE)


def test_a_crop_of_the_size_of_the_output_is_not_changed() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    out = np.zeros((64, 64, 3), np.uint8)
    crop_frame(frame, np.array([7, 9, 64, 64]), False, out)
    np.testing.assert_array_equal(out, frame[7:71, 9:73])


def test_fine_patterns_do_not_turn_into_coarse_ones() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    out = np.zeros((64, 64, 3), np.uint8)
    crop_frame(stripes, np.array([0, 0, 255, 255]), False, out)
    assert out.std() < 30
