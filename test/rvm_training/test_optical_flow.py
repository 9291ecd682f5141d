"""Optical flow as a tracker."""

from __future__ import annotations

import numpy as np
import pytest

from rvm_core.tracking.base import BoxQuery, MaskQuery, PointQuery, Query, QueryError, Status
from rvm_training.data.textures import make_palette, make_texture
from rvm_training.optical_flow import FlowState, FlowTracker

GRID = (8, 10)
SHIFT = (3, 2)
"""Pixels to the right and down in each frame."""
TOLERANCE = 0.05
"""Cells: 0.8 pixels. Lucas-Kanade is good to some tenths of a pixel on noise-free texture."""


def window(t: int) -> np.ndarray:
    """Frame t of a camera that moves over a texture so that everything moves by `SHIFT`."""
    rng = np.random.default_rng(3)
    texture = make_texture(rng, make_palette(rng), 256, 256)
    top, left = 60 - SHIFT[1] * t, 60 - SHIFT[0] * t
    return texture[top : top + 16 * GRID[0], left : left + 16 * GRID[1]].copy()


def started() -> tuple[FlowTracker, FlowState]:
    """After frame 0, with a point, a box and a mask of the same four cells."""
    mask = np.zeros(GRID, np.float32)
    mask[3:5, 3:5] = 1
    queries: list[Query] = [
        PointQuery(id=7, x=4.2, y=3.7),
        BoxQuery(id=8, x_min=3, y_min=3, x_max=5, y_max=5),
        MaskQuery(id=2**63, mask=mask),
    ]
    tracker = FlowTracker(GRID)
    _, state = tracker.step(window(0), tracker.init_state())
    return tracker, tracker.add(queries, state)


def test_everything_moves_with_the_picture() -> None:
    tracker, state = started()
    for t in range(1, 7):
        tracks, state = tracker.step(window(t), state)
    moved = 6 * np.array(SHIFT) / 16
    assert tracks.points.ids.tolist() == [7] and tracks.points.status.tolist() == [Status.VISIBLE]
    np.testing.assert_allclose(tracks.points.xy[0], (4.2, 3.7) + moved, atol=TOLERANCE)
    assert tracks.points.confidence[0] > 0.9
    assert tracks.boxes.ids.tolist() == [8] and tracks.boxes.confidence[0] > 0.9
    np.testing.assert_allclose(tracks.boxes.xyxy[0], [*((3, 3) + moved), *((5, 5) + moved)], atol=2 * TOLERANCE)
    assert tracks.masks.ids.tolist() == [2**63] and tracks.masks.soft.shape == (1, *GRID)
    rows, cols = np.indices(GRID) + 0.5
    weights = tracks.masks.soft[0] / tracks.masks.soft[0].sum()
    np.testing.assert_allclose(((cols * weights).sum(), (rows * weights).sum()), (4, 4) + moved, atol=2 * TOLERANCE)


def test_a_point_that_is_covered_is_occluded_for_good() -> None:
    tracker, state = started()
    covered = window(1)
    covered[40:80, 50:90] = 128
    tracks, state = tracker.step(covered, state)
    assert tracks.points.status.tolist() == [Status.OCCLUDED] and tracks.points.confidence[0] == 0
    np.testing.assert_allclose(tracks.points.xy[0], (4.2, 3.7), atol=1e-6)
    tracks, state = tracker.step(window(2), state)
    assert tracks.points.status.tolist() == [Status.OCCLUDED]


def test_a_point_that_leaves_is_occluded() -> None:
    tracker = FlowTracker(GRID)
    _, state = tracker.step(window(0), tracker.init_state())
    state = tracker.add([PointQuery(id=1, x=9.9, y=4.0)], state)
    tracks, _ = tracker.step(window(1), state)
    assert tracks.points.status.tolist() == [Status.OCCLUDED]


def test_the_state_is_a_value() -> None:
    tracker, state = started()
    first, _ = tracker.step(window(1), state)
    tracker.step(window(3), state)
    tracker.remove([7, 8], state)
    again, _ = tracker.step(window(1), state)
    np.testing.assert_array_equal(first.points.xy, again.points.xy)
    np.testing.assert_array_equal(first.masks.soft, again.masks.soft)


def test_remove() -> None:
    tracker, state = started()
    tracks, state = tracker.step(window(1), tracker.remove([7, 2**63, 99], state))
    assert tracks.points.ids.tolist() == [] and tracks.boxes.ids.tolist() == [8] and tracks.masks.ids.tolist() == []
    assert tracks.masks.soft.shape == (0, *GRID)
    # An id that was removed may be used again.
    tracker.add([PointQuery(id=7, x=1, y=1)], state)


def test_refusals() -> None:
    tracker, state = started()
    with pytest.raises(QueryError, match="id 8 is in use"):
        tracker.add([PointQuery(id=8, x=1, y=1)], state)
    with pytest.raises(QueryError, match="newest frame only"):
        tracker.add([PointQuery(id=9, x=1, y=1)], state, age=1)
    with pytest.raises(QueryError, match="newest frame only"):
        tracker.add([PointQuery(id=9, x=1, y=1)], tracker.init_state())
    with pytest.raises(ValueError, match=r"expected a uint8 frame \(128, 160, 3\), got uint8 \(64, 160, 3\)"):
        tracker.step(window(0)[:64], state)
