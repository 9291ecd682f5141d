"""Position tables and their resize against jax.image.resize."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rvm_core.position import resize_grid, sincos_table

RESIZE_TOLERANCE = 1e-5
"""On values up to 4, float32 weights computed in another order differ from jax's by 2e-6."""

CASES = ["grow", "shrink", "grow_and_shrink", "large", "shrink_to_one", "one_axis", "not_square", "identity"]


@pytest.mark.parametrize("case", CASES)
def test_resize_matches_jax(data_folder: Path, case: str) -> None:
    with np.load(data_folder / "resize_reference.npz") as file:
        grid, reference = file[f"{case}_in"], file[f"{case}_out"]
    resized = resize_grid(torch.from_numpy(grid), *reference.shape[:2])
    assert resized.shape == reference.shape
    np.testing.assert_allclose(resized.numpy(), reference, rtol=0, atol=RESIZE_TOLERANCE)


def test_same_size_is_left_as_it_is() -> None:
    grid = torch.rand(16, 16, 4)
    assert torch.equal(resize_grid(grid, 16, 16), grid)


@pytest.mark.parametrize(("rows", "cols"), [(5, 40), (31, 2)])
def test_constant_stays_constant(rows: int, cols: int) -> None:
    resized = resize_grid(torch.full((16, 16, 2), 3.0), rows, cols)
    torch.testing.assert_close(resized, torch.full((rows, cols, 2), 3.0), rtol=0, atol=RESIZE_TOLERANCE)


def test_torch_bicubic_would_not_do(data_folder: Path) -> None:
    """The reference tells the two kernels apart, so the parity above means something."""
    with np.load(data_folder / "resize_reference.npz") as file:
        grid, reference = torch.from_numpy(file["grow_in"]), file["grow_out"]
    planes = grid.permute(2, 0, 1)[None]
    other = torch.nn.functional.interpolate(planes, size=reference.shape[:2], mode="bicubic")[0].permute(1, 2, 0)
    assert np.abs(other.numpy() - reference).max() > 100 * RESIZE_TOLERANCE


def test_table_is_sine_and_cosine_by_channel() -> None:
    table = sincos_table(5, 6)
    assert table.shape == (5, 6)
    assert table.dtype == torch.float32
    for position in range(5):
        for channel in range(6):
            angle = position / 10000 ** (2 * (channel // 2) / 6)
            value = math.cos(angle) if channel % 2 else math.sin(angle)
            assert float(table[position, channel]) == pytest.approx(value, abs=1e-7)
