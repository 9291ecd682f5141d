"""Tests of what is drawn at random. Seeds are fixed, so a test that passes passes always."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import chisquare, kstest

SIGNIFICANCE = 1e-3
"""A right draw would fail for one seed in a thousand; the seeds in use are not among these."""


def assert_uniform_counts(counts: npt.ArrayLike) -> None:
    """All places are as likely, by Pearson's chi-square test of how often each was drawn."""
    assert chisquare(np.asarray(counts, np.float64)).pvalue > SIGNIFICANCE, counts


def assert_counts(counts: npt.ArrayLike, shares: npt.ArrayLike) -> None:
    """Places are drawn with these probabilities, by the same test."""
    counts, shares = np.asarray(counts, np.float64), np.asarray(shares, np.float64)
    assert chisquare(counts, counts.sum() * shares / shares.sum()).pvalue > SIGNIFICANCE, counts


def assert_uniform(values: npt.ArrayLike, low: float, high: float) -> None:
    """Values are uniform in a range, by the test of Kolmogorov and Smirnov."""
    assert kstest(np.asarray(values), "uniform", args=(low, high - low)).pvalue > SIGNIFICANCE
