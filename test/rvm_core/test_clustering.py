"""k-means: the right clusters, the same ones each time."""

from __future__ import annotations

import numpy as np
import pytest

from rvm_core.clustering import Clusters, cluster_colors, fit_clusters

SIZES = (400, 200, 100, 60, 30)


def blobs(offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around five places that lie far from each other, and which is of which."""
    random = np.random.default_rng(0)
    places = 10 * random.normal(size=(5, 16)) + offset
    truth = np.repeat(np.arange(5), SIZES)
    order = random.permutation(len(truth))
    return (places[truth] + random.normal(size=(len(truth), 16))).astype(np.float32)[order], truth[order]


@pytest.mark.parametrize("seed", range(5))
def test_clusters_are_found_and_numbered_by_size(seed: int) -> None:
    vectors, truth = blobs()
    clusters = fit_clusters(vectors, 5, seed=seed)
    np.testing.assert_array_equal(clusters.assign(vectors), truth)


def test_the_same_seed_gives_the_same_clusters() -> None:
    vectors = np.random.default_rng(1).normal(size=(500, 8)).astype(np.float32)
    first = fit_clusters(vectors, 7, seed=3)
    np.testing.assert_array_equal(fit_clusters(vectors, 7, seed=3).centres, first.centres)
    assert not np.array_equal(fit_clusters(vectors, 7, seed=4).centres, first.centres), "the seed has no effect"


def test_each_vector_gets_the_nearest_centre_also_far_from_zero() -> None:
    vectors, _ = blobs(offset=1000.0)
    clusters = fit_clusters(vectors, 5)
    distances = np.linalg.norm(vectors[:, None].astype(np.float64) - clusters.centres, axis=2)
    np.testing.assert_array_equal(clusters.assign(vectors), distances.argmin(axis=1))


def test_maps_of_features_become_pictures() -> None:
    clusters = Clusters(centres=np.eye(3, 4, dtype=np.float32))
    features = np.eye(4)[[[0, 1], [2, 0]]].astype(np.float16)
    np.testing.assert_array_equal(clusters.assign(features), [[0, 1], [2, 0]])
    np.testing.assert_array_equal(clusters.color(features), cluster_colors(3)[[[0, 1], [2, 0]]])


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_colours_differ(k: int) -> None:
    colors = cluster_colors(k).astype(int)
    assert colors.shape == (k, 3)
    distances = np.abs(colors[:, None] - colors).sum(axis=2)[~np.eye(k, dtype=bool)]
    assert (distances > 60).all()


def test_what_cannot_be_clustered_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got shape \(4, 8\) and k = 5"):
        fit_clusters(np.zeros((4, 8)), 5)
    with pytest.raises(ValueError, match="finite"):
        fit_clusters(np.full((4, 8), np.nan), 2)
    with pytest.raises(ValueError, match="expected features of 4 channels"):
        Clusters(centres=np.zeros((2, 4), np.float32)).assign(np.zeros((3, 5)))
