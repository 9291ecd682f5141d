"""Queries from pixels to the grid, tracks and label images from the grid to pixels."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest

from rvm_core.preprocess import Box, FrameMap, Preprocess, ResizePolicy
from rvm_core.tracking.base import BoxTracks, MaskTracks, PointTracks, QueryError, Tracks
from rvm_core.tracking.pixels import (
    box_query,
    cell_coverage,
    label_image,
    mask_query,
    point_query,
    seen_box,
    tracks_to_pixels,
)

FLOAT32 = 1e-5
"""Shares and positions are computed in float32, in sums of a few hundred terms."""

MAPS = {
    "stretch": Preprocess(height=64, width=96, policy="stretch").map(120, 200),
    "letterbox": Preprocess(height=64, width=96, policy="letterbox").map(90, 200),
    "center_crop": Preprocess(height=64, width=64, policy="center_crop").map(120, 200),
    "trimmed": Preprocess(height=64, width=96, policy="stretch").map(131, 197),
    "grown": Preprocess(height=64, width=96, policy="stretch").map(30, 50),
}
all_maps = pytest.mark.parametrize("frame_map", MAPS.values(), ids=MAPS.keys())


def masks_of(soft: np.ndarray) -> MaskTracks:
    count = len(soft)
    return MaskTracks(
        ids=np.arange(count, dtype=np.uint64),
        soft=soft.astype(np.float32),
        status=np.ones(count, np.uint8),
        confidence=np.ones(count, np.float32),
    )


@all_maps
def test_tracks_are_where_the_queries_were(frame_map: FrameMap) -> None:
    seen = seen_box(frame_map)
    x, y = seen.left + 0.3 * seen.width, seen.top + 0.6 * seen.height
    corners = x, y, seen.left + 0.8 * seen.width, seen.top + 0.7 * seen.height
    point, box = point_query(1, x, y, frame_map), box_query(2, *corners, frame_map)
    tracks = Tracks(
        points=PointTracks(ids=np.uint64([1]), xy=np.float32([[point.x, point.y]])),
        boxes=BoxTracks(ids=np.uint64([2]), xyxy=np.float32([[box.x_min, box.y_min, box.x_max, box.y_max]])),
    )
    pixels = tracks_to_pixels(tracks, frame_map)
    np.testing.assert_allclose(pixels.points.xy, [[x, y]], rtol=FLOAT32)
    np.testing.assert_allclose(pixels.boxes.xyxy, [corners], rtol=FLOAT32)
    assert pixels.points.ids is tracks.points.ids and pixels.masks is tracks.masks
    assert pixels.points.xy.dtype == pixels.boxes.xyxy.dtype == np.float32


def test_no_tracks_stay_none() -> None:
    pixels = tracks_to_pixels(Tracks(), MAPS["stretch"])
    assert pixels.points.xy.shape == (0, 2) and pixels.boxes.xyxy.shape == (0, 4)


@pytest.mark.parametrize(
    ("name", "x", "y", "reason"),
    [
        ("stretch", 200.5, 3, "point (200.5, 3) is outside of the image, which is 200x120 pixels"),
        ("stretch", -0.1, 3, "outside of the image"),
        ("stretch", 3, 121, "outside of the image"),
        ("center_crop", 10, 60, "that the model sees, x 40 to 160 and y 0 to 120 of 200x120 pixels"),
        ("stretch", np.nan, 3, "not finite"),
        ("stretch", 3, np.inf, "not finite"),
    ],
)
def test_point_that_is_not_seen_is_refused(name: str, x: float, y: float, reason: str) -> None:
    with pytest.raises(QueryError, match=re.escape(reason)):
        point_query(1, x, y, MAPS[name])


@all_maps
def test_corners_of_the_image_are_points_of_the_grid(frame_map: FrameMap) -> None:
    """Also where preprocessing leaves out a margin of less than a pixel of the model's."""
    seen = seen_box(frame_map)
    for x in (seen.left, seen.left + seen.width):
        for y in (seen.top, seen.top + seen.height):
            point = point_query(1, x, y, frame_map)
            assert 0 <= point.x <= frame_map.cols and 0 <= point.y <= frame_map.rows


def test_margin_that_is_left_out_counts_as_seen_but_a_crop_does_not() -> None:
    trimmed = MAPS["trimmed"]
    assert trimmed.source_box.left + trimmed.source_box.width < 197, "nothing is left out: choose another size"
    assert seen_box(trimmed) == Box(0, 0, 197, 131)
    assert seen_box(MAPS["center_crop"]) == Box(40, 0, 120, 120)


