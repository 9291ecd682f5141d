"""What the tests of rvm_training share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Where libtpu is installed without a TPU, looking for one takes time and prints errors.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tiny steps take far longer to compile than to run.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models are no faster on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_path() -> Path:
    """A tiny RVM in the release's checkpoint format; its weights are random."""
    return Path(__file__).parents[1] / "data" / "rvm_tiny_official_format.npz"
