"""The scan against one step after the other."""

import pytest
import torch

from rvm_core.linear_scan import linear_scan

TOLERANCE = 1e-5
"""Between two orders of the same float32 sums."""


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8, 13, 16, 31])
def test_scan_is_the_recurrence(frames: int) -> None:
    generator = torch.Generator().manual_seed(frames)
    decay, increment = torch.rand(2, 3, frames, 5, generator=generator)
    initial = torch.randn(3, 5, generator=generator)
    hidden, expected = initial, []
    for t in range(frames):
        hidden = decay[:, t] * hidden + increment[:, t]
        expected.append(hidden)
    found = linear_scan(decay, increment, initial)
    assert (found - torch.stack(expected, dim=1)).abs().max() < TOLERANCE


def test_scan_has_gradients() -> None:
    decay = torch.rand(1, 6, 2, dtype=torch.float64, requires_grad=True)
    increment = torch.rand(1, 6, 2, dtype=torch.float64, requires_grad=True)
    initial = torch.rand(1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear_scan, (decay, increment, initial))
