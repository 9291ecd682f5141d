"""AbsRel on hand-made cases."""

import math

import numpy as np
import pytest

from rvm_training.evaluators.depth import abs_rel


def test_mean_of_relative_errors() -> None:
    assert abs_rel([[1.1, 4.0], [2.0, 3.0]], [[1.0, 5.0], [2.0, 2.0]]) == pytest.approx((0.1 + 0.2 + 0 + 0.5) / 4)


def test_pixels_without_depth_do_not_count() -> None:
    truth = [1.0, 0.0, 0.001, 10.0, 50.0, math.nan, math.inf, -1.0]
    assert abs_rel([1.5] + [9.0] * 7, truth) == pytest.approx(0.5)
    assert abs_rel([math.nan, 1.0], [0.0, 1.0]) == 0


def test_predictions_are_held_inside_the_limits() -> None:
    assert abs_rel([100.0], [5.0]) == pytest.approx(1.0)
    assert abs_rel([-3.0], [5.0]) == pytest.approx(0.9998)
    assert abs_rel([100.0], [50.0], max_depth=80.0) == pytest.approx(0.6)


def test_nothing_to_count() -> None:
    assert math.isnan(abs_rel(np.ones((2, 2)), np.zeros((2, 2))))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"of the shape of the truth, \(3,\), got \(2,\)"):
        abs_rel([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="1 predictions that are not"):
        abs_rel([math.nan, 2.0], [1.0, 2.0])
