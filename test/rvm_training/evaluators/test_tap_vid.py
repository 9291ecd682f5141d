"""The TAP-Vid metrics on cases worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rvm_training.evaluators.tap_vid import (
    TapVidMetrics,
    evaluated_frames,
    first_queries,
    mean_metrics,
    strided_queries,
    tap_vid_metrics,
)

SIZE = (256, 256)


def hand_made(query_mode: str = "first") -> TapVidMetrics:
    """Two queries at frames 0 and 1 of 4 frames. What happens after the queries, with errors in pixels:

    query 0: frame 1 found, error 0.5; frame 2 visible but said occluded, error 3; frame 3 occluded but said visible.
    query 1: frame 2 visible, said visible, error 5; frame 3 occluded and said so.
    Before query 1, in frame 0, the point is visible and missed by 100 pixels.
    """
    points = np.full((4, 2, 2), 100.0)
    predicted = points.copy()
    predicted[1, 0] += (0.5, 0)
    predicted[2, 0] += (0, 3)
    predicted[2, 1] += (3, -4)
    predicted[0, 1] += (100, 0)
    occluded = np.array([[False, False], [False, False], [False, False], [True, True]])
    said = np.array([[False, False], [False, False], [True, False], [False, True]])
    return tap_vid_metrics(
        query_frames=[0, 1], points=points, occluded=occluded, predicted_points=predicted, predicted_occluded=said,
        image_size=SIZE, query_mode=query_mode,  # type: ignore[arg-type]
    )  # fmt: skip


def test_first_mode_by_hand() -> None:
    # Five frames count: 1, 2, 3 of query 0 and 2, 3 of query 1. Three are visible: errors 0.5, 3 and 5.
    metrics = hand_made()
    assert metrics.within == pytest.approx((1 / 3, 1 / 3, 2 / 3, 1, 1))
    assert metrics.position_accuracy == pytest.approx(10 / 15)
    # Under 8 px: 1 found, false are frame 3 of query 0 and frame 2 of query 1, so 1 / (3 + 2); from 8 px 2 / (3 + 1).
    assert metrics.jaccard == pytest.approx((0.2, 0.2, 0.2, 0.5, 0.5))
    assert metrics.average_jaccard == pytest.approx(0.32)
    # Wrong in frames 2 and 3 of query 0.
    assert metrics.occlusion_accuracy == pytest.approx(3 / 5)


def test_strided_mode_by_hand() -> None:
    # Frame 0 of query 1 counts too: visible, said visible, 100 px away.
    metrics = hand_made("strided")
    assert metrics.within == pytest.approx((1 / 4, 1 / 4, 2 / 4, 3 / 4, 3 / 4))
    assert metrics.jaccard == pytest.approx((1 / 7, 1 / 7, 1 / 7, 2 / 6, 2 / 6))
    assert metrics.occlusion_accuracy == pytest.approx(4 / 6)


def test_a_threshold_itself_is_too_far() -> None:
    metrics = one_point(error=(4.0, 0.0), size=SIZE)
    assert metrics.within == (0, 0, 0, 1, 1)


def test_distances_are_those_of_a_square_image() -> None:
    # 6 of 768 columns are 2 of 256, 6 of 128 rows are 12 of 256.
    assert one_point(error=(6.0, 0.0), size=(128, 768)).within == (0, 0, 1, 1, 1)
    assert one_point(error=(0.0, 6.0), size=(128, 768)).within == (0, 0, 0, 0, 1)


def one_point(*, error: tuple[float, float], size: tuple[int, int]) -> TapVidMetrics:
    """One point that moves, visible in both frames and said so."""
    points = np.array([[[10.0, 20.0]], [[30.0, 40.0]]])
    seen = np.zeros((2, 1), bool)
    return tap_vid_metrics(
        query_frames=[0], points=points, occluded=seen, predicted_points=points + error, predicted_occluded=seen,
        image_size=size,
    )  # fmt: skip


def test_nothing_to_decide_is_nan() -> None:
    # Occluded after its query, and said so: no position counts, and neither does Jaccard.
    occluded = np.array([[False], [True]])
    points = np.zeros((2, 1, 2))
    metrics = tap_vid_metrics(
        query_frames=[0], points=points, occluded=occluded, predicted_points=points, predicted_occluded=occluded,
        image_size=SIZE,
    )  # fmt: skip
    assert metrics.occlusion_accuracy == 1
    assert math.isnan(metrics.position_accuracy) and math.isnan(metrics.average_jaccard)


def test_mean_over_videos_leaves_out_nan() -> None:
    first = hand_made()
    second = replace(first, average_jaccard=0.52, occlusion_accuracy=1.0, position_accuracy=math.nan)
    mean = mean_metrics([first, second])
    assert mean.average_jaccard == pytest.approx(0.42)
    assert mean.occlusion_accuracy == pytest.approx(0.8)
    assert mean.position_accuracy == pytest.approx(10 / 15)
    with pytest.raises(ValueError, match="at least one video"):
        mean_metrics([])


def test_queries() -> None:
    visible = np.zeros((12, 3), bool)
    visible[[2, 5], 0] = True
    visible[[0, 10], 2] = True
    frames, points = first_queries(visible)
    assert (frames.tolist(), points.tolist()) == ([2, 0], [0, 2])
    frames, points = strided_queries(visible)
    assert (frames.tolist(), points.tolist()) == ([0, 5, 10], [2, 0, 2])


def test_frames_that_count() -> None:
    assert evaluated_frames([1, 3], 4, "first").T.tolist() == [[False, False, True, True], [False] * 4]
    assert evaluated_frames([1], 4, "strided")[:, 0].tolist() == [True, False, True, True]
    with pytest.raises(ValueError, match="expected query mode first or strided, got 'last'"):
        evaluated_frames([0], 2, "last")  # type: ignore[arg-type]


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"expected predicted_points \(2, 1, 2\) for 1 queries, got \(2, 2, 2\)"):
        tap_vid_metrics(
            query_frames=[0], points=np.zeros((2, 1, 2)), occluded=np.zeros((2, 1), bool),
            predicted_points=np.zeros((2, 2, 2)), predicted_occluded=np.zeros((2, 1), bool), image_size=SIZE,
        )  # fmt: skip
