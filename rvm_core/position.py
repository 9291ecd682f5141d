"""Fixed sin-cos position tables and their bicubic resize, in plain torch operations so that every tracer sees them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BASE_GRID = 16
"""Rows and columns of the grid that the encoder's table is made for; other grids resize it."""

_CUBIC_A = -0.5
_EPS = 1000 * float(np.finfo(np.float32).eps)


def sincos_table(positions: int, width: int) -> Tensor:
    """The one-dimensional table of the MAE family, float32 (positions, width): even channels sin, odd channels cos."""
    channel = np.arange(width)
    angle = np.arange(positions)[:, None] / np.power(10000.0, 2 * (channel // 2) / width)
    return torch.from_numpy(np.where(channel % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32))


def resize_grid(grid: Tensor, rows: int, cols: int) -> Tensor:
    """Bicubic resize of float32 (h, w, D) to (rows, cols, D), equal to `jax.image.resize(..., method="bicubic")`.

    Keys' kernel with a = -0.5, half-pixel centres, widened when shrinking (antialiasing), weights renormalised at the
    borders. torch's own bicubic differs (a = -0.75, clamped borders).
    """
    h, w, _ = grid.shape
    if rows != h:
        grid = torch.einsum("rh,hwd->rwd", _resize_weights(h, rows, grid), grid)
    if cols != w:
        grid = torch.einsum("cw,rwd->rcd", _resize_weights(w, cols, grid), grid)
    return grid


def resize_axis(values: Tensor, dim: int, size: int) -> Tensor:
    """The same along one axis of any tensor."""
    if values.shape[dim] == size:
        return values
    weights = _resize_weights(values.shape[dim], size, values)
    return torch.tensordot(values.movedim(dim, -1), weights, dims=([-1], [1])).movedim(-1, dim)


def _resize_weights(size: int, new_size: int, like: Tensor) -> Tensor:
    """(new_size, size): row i holds the weights of the input samples in output sample i."""
    step = size / new_size
    at = (torch.arange(new_size, device=like.device, dtype=like.dtype) + 0.5) * step - 0.5
    distance = (at[:, None] - torch.arange(size, device=like.device, dtype=like.dtype)).abs() / max(step, 1.0)
    weights = _keys_cubic(distance)
    total = weights.sum(dim=1, keepdim=True)
    return torch.where(total.abs() > _EPS, weights / total, torch.zeros_like(weights))


def _keys_cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel at distances x >= 0."""
    a = _CUBIC_A
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
