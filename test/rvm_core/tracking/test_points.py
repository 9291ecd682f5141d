"""Points that are followed by their features: where they are, and whether they are seen."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from rvm_core.tracking.base import Status
from rvm_core.tracking.matching import FrameKeys
from rvm_core.tracking.points import PointMatcher, Points

EXACT = 1e-4
"""Between two float32 ways to the same position, in cells."""
FINE = 0.15
"""Of positions in a smooth picture, mean error in cells; cell by cell it would be 0.38, and up to 0.7."""

ROWS, COLUMNS, WIDTH = 12, 16, 1024
XY = np.array([[4.5, 5.5], [6.4, 6.6], [2.7, 4.3], [9.5, 4.5]], np.float32)


def noise(rows: int = ROWS, columns: int = COLUMNS, *, seed: int = 0) -> Tensor:
    """A picture in which each place is unlike all others, (h, w, D)."""
    return torch.randn(rows, columns, WIDTH, generator=Generator().manual_seed(seed))


def waves(x: float, y: float) -> Tensor:
    """A smooth picture, moved by (x, y) cells: (h, w, D). Places three cells apart have little in common."""
    random = Generator().manual_seed(1)
    frequency, phase = 0.7 * torch.randn(2, WIDTH, generator=random), 6.3 * torch.rand(WIDTH, generator=random)
    rows, columns = torch.arange(ROWS)[:, None, None] - y, torch.arange(COLUMNS)[None, :, None] - x
    return torch.cos(columns * frequency[0] + rows * frequency[1] + phase)


def keys_of(picture: Tensor) -> FrameKeys:
    cells = picture.flatten(0, 1)
    return FrameKeys.of(cells - cells.mean(0), screen=False)


@pytest.fixture(scope="module")
def matcher() -> PointMatcher:
    return PointMatcher((ROWS, COLUMNS))


def given(matcher: PointMatcher, picture: Tensor, xy: np.ndarray = XY) -> Points:
    return matcher.add(range(len(xy)), xy, keys_of(picture))


def follow(matcher: PointMatcher, points: Points, pictures: Iterable[Tensor]) -> Points:
    for picture in pictures:
        points = matcher.step(points, keys_of(picture))
    return points


def test_translation_is_followed_exactly(matcher: PointMatcher) -> None:
    points, picture = given(matcher, noise()), noise()
    for x, y in [(1, 0), (2, 1), (2, 2), (3, 1), (4, 1), (3, 0), (3, -1), (3, -1)]:
        points = matcher.step(points, keys_of(picture.roll((y, x), (0, 1))))
        tracks = points.tracks()
        np.testing.assert_allclose(tracks.xy, XY + [x, y], atol=EXACT)
        assert (tracks.status == Status.VISIBLE).all()
        np.testing.assert_allclose(points.evidence[:, 1], 0, atol=EXACT)


def test_translation_into_what_was_not_seen_before(matcher: PointMatcher) -> None:
    """What comes in changes the mean of the frame and so, a little, every similarity."""
    world = noise(30, 30)
    points = given(matcher, world[9:21, 7:23])
    for step in range(1, 4):
        points = matcher.step(points, keys_of(world[9 - step : 21 - step, 7 - step : 23 - step]))
        np.testing.assert_allclose(points.xy, XY + step, atol=0.05)


def test_positions_are_finer_than_cells(matcher: PointMatcher) -> None:
    """Wherever in a cell the point was given, and without an error that adds up."""
    xy = np.random.default_rng(0).uniform((3, 3), (7, 6), (60, 2)).astype(np.float32)
    points = given(matcher, waves(0, 0), xy)
    for step in range(1, 21):
        moved = 0.27 * step, 0.16 * step
        points = matcher.step(points, keys_of(waves(*moved)))
        assert (points.tracks().status == Status.VISIBLE).all()
        error = np.linalg.norm(points.tracks().xy - xy - moved, axis=1)
        assert error.mean() < FINE and error.max() < 3 * FINE, (step, error.mean(), error.max())


@pytest.mark.parametrize("picture", [waves(0, 0), noise()], ids=["smooth", "rough"])
def test_standing_point_stands(matcher: PointMatcher, picture: Tensor) -> None:
    """Anywhere in a cell: what the search misses in the first frame it is corrected by."""
    steps = np.linspace(3.5, 5.5, 8)
    xy = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    points = follow(matcher, given(matcher, picture, xy), 10 * [picture])
    np.testing.assert_allclose(points.xy, xy, atol=EXACT)


def hidden(picture: Tensor) -> Tensor:
    """The same with something else in its left half."""
    picture = picture.clone()
    picture[:, :8] = noise(seed=9)[:, :8]
    return picture


@pytest.mark.parametrize("frames", [1, 5, 40])
def test_hidden_point_is_occluded_and_found_again(matcher: PointMatcher, frames: int) -> None:
    points = follow(matcher, given(matcher, noise()), 3 * [noise()])
    before = points.tracks()
    points = follow(matcher, points, frames * [hidden(noise())])
    tracks = points.tracks()
    assert tracks.status.tolist() == [Status.OCCLUDED] * 3 + [Status.VISIBLE]
    assert points.unseen.tolist() == [frames] * 3 + [0]
    np.testing.assert_allclose(tracks.xy, XY, atol=0.05)
    assert (tracks.confidence[:3] < before.confidence[:3] / 2).all()
    tracks = follow(matcher, points, [noise()]).tracks()
    assert (tracks.status == Status.VISIBLE).all()
    np.testing.assert_allclose(tracks.xy, XY, atol=0.05)
    np.testing.assert_allclose(tracks.confidence, before.confidence, atol=0.05)


def test_point_that_comes_back_elsewhere_is_found(matcher: PointMatcher) -> None:
    """The longer it was not seen, the further away."""
    points = follow(matcher, given(matcher, noise(), XY[:1]), [hidden(noise())] * 8)
    tracks = follow(matcher, points, [noise().roll((3, 5), (0, 1))]).tracks()
    assert tracks.status.tolist() == [Status.VISIBLE]
    np.testing.assert_allclose(tracks.xy, XY[:1] + [5, 3], atol=0.05)


def test_jump_is_not_believed_at_once(matcher: PointMatcher) -> None:
    points = follow(matcher, given(matcher, noise(), XY[:1]), [noise()])
    far = noise().roll((3, 5), (0, 1))
    points = follow(matcher, points, [far])
    assert points.tracks().status.tolist() == [Status.OCCLUDED]
    tracks = follow(matcher, points, 8 * [far]).tracks()
    assert tracks.status.tolist() == [Status.VISIBLE]
    np.testing.assert_allclose(tracks.xy, XY[:1] + [5, 3], atol=0.05)


def test_nearer_of_two_equals_is_it(matcher: PointMatcher) -> None:
    picture = noise()
    picture[4:7, 11:14] = picture[4:7, 3:6]
    xy = np.array([[4.5, 5.5], [12.5, 5.5]], np.float32)
    points = follow(matcher, given(matcher, picture, xy), 4 * [picture])
    np.testing.assert_allclose(points.xy, xy, atol=0.05)


def test_slow_change_of_look_is_followed(matcher: PointMatcher) -> None:
    """The second template follows: with the first one alone the match would be no better than others."""
    first, last = noise(), noise(seed=5)
    points = given(matcher, first, XY[:1])
    for step in range(1, 61):
        points = matcher.step(points, keys_of(torch.lerp(first, last, 0.75 * step / 60)))
    look = points.last_look @ points.first_look.T
    assert look < 0.9
    np.testing.assert_allclose(points.xy, XY[:1], atol=1)


@pytest.mark.parametrize("xy", [(0, 0), (16, 12), (0, 12), (16, 0), (8, 0), (0.2, 11.9)])
def test_points_at_the_border_stay_in_the_grid(matcher: PointMatcher, xy: tuple[float, float]) -> None:
    points = given(matcher, waves(0, 0), np.array([xy], np.float32))
    for step in range(6):
        points = matcher.step(points, keys_of(waves(step / 3, -step / 2)))
        tracks = points.tracks()
        assert ((tracks.xy >= 0) & (tracks.xy <= [COLUMNS, ROWS])).all()
        assert np.isfinite(tracks.confidence).all()
        if step == 0:
            np.testing.assert_allclose(tracks.xy, [xy], atol=FINE)


def test_beyond_the_border_there_is_nothing_alike(matcher: PointMatcher) -> None:
    """Not even where the first cell, and the last one, look like the point."""
    picture = noise()
    picture[0, 0] = picture[-1, -1] = picture[5, 4]
    points = given(matcher, picture, XY[:1])
    for step in range(1, 5):
        moved = picture.roll(-step, 1)
        moved[0, 0] = moved[-1, -1] = picture[5, 4]
        points = matcher.step(points, keys_of(moved))
    np.testing.assert_allclose(points.xy, [[0.5, 5.5]], atol=FINE)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (5, 1), (2, 2)])
def test_small_grids(grid: tuple[int, int]) -> None:
    matcher, picture = PointMatcher(grid), noise(*grid)
    xy = np.array([[grid[1] - 0.5, grid[0] - 0.5], [0, 0]], np.float32)
    tracks = follow(matcher, given(matcher, picture, xy), 2 * [picture]).tracks()
    assert np.isfinite(tracks.xy).all() and ((tracks.xy >= 0) & (tracks.xy <= grid[::-1])).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_frame_without_structure_hides_all(matcher: PointMatcher, value: float) -> None:
    points = follow(matcher, given(matcher, noise()), [torch.full((ROWS, COLUMNS, WIDTH), value)])
    tracks = points.tracks()
    assert np.isfinite(tracks.xy).all() and np.isfinite(tracks.confidence).all()
    assert (tracks.status == Status.OCCLUDED).all()
    assert (follow(matcher, points, [noise()]).tracks().status == Status.VISIBLE).all()


def test_points_are_followed_each_alone(matcher: PointMatcher) -> None:
    """Together with others, also with some of another first frame, a point is where it is alone."""
    pictures = [waves(0.3 * step, 0.2 * step) for step in range(6)]
    early = follow(matcher, given(matcher, pictures[0], XY[:2]), pictures[1:3])
    late = matcher.add([7, 8], XY[2:], keys_of(pictures[2]))
    both = follow(matcher, late.joined(early), pictures[3:])
    alone = [follow(matcher, part, pictures[3:]) for part in (late, early)]
    assert both.ids.tolist() == [7, 8, 0, 1]
    for name in ("xy", "unseen", "evidence", "last_look"):
        torch.testing.assert_close(
            getattr(both, name), torch.cat([getattr(part, name) for part in alone]), atol=EXACT, rtol=0
        )


def test_joined_and_without() -> None:
    matcher = PointMatcher((ROWS, COLUMNS))
    points, other = given(matcher, noise()), matcher.add([2**64 - 1], XY[:1], keys_of(waves(0, 0)))
    assert Points.none().joined(points) is points.joined(Points.none()) is points
    joined = points.joined(other)
    assert joined.ids.dtype == np.uint64 and joined.ids.tolist() == [0, 1, 2, 3, 2**64 - 1]
    kept = joined.without([3, 0, 77, -1, 2**64])
    assert kept.ids.tolist() == [1, 2, 2**64 - 1]
    np.testing.assert_array_equal(kept.xy, np.concatenate([XY[1:3], XY[:1]]))
    assert kept.starts == (points.starts[0], points.starts[0], other.starts[0])
    assert joined.without([2**64 - 1]).ids.tolist() == points.ids.tolist()
    nothing = joined.without(joined.ids.tolist())
    assert len(nothing.ids) == len(nothing.starts) == len(nothing.tracks().xy) == 0
    assert len(Points.none().without([1]).ids) == 0


def test_types_are_those_of_the_contract(matcher: PointMatcher) -> None:
    for points in (given(matcher, noise()), Points.none()):
        tracks = follow(matcher, points, [noise()]).tracks()
        assert (tracks.ids.dtype, tracks.status.dtype) == (np.uint64, np.uint8)
        assert tracks.xy.dtype == tracks.confidence.dtype == np.float32
        assert tracks.xy.shape == (len(points.ids), 2)
        assert len(tracks.ids) == len(tracks.status) == len(tracks.confidence) == len(points.ids)
        assert ((tracks.confidence >= 0) & (tracks.confidence <= 1)).all()
