"""Similarity to a point's features, and its colours."""

from __future__ import annotations

import numpy as np
import pytest

from rvm_core.similarity import cosine_similarity, feature_at, heat_colors


def test_features_at_a_point_are_those_between_the_centres_of_its_neighbours() -> None:
    rows, cols = 4, 6
    x, y = np.meshgrid(np.arange(cols) + 0.5, np.arange(rows) + 0.5)
    features = np.stack([x, y], axis=2)
    for point in [(0.5, 0.5), (2.5, 1.5), (3.0, 2.0), (2.2, 3.1), (5.5, 3.5)]:
        np.testing.assert_allclose(feature_at(features, *point), point, atol=1e-6)
    # Beyond the outermost centres there is nothing to interpolate with.
    np.testing.assert_allclose(feature_at(features, 0.0, 0.1), (0.5, 0.5))
    np.testing.assert_allclose(feature_at(features, 6.0, 4.0), (5.5, 3.5))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_grids_of_one_row_or_column(shape: tuple[int, int]) -> None:
    features = np.arange(shape[0] * shape[1], dtype=np.float16).reshape(*shape, 1)
    assert feature_at(features, shape[1], shape[0])[0] == features[-1, -1, 0]


def test_similarity_is_the_cosine() -> None:
    random = np.random.default_rng(0)
    features, vector = random.normal(size=(3, 4, 8)), random.normal(size=8)
    expected = [[f @ vector / np.linalg.norm(f) / np.linalg.norm(vector) for f in row] for row in features]
    np.testing.assert_allclose(cosine_similarity(features, vector), expected, atol=1e-6)
    assert cosine_similarity(3 * vector[None], vector)[0] == pytest.approx(1)
    assert (cosine_similarity(np.zeros((2, 8)), vector) == 0).all()


def test_heat_rises_from_black_to_light() -> None:
    image = heat_colors(np.array([[-5.0, 0.2, 0.6, 1.0, 5.0]]), 0.2, 1.0)[0].astype(int)
    light = image.sum(axis=1)
    assert light[0] == light[1] < 20 < light[2] < light[3] == light[4]
    assert image[2][0] > image[2][2], "RGB, so the middle is red"
    assert (heat_colors(np.ones((2, 2)), 1.0, 1.0) == heat_colors(np.zeros((2, 2)), 0.0, 1.0)).all()