@pytest.mark.parametrize(
    ("corners", "reason"),
    [
        ((10, 10, 10, 20), "box (10, 10, 10, 20) is empty"),
        ((10, 30, 20, 20), "is empty"),
        ((201, 10, 220, 20), "outside of the image, which is 200x120"),
        ((10, 120, 20, 140), "outside of the image"),
        ((10, np.nan, 20, 20), "not finite"),
    ],
)
def test_box_that_is_not_seen_is_refused(corners: tuple[float, float, float, float], reason: str) -> None:
    with pytest.raises(QueryError, match=re.escape(reason)):
        box_query(1, *corners, MAPS["stretch"])


def test_box_is_cut_to_what_is_seen() -> None:
    box = box_query(1, -50, -50, 100, 60, MAPS["stretch"])
    np.testing.assert_allclose((box.x_min, box.y_min, box.x_max, box.y_max), (0, 0, 3, 2), atol=FLOAT32)
    crop = box_query(1, 0, 0, 100, 60, MAPS["center_crop"])
    np.testing.assert_allclose((crop.x_min, crop.y_min, crop.x_max, crop.y_max), (0, 0, 2, 2), atol=FLOAT32)


def brute_coverage(mask: np.ndarray, frame_map: FrameMap, samples: int = 16) -> np.ndarray:
    """Share of a fine net of points of each cell that falls on the mask."""
    steps = (np.arange(frame_map.rows * samples) + 0.5) / samples, (np.arange(frame_map.cols * samples) + 0.5) / samples
    row, column = np.meshgrid(*steps, indexing="ij")
    xy = np.floor(frame_map.grid_to_pixels(np.stack([column, row], -1))).astype(int)
    inside = ((xy >= 0) & (xy < (frame_map.source_width, frame_map.source_height))).all(-1)
    x, y = np.where(inside[..., None], xy, 0).transpose(2, 0, 1)
    cells = frame_map.rows, samples, frame_map.cols, samples
    hits, shown = (inside & mask[y, x]).reshape(cells).sum((1, 3)), inside.reshape(cells).sum((1, 3))
    return np.asarray(hits / np.maximum(shown, 1))


