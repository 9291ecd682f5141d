"""A linear recurrence over time as an associative scan: its depth grows with the logarithm of the number of frames."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_scan(decay: Tensor, increment: Tensor, initial: Tensor) -> Tensor:
    """h[t] = decay[t] * h[t-1] + increment[t] with h[-1] = initial, for all t at once.

    decay and increment (B, T, ...); initial (B, ...). Returns (B, T, ...). Takes about twice as many products as one
    frame after the other, in 2 log T steps instead of T (Blelloch 1990).
    """
    first = increment[:, :1] + decay[:, :1] * initial.unsqueeze(1)
    return _scan(decay, torch.cat([first, increment[:, 1:]], dim=1) if increment.shape[1] > 1 else first)


def _scan(decay: Tensor, increment: Tensor) -> Tensor:
    frames = increment.shape[1]
    if frames == 1:
        return increment
    even = slice(0, frames // 2 * 2, 2)
    # Two frames at a time are one step of a recurrence half as long, which gives the odd frames.
    odd = _scan(decay[:, 1::2] * decay[:, even], decay[:, 1::2] * increment[:, even] + increment[:, 1::2])
    before = odd[:, : (frames - 1) // 2]
    later = decay[:, 2::2] * before + increment[:, 2::2]
    evens = torch.cat([increment[:, :1], later], dim=1)
    pairs = torch.stack([evens[:, : frames // 2], odd], dim=2).flatten(1, 2)
    return pairs if frames % 2 == 0 else torch.cat([pairs, evens[:, -1:]], dim=1)
