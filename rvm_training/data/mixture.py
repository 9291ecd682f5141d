"""The order of examples: which clip of which dataset comes when, without lists as long as the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]

_ROUNDS = 8


class Mixture:
    """Draws datasets by weight, and takes the clips of each in a random order, all before any comes again.

    The order depends on the seed, the weights and the numbers of clips, not on how it is asked for.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: Sequence[int]) -> None:
        """Raises `ValueError` if there is no dataset, or one is empty."""
        if not lengths or min(lengths) < 1 or len(lengths) != len(weights):
            raise ValueError(f"expected datasets with at least a clip each, got {list(lengths)}")
        self._lengths, self._seed = list(lengths), tuple(seed)
        shares = np.asarray(weights, np.float64)
        self._edges = np.cumsum(shares / shares.sum())[:-1]
        self.taken = np.zeros(len(lengths), np.int64)
        """(D,): how many examples of each dataset have been given out."""
        self.examples = 0
        """How many examples in all; with `taken` it is all of the state."""

    def take(self, count: int) -> tuple[IntArray, IntArray]:
        """The next examples: datasets (count,) and numbers of their clips (count,)."""
        datasets = np.searchsorted(self._edges, self._uniform(count), side="right")
        clips = np.empty(count, np.int64)
        for dataset, length in enumerate(self._lengths):
            chosen = datasets == dataset
            number = int(chosen.sum())
            clips[chosen] = self._clips(dataset, length, self.taken[dataset] + np.arange(number))
            self.taken[dataset] += number
        self.examples += count
        return datasets, clips

    def _uniform(self, count: int) -> npt.NDArray[np.float64]:
        """(count,) in [0, 1), by the numbers of the examples."""
        numbers = np.arange(self.examples, self.examples + count, dtype=np.uint64)
        (key,) = _keys((*self._seed, 0), 1)
        return np.asarray((_hash(_hash(numbers + key)) >> np.uint64(11)) * 2.0**-53, np.float64)

    def _clips(self, dataset: int, length: int, places: IntArray) -> IntArray:
        epochs, inside = np.divmod(places, length)
        clips = np.empty_like(places)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            clips[now] = permute(inside[now], length, (*self._seed, 1, dataset, int(epoch)))
        return clips


def permute(places: IntArray, length: int, seed: Sequence[int]) -> IntArray:
    """What stands at these places in the random order of 0 to length - 1 that belongs to a seed.

    A Feistel network over the next power of four, walked until it is below `length`: no table of the order is needed.
    """
    half = np.uint64(max(1, (max(length - 1, 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = _keys(seed, _ROUNDS)
    result = places.astype(np.uint64)
    todo = np.arange(len(result))
    while len(todo):
        left, right = result[todo] >> half, result[todo] & mask
        for key in keys:
            left, right = right, left ^ (_hash(right + key) & mask)
        result[todo] = left << half | right
        todo = todo[result[todo] >= length]
    return result.astype(np.int64)


def _keys(seed: Sequence[int], count: int) -> npt.NDArray[np.uint64]:
    return np.asarray(np.random.SeedSequence(list(seed)).generate_state(count, np.uint64), np.uint64)


def _hash(values: UInt64Array) -> UInt64Array:
    """The finaliser of SplitMix64: every bit of a value changes each bit of its hash half of the times."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)
