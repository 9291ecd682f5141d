"""The order of examples: a permutation in every epoch, datasets by weight, the same however it is asked for."""

from __future__ import annotations

import numpy as np
import pytest

from distributions import assert_counts, assert_uniform_counts
from rvm_training.data.mixture import Mixture, permute


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097])
def test_permute_is_a_permutation(length: int) -> None:
    order = permute(np.arange(length), length, (7,))
    np.testing.assert_array_equal(np.sort(order), np.arange(length))


def test_a_place_of_a_huge_permutation_needs_no_table() -> None:
    length = 10**12 + 7
    places = np.random.default_rng(0).integers(0, length, 5000)
    order = permute(places, length, (1,))
    assert len(np.unique(order)) == len(np.unique(places)) and order.min() >= 0 and order.max() < length
    assert_uniform_counts(np.histogram(order, bins=20, range=(0, length))[0])


@pytest.mark.parametrize("length", [5, 12])
def test_every_element_comes_to_every_place_as_often(length: int) -> None:
    orders = np.stack([permute(np.arange(length), length, (seed,)) for seed in range(600)])
    for place in range(length):
        assert_uniform_counts(np.bincount(orders[:, place], minlength=length))


def test_neighbours_are_as_random_as_others() -> None:
    orders = np.stack([permute(np.arange(6), 6, (seed, 3)) for seed in range(900)])
    pairs = np.bincount(orders[:, 2] * 6 + orders[:, 3], minlength=36).reshape(6, 6)
    assert (np.diag(pairs) == 0).all()
    assert_uniform_counts(pairs[~np.eye(6, dtype=bool)])


def test_orders_of_seeds_epochs_and_datasets_differ() -> None:
    orders = {
        tuple(permute(np.arange(20), 20, seed)) for seed in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)]
    }
    assert len(orders) == 5


def test_each_clip_comes_once_in_an_epoch_of_its_dataset() -> None:
    mixture = Mixture([10, 3], [0.5, 0.5], (0,))
    datasets, clips = mixture.take(500)
    for dataset, length in enumerate((10, 3)):
        mine = clips[datasets == dataset]
        for epoch in range(len(mine) // length):
            assert sorted(mine[epoch * length : (epoch + 1) * length]) == list(range(length))
        assert len({tuple(mine[e * length : (e + 1) * length]) for e in range(6)}) > 1
    assert mixture.taken.tolist() == [(datasets == 0).sum(), (datasets == 1).sum()] and mixture.examples == 500


def test_datasets_are_drawn_by_weight() -> None:
    datasets, _ = Mixture([9999, 9999, 9999], [2, 1, 5], (0,)).take(20_000)
    assert_counts(np.bincount(datasets), [2, 1, 5])
    # One after the other they are independent.
    assert_counts(np.bincount(datasets[:-1] * 3 + datasets[1:]), np.outer([2, 1, 5], [2, 1, 5]).ravel())


@pytest.mark.parametrize("parts", [[100], [1] * 100, [7, 13, 80], [50, 50]])
def test_the_order_does_not_depend_on_how_much_is_taken_at_a_time(parts: list[int]) -> None:
    whole = np.stack(Mixture([10, 3], [0.3, 0.7], (4, 2)).take(100))
    mixture = Mixture([10, 3], [0.3, 0.7], (4, 2))
    np.testing.assert_array_equal(np.concatenate([np.stack(mixture.take(part)) for part in parts], axis=1), whole)


def test_it_goes_on_from_its_state() -> None:
    first = Mixture([10, 3], [0.3, 0.7], (4,))
    first.take(33)
    second = Mixture([10, 3], [0.3, 0.7], (4,))
    second.examples, second.taken = first.examples, first.taken.copy()
    np.testing.assert_array_equal(first.take(50), second.take(50))


@pytest.mark.parametrize(("lengths", "weights"), [([], []), ([0], [1.0]), ([3, 0], [1.0, 1.0]), ([3], [1.0, 2.0])])
def test_datasets_that_give_nothing_are_refused(lengths: list[int], weights: list[float]) -> None:
    with pytest.raises(ValueError, match="at least a clip each"):
        Mixture(lengths, weights, (0,))
