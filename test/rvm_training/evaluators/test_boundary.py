"""F of DAVIS: on cases worked out by hand. Equality with the release is in test_label_propagation.py."""

from __future__ import annotations

import numpy as np
import pytest

from rvm_training.evaluators.boundary import boundary_f, mask_boundary

EMPTY = np.zeros((100, 100), bool)


def square(left: int = 30, top: int = 30, side: int = 40) -> np.ndarray:
    mask = EMPTY.copy()
    mask[top : top + side, left : left + side] = True
    return mask


def test_a_boundary_lies_between_a_mask_and_what_is_right_or_below() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1:3, 2:4] = True
    assert mask_boundary(mask).astype(int).tolist() == [
        [0, 1, 1, 1, 0],
        [0, 1, 0, 1, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0],
    ]


def test_the_border_of_the_image_is_no_boundary() -> None:
    assert not mask_boundary(np.ones((6, 7), bool)).any()
    half = np.zeros((6, 7), bool)
    half[:, :3] = True
    assert mask_boundary(half).nonzero()[1].tolist() == [2] * 6


def test_the_same_mask_agrees() -> None:
    assert boundary_f(square(), square()) == 1 == boundary_f(EMPTY, EMPTY)


def test_nothing_agrees_with_something_less_than_not_at_all() -> None:
    assert boundary_f(EMPTY, square()) == 0 == boundary_f(square(), EMPTY)
    assert boundary_f(square(5, 5, 20), square(60, 60, 20)) == 0


@pytest.mark.parametrize(("shift", "agrees"), [(2, True), (3, False)])
def test_the_tolerance_is_the_share_of_the_diagonal_rounded_up(shift: int, agrees: bool) -> None:
    # 0.008 of the diagonal of 100x100 is 1.13 pixels: 2.
    assert (boundary_f(square(), square(30 + shift)) == 1) == agrees


def test_precision_and_recall_are_weighed_as_a_harmonic_mean() -> None:
    two = square(5, 5, 20) | square(60, 60, 20)
    # All of the one is found in the two, and half of the two in the one.
    assert boundary_f(square(5, 5, 20), two) == pytest.approx(2 * 1 * 0.5 / 1.5)


def test_masks_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one size, got \(100, 100\) and \(4, 4\)"):
        boundary_f(EMPTY, np.zeros((4, 4), bool))
