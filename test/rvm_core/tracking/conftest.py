"""The reference of label propagation; test/data/README.md says where it comes from."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def golden(data_folder: Path) -> Mapping[str, np.ndarray]:
    """What the release's own code computes for a mask and for joints on random features."""
    with np.load(data_folder / "label_propagation.npz") as file:
        return dict(file)