@all_maps
def test_coverage_is_the_share_of_each_cell(frame_map: FrameMap) -> None:
    mask = np.zeros((frame_map.source_height, frame_map.source_width), bool)
    cv2_mask = mask.astype(np.uint8)
    cv2.ellipse(
        cv2_mask, (mask.shape[1] // 2, mask.shape[0] // 2), (mask.shape[1] // 4, mask.shape[0] // 2), 20, 0, 360, 1, -1
    )
    mask = cv2_mask != 0
    coverage = cell_coverage(mask, frame_map)
    assert coverage.dtype == np.float32
    # A net of 16x16 points misses a share of a cell by up to about a sixteenth of each edge that crosses it.
    np.testing.assert_allclose(coverage, brute_coverage(mask, frame_map), atol=0.1)
    if (frame_map.target_box.height, frame_map.target_box.width) == (frame_map.target_height, frame_map.target_width):
        area = coverage.sum() * frame_map.grid_to_image.diagonal().prod()
        assert area == pytest.approx(mask[frame_map.source_box.slices].sum(), rel=10 * FLOAT32)


@all_maps
def test_whole_image_covers_all_but_the_padding(frame_map: FrameMap) -> None:
    coverage = cell_coverage(np.ones((frame_map.source_height, frame_map.source_width), bool), frame_map)
    box = frame_map.target_box
    expected = np.zeros((frame_map.target_height, frame_map.target_width))
    expected[box.slices] = 1
    expected = expected.reshape(frame_map.rows, 16, frame_map.cols, 16).any(axis=(1, 3))
    np.testing.assert_allclose(coverage, expected, atol=FLOAT32)


@pytest.mark.parametrize(
    ("name", "shape", "fill", "reason"),
    [
        ("stretch", (120, 199), (0, 0), "mask of 199x120 pixels, expected the size of the image, 200x120"),
        ("stretch", (120, 200), None, "mask is empty"),
        ("center_crop", (120, 200), (60, 10), "mask is outside of the part of the image that the model sees"),
    ],
)
def test_mask_that_is_not_seen_is_refused(
    name: str, shape: tuple[int, int], fill: tuple[int, int] | None, reason: str
) -> None:
    mask = np.zeros(shape, bool)
    if fill is not None:
        mask[fill] = True
    with pytest.raises(QueryError, match=re.escape(reason)):
        mask_query(1, mask, MAPS[name])


def test_mask_query_holds_the_coverage() -> None:
    mask = np.zeros((120, 200), bool)
    mask[30:60, :50] = True
    query = mask_query(7, mask, MAPS["stretch"])
    assert query.id == 7
    np.testing.assert_array_equal(query.mask, cell_coverage(mask, MAPS["stretch"]))
    with pytest.raises(ValueError, match=re.escape("expected a mask (120, 200)")):
        cell_coverage(mask[1:], MAPS["stretch"])


@pytest.mark.parametrize("policy", ["stretch", "center_crop"])
def test_label_image_is_the_bilinear_resize_of_the_planes(policy: ResizePolicy) -> None:
    """OpenCV's resize of the same planes and an argmax over them, background first."""
    frame_map = Preprocess(height=64, width=96, policy=policy).map(120, 200)
    soft = np.random.default_rng(0).dirichlet(np.ones(4), size=(4, 6)).astype(np.float32).transpose(2, 0, 1)[1:]
    box = frame_map.source_box
    planes = [cv2.resize(plane, (box.width, box.height), interpolation=cv2.INTER_LINEAR) for plane in soft]
    planes.insert(0, 1 - np.sum(planes, axis=0))
    expected = np.zeros((120, 200), np.uint16)
    expected[box.slices] = np.argmax(planes, axis=0)
    labels = label_image(masks_of(soft), frame_map)
    assert labels.dtype == np.uint16 and len(np.unique(labels)) == 4
    ordered = np.sort(planes, axis=0)
    clear = np.zeros_like(labels, bool)
    clear[box.slices] = ordered[-1] - ordered[-2] > FLOAT32
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(labels[clear], expected[clear])
    values = label_image(masks_of(soft), frame_map, [9, 65535, 3])
    np.testing.assert_array_equal(values, np.uint16([0, 9, 65535, 3])[labels])


@pytest.mark.parametrize("policy", ["stretch", "center_crop", "letterbox"])
def test_label_image_gives_back_a_mask(policy: ResizePolicy) -> None:
    """A mask through the grid and back keeps its place; what the grid cannot show of its outline is lost."""
    frame_map = Preprocess(height=256, width=256, policy=policy).map(270, 480)
    mask = np.zeros((270, 480), bool)
    mask[70:, 120:361] = True  # to the lower edge, where cells are partly padding
    soft = mask_query(1, mask, frame_map).mask
    back = label_image(masks_of(soft[None]), frame_map) == 1
    assert (back & mask).sum() / (back | mask).sum() > 0.97
    assert back[-1, 140:340].all()


def test_padding_says_nothing_of_the_image() -> None:
    frame_map = Preprocess(height=96, width=96, policy="letterbox").map(90, 200)
    shown = cell_coverage(np.ones((90, 200), bool), frame_map) > 0
    assert not shown.all()
    full = label_image(masks_of(np.where(shown, 1.0, 0.0)[None]), frame_map)
    assert (full == 1).all()
    empty = label_image(masks_of(np.where(shown, 0.0, 1.0)[None]), frame_map)
    assert (empty == 0).all()


def test_margin_has_the_label_beside_it_and_a_crop_has_none() -> None:
    assert (label_image(masks_of(np.ones((1, 4, 6))), MAPS["trimmed"]) == 1).all()
    cropped = label_image(masks_of(np.ones((1, 4, 4))), MAPS["center_crop"])
    assert (cropped[:, 40:160] == 1).all() and not cropped[:, :40].any() and not cropped[:, 160:].any()


def test_equals_are_background_and_then_the_first() -> None:
    frame_map = MAPS["stretch"]
    assert not label_image(masks_of(np.full((1, 4, 6), 0.5)), frame_map).any()
    assert (label_image(masks_of(np.full((2, 4, 6), 0.45)), frame_map) == 1).all()
    assert not label_image(masks_of(np.zeros((0, 4, 6))), frame_map).any()


def test_thinnest_image_has_labels_too() -> None:
    frame_map = Preprocess(height=64, width=64, policy="letterbox").map(1, 4000)
    assert not frame_map.valid_cells().any()
    assert label_image(masks_of(np.ones((1, 4, 4))), frame_map).shape == (1, 4000)


@pytest.mark.parametrize("values", [[1, 2], [0], [65536], [-1]])
def test_values_that_no_label_image_can_hold_are_refused(values: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 1 values from 1 to 65535"):
        label_image(masks_of(np.ones((1, 4, 6))), MAPS["stretch"], values)


def test_masks_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("expected masks of a grid (4, 6), got (5, 6)")):
        label_image(masks_of(np.ones((1, 5, 6))), MAPS["stretch"])
