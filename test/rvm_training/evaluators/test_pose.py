"""The end-point error of poses on hand-made cases."""

import math

import numpy as np
import pytest

from rvm_training.evaluators.pose import CUBE, end_point_error

IDENTITY = np.eye(3)


def error(rotation: np.ndarray, translation: list[float], **others: np.ndarray) -> float:
    """Against the pose that does nothing."""
    (found,) = end_point_error(rotation[None], [translation], IDENTITY[None], [[0, 0, 0]], **others)
    return float(found)


def test_cube_has_eight_corners_around_the_origin() -> None:
    assert CUBE.shape == (8, 3)
    assert len({tuple(corner) for corner in CUBE}) == 8
    assert np.array_equal(CUBE.mean(axis=0), np.zeros(3))


def test_translation_moves_all_corners_alike() -> None:
    assert error(IDENTITY, [3, 4, 0]) == pytest.approx(5)
    assert error(IDENTITY, [0, 0, 0]) == 0


def test_rotation_moves_corners_by_their_distance_from_the_axis() -> None:
    angle = 0.3
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    assert error(turn, [0, 0, 0]) == pytest.approx(2 * math.sqrt(2) * math.sin(angle / 2))
    assert error(turn, [0, 0, 0], corners=np.array([[0.0, 0.0, 5.0]])) == pytest.approx(0)


def test_direction_of_rotation_counts() -> None:
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    (same,) = end_point_error(quarter[None], [[0, 0, 0]], quarter[None], [[0, 0, 0]])
    (back,) = end_point_error(quarter.T[None], [[0, 0, 0]], quarter[None], [[0, 0, 0]])
    assert same == 0
    assert back == pytest.approx(2 * math.sqrt(2))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(3, 3\) and \(3,\)"):
        end_point_error(IDENTITY, [0, 0, 0], IDENTITY, [0, 0, 0])
    with pytest.raises(ValueError, match="as many poses as true ones, 2, got 1"):
        end_point_error(IDENTITY[None], [[0, 0, 0]], [IDENTITY] * 2, [[0, 0, 0]] * 2)
    with pytest.raises(ValueError, match="expected finite poses"):
        end_point_error(IDENTITY[None], [[0, 0, math.nan]], IDENTITY[None], [[0, 0, 0]])
