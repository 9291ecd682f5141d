"""Reference weights and tensors shared by the tests of rvm_core; test/data/README.md says where they come from."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from rvm_core import RVM, load_checkpoint


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models are no faster on several threads, and a hundred times slower where these share their cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    return Path(__file__).parents[1] / "data"


@pytest.fixture(scope="session")
def tiny_path(data_folder: Path) -> Path:
    """A tiny RVM in the release's checkpoint format."""
    return data_folder / "rvm_tiny_official_format.npz"


@pytest.fixture(scope="session")
def tiny_model(tiny_path: Path) -> RVM:
    """Its model, with decoder. Tests leave it as it is."""
    return load_checkpoint(tiny_path, decoder=True)


@pytest.fixture(scope="session")
def expected(data_folder: Path) -> Mapping[str, np.ndarray]:
    """What the release's own code computes with these weights."""
    with np.load(data_folder / "rvm_tiny_expected.npz") as file:
        return dict(file)
