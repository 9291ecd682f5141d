"""The reference readouts and heads of test/data."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"

TOLERANCE = 1e-4
"""Between float32 results of the release's code and ours; they differ by 2e-6 through the order of sums."""


class Reference(NamedTuple):
    """What one file holds."""

    params: dict[str, np.ndarray]
    """By the release's names."""
    tensors: dict[str, Tensor]
    """Inputs and outputs."""


def load_reference(name: str) -> Reference:
    """The file `name`.npz of test/data."""
    with np.load(DATA / f"{name}.npz") as file:
        arrays = dict(file)
    params = {key.removeprefix("param:"): value for key, value in arrays.items() if key.startswith("param:")}
    others = {key: torch.from_numpy(value) for key, value in arrays.items() if not key.startswith("param:")}
    return Reference(params, others)


def write_release(name: str, folder: Path) -> Path:
    """The parameters of the file `name`.npz of test/data as the release stores them."""
    path = folder / f"{name}.npz"
    np.savez(path, **load_reference(name).params)  # type: ignore[arg-type]
    return path
