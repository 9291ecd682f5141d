"""IoU of boxes and masks on cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rvm_training.evaluators.overlap import box_iou, label_iou, mask_iou, mean_after_start

BOX = [0.0, 0.0, 4.0, 2.0]
GONE = [math.nan] * 4


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (BOX, 1.0),
        ([2.0, 0.0, 6.0, 2.0], 4 / 12),
        ([1.0, 0.5, 2.0, 1.5], 1 / 8),
        ([4.0, 0.0, 8.0, 2.0], 0.0),
        ([5.0, 5.0, 8.0, 9.0], 0.0),
        ([1.0, 1.0, 1.0, 2.0], 0.0),
    ],
)
def test_box_iou(other: list[float], expected: float) -> None:
    assert box_iou(BOX, other) == pytest.approx(expected)
    assert box_iou(other, BOX) == pytest.approx(expected)


def test_boxes_that_are_not_there() -> None:
    result = box_iou([BOX, GONE, [1.0] * 4], [GONE, GONE, [1.0] * 4])
    assert np.isnan(result).tolist() == [True, True, False] and result[2] == 0


def test_mask_iou() -> None:
    a, b = np.zeros((2, 3), bool), np.zeros((2, 3), bool)
    assert mask_iou(a, b) == 1
    a[0] = True
    assert mask_iou(a, b) == 0
    b[:, 0] = True
    assert mask_iou(a, b) == pytest.approx(1 / 4)


def test_label_iou_is_the_mask_iou_of_each_label() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (2, 3, 8, 9), dtype=np.uint8)
    b[1][b[1] == 2] = 0
    labels = np.arange(1, 5)[:, None, None]
    expected = mask_iou(a[:, None] == labels, b[:, None] == labels)
    # Label 4 is in neither.
    np.testing.assert_allclose(label_iou(a, b, 4), expected)
    assert (expected[:, 3] == 1).all()
    with pytest.raises(ValueError, match="expected labels 0 to 2, got 0 to 3"):
        label_iou(a, b, 2)
    with pytest.raises(ValueError, match="of one shape"):
        label_iou(a, b[:2], 4)


def test_mean_after_start() -> None:
    values = [[1.0, 1.0], [0.4, 1.0], [math.nan, 0.8]]
    # Counted: 0.4 of the first, 0.8 of the second.
    assert mean_after_start(values, [0, 1]) == pytest.approx(0.6)
    assert math.isnan(mean_after_start(values, [2, 2]))
