"""Boxes and masks read from soft labels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from rvm_core.tracking.segments import (
    Box,
    Core,
    Float32Array,
    Segment,
    box_coverage,
    find_core,
    find_cores,
    step_segments,
)

EXACT = 1e-5
"""Between float32 sums of some hundred shares."""
EDGE = 0.5
"""How far the edge of a core may be from that of the box it was made of, in cells: cells under half are no core."""

GRID = (9, 12)
BOX = (3.0, 2.0, 8.0, 6.0)
NOTHING: Float32Array = np.zeros(GRID, np.float32)


def coverage(*box: float) -> Float32Array:
    return box_coverage(box, GRID)


def random_box(random: np.random.Generator) -> Box:
    x, y = np.sort(random.uniform(0, 12, 2)), np.sort(random.uniform(0, 9, 2))
    return float(x[0]), float(y[0]), float(x[1]), float(y[1])


# Coverage.


def test_coverage_is_the_share_of_each_cell() -> None:
    shares = coverage(1.25, 2.5, 3.5, 4)
    assert (shares.dtype, shares.shape) == (np.float32, GRID)
    expected = np.zeros(GRID)
    expected[2, 1:4], expected[3, 1:4] = [0.375, 0.5, 0.25], [0.75, 1, 0.5]
    np.testing.assert_allclose(shares, expected, atol=EXACT)


def test_coverage_sums_to_the_area() -> None:
    random = np.random.default_rng(0)
    boxes = np.array([random_box(random) for _ in range(50)])
    shares = box_coverage(boxes, GRID)
    assert shares.shape == (50, *GRID)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    np.testing.assert_allclose(shares.sum(axis=(1, 2)), areas, rtol=EXACT)
    for box, plane in zip(boxes, shares, strict=True):
        np.testing.assert_array_equal(box_coverage(box, GRID), plane)


def test_coverage_ends_at_the_grid() -> None:
    np.testing.assert_allclose(coverage(-3, -2, 20, 30), np.ones(GRID))
    np.testing.assert_array_equal(coverage(-3, 2, -1, 4), NOTHING)


# Cores.


def test_core_of_a_box_is_the_box() -> None:
    random = np.random.default_rng(1)
    for _ in range(300):
        box = random_box(random)
        if box[2] - box[0] < 2 or box[3] - box[1] < 2:
            continue
        core = find_core(coverage(*box))
        np.testing.assert_allclose(core.box, box, atol=EDGE + EXACT)


@pytest.mark.parametrize(
    "box", [BOX, (0, 0, 12, 9), (1.25, 2.0, 4.5, 7.5), (5, 5, 6, 6), (2, 3.5, 9, 5), (2, 5.2, 9, 5.8)]
)
def test_edges_are_finer_than_cells(box: Box) -> None:
    core = find_core(coverage(*box))
    np.testing.assert_allclose(core.box, box, atol=EXACT)


def test_core_of_faint_labels_is_as_large_but_less_pure() -> None:
    clear, faint = find_core(coverage(*BOX)), find_core(0.3 * coverage(*BOX))
    np.testing.assert_allclose(faint.box, clear.box, atol=EXACT)
    assert (clear.mass, clear.purity) == pytest.approx((20, 1), rel=EXACT)
    assert (faint.mass, faint.purity) == pytest.approx((6, 0.3), rel=EXACT)


def test_what_is_faint_beside_the_core_is_left_out() -> None:
    soft = np.maximum(coverage(*BOX), 0.4 * coverage(0, 0, 12, 9))
    assert find_core(soft) == find_core(coverage(*BOX))


def test_no_labels_no_core() -> None:
    assert find_core(NOTHING) == find_core(NOTHING, BOX) == Core(0, 0, (0, 0, 0, 0))
    assert find_cores(np.zeros((0, *GRID), np.float32), []) == []


def test_heaviest_core_counts_and_more_so_where_it_was() -> None:
    large, small = (7.0, 1.0, 11.0, 5.0), (1.0, 1.0, 3.0, 4.0)
    soft = coverage(*large) + coverage(*small)
    assert find_core(soft).box == find_core(soft, large).box == large
    assert find_core(soft, small).box == small
    assert find_core(soft, (5.0, 6.0, 6.0, 7.0)).box == large
    # Far away, and not to be compared: what is left where it was is no match for the whole elsewhere.
    assert find_core(coverage(*large) + coverage(1, 1, 2, 2), small).box == large


def test_corners_that_touch_are_one_core() -> None:
    core = find_core(coverage(1, 1, 4, 4) + coverage(4, 4, 7, 8))
    assert core.box == (1, 1, 7, 8)


def one_by_one(soft: Float32Array, around: Box | None) -> tuple[float, float]:
    """Mass and purity of one core, by OpenCV's statistics."""
    core = (soft >= 0.5 * soft.max()).astype(np.uint8)
    count, parts = cv2.connectedComponents(core, connectivity=8)
    weight = soft if around is None else soft * (0.2 + box_coverage(around, GRID))
    best = max(range(1, count), key=lambda part: float(weight[parts == part].sum()))
    values = soft[parts == best]
    return float(values.sum()), float(values.mean())


