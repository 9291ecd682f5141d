"""What the tests of rvm_training share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


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