def test_many_cores_at_once_are_as_one_by_one() -> None:
    """Also where labels reach the upper and lower border, next to those of another segment."""
    random = np.random.default_rng(2)
    soft = random.uniform(size=(40, *GRID)).astype(np.float32) ** 3
    soft[1] = soft[7] = soft[39] = 0
    soft[3:6] = 1
    around = [random_box(random) if index % 3 else None for index in range(40)]
    cores = find_cores(soft, around)
    for plane, box, core in zip(soft, around, cores, strict=True):
        assert core == find_core(plane, box)
        if plane.any():
            assert (core.mass, core.purity) == pytest.approx(one_by_one(plane, box), rel=EXACT)
        else:
            assert core.mass == 0


# Segments from frame to frame.


def iou(box: Box, other: Box) -> float:
    low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
    both = np.prod(np.maximum(high - low, 0))
    return float(both / (coverage(*box).sum() + coverage(*other).sum() - both))


def start(box: Box = BOX) -> Segment:
    return Segment.start(7, coverage(*box), box)


def test_segment_starts_where_it_is_given() -> None:
    box = (3.3, 2.2, 8.4, 6.1)
    segment = start(box)
    assert (segment.id, segment.is_box, segment.seen, segment.box) == (7, True, True, box)
    mask = Segment.start(8, coverage(*box), None)
    assert (mask.id, mask.is_box, mask.seen) == (8, False, True)
    np.testing.assert_allclose(mask.box, box, atol=EDGE)
    assert segment.confidence > 0.8 and mask.confidence > 0.8


def test_moving_segment_is_followed() -> None:
    segment = start()
    for step in range(1, 7):
        box = (3 + 0.5 * step, 2.0 - 0.3 * step, 8 + 0.5 * step, 6 - 0.3 * step)
        segment = segment.step(coverage(*box))
        assert segment.seen
        assert iou(segment.box, box) > 0.8


def test_partly_hidden_segment_is_seen_but_less_sure() -> None:
    whole = start().step(coverage(*BOX))
    part = whole.step(coverage(3, 2, 8, 3.5))
    assert part.seen
    np.testing.assert_allclose(part.box, (3, 2, 8, 3.5), atol=EXACT)
    assert part.confidence < whole.confidence
    again = part.step(coverage(*BOX))
    assert again.seen
    assert again.box == BOX
    assert again.confidence == pytest.approx(whole.confidence, abs=0.1)


@pytest.mark.parametrize("left", [0.0, 0.05, 0.25])
def test_segment_that_disappears_is_not_seen_until_it_is_back(left: float) -> None:
    """What is left is faint: labels that come from no good match."""
    segment = start().step(coverage(*BOX))
    before = segment.confidence
    for _ in range(5):
        segment = segment.step(left * coverage(0, 0, 12, 9))
        assert not segment.seen
        assert segment.box == BOX
        assert segment.confidence < 0.5 * before
    np.testing.assert_array_equal(segment.soft, left * coverage(0, 0, 12, 9))
    elsewhere = (0.0, 4.0, 5.0, 8.0)
    segment = segment.step(coverage(*elsewhere))
    assert segment.seen
    assert segment.box == elsewhere
    assert segment.confidence == pytest.approx(before, abs=0.05)


def test_old_place_counts_only_while_it_is_seen_there() -> None:
    old, larger = (1.0, 1.0, 3.0, 4.0), (7.0, 1.0, 11.0, 5.0)
    soft = coverage(*larger) + coverage(*old)
    segment = start(old)
    unseen = segment.step(NOTHING)
    assert (segment.step(soft).box, unseen.step(soft).box) == (old, larger)
    assert [after.box for after in step_segments([segment, unseen], np.stack([soft, soft]))] == [old, larger]


def test_growth_is_followed_slowly() -> None:
    """Sudden growth is doubtful, the same growth in small steps is not."""
    large = (1.0, 1.0, 11.0, 8.0)
    sudden = start().step(coverage(*large))
    segment = start()
    for step in range(1, 51):
        segment = segment.step(coverage(*((1 - step / 50) * np.array(BOX) + step / 50 * np.array(large))))
    assert segment.seen and sudden.seen
    assert segment.evidence[1] < 0.5 * sudden.evidence[1]
    assert segment.confidence > sudden.confidence
    assert segment.mass > 2 * start().mass


def test_segments_at_once_are_as_one_by_one() -> None:
    random = np.random.default_rng(3)
    boxes = [random_box(random) for _ in range(6)]
    segments = [Segment.start(index, coverage(*box), box if index % 2 else None) for index, box in enumerate(boxes)]
    soft = random.uniform(size=(6, *GRID)).astype(np.float32) ** 2
    soft[4] = 0
    stepped = step_segments(segments, soft)
    for segment, plane, after in zip(segments, soft, stepped, strict=True):
        alone = segment.step(plane)
        assert (alone.box, alone.mass, alone.seen, alone.evidence) == (
            after.box,
            after.mass,
            after.seen,
            after.evidence,
        )
        assert after.soft is not plane or (after.soft == plane).all()
    assert not stepped[4].seen
    assert step_segments([], np.zeros((0, *GRID), np.float32)) == ()
