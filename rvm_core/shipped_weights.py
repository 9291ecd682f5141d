"""Weights that come with this package: known by their sha256, so that a damaged or exchanged file is not run."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rvm_core.config import IMAGE_SUFFIX
from rvm_core.tensor_file import CheckpointError

SHIPPED: dict[str, str] = {
    "rvm_nano": "3f18c77eb0714872f660d50ccc190f4578b905b94161701e9940b4133a452e7a",
    "rvm_nano_boxes": "295ecf24bc5bc50a1298bc5124d4c237ff3d0562064039e9c399a47deb9db599",
    "rvm_nano_points": "bc3fd503b87ffc4e8a6e64fbb89fd996ff5065c96106c61b5107c5cb445eeba4",
}
"""sha256 of rvm_core/data/<name>.safetensors, by name: `sha256sum rvm_core/data/*.safetensors` tells them."""

FOLDER = Path(__file__).parent / "data"


def weights_or_shipped(weights: str, model: str) -> str:
    """`weights`, a name or path, or, where it is empty, the name of the weights that ship for the model, of which there
    may be a form without memory ("rvm_nano_image"); "" where none ship, so that random ones have to do."""
    shipped = model.removesuffix(IMAGE_SUFFIX)
    return weights or (shipped if shipped in SHIPPED else "")


def shipped_weights(name: str) -> Path:
    """The file of shipped weights, checked.

    Raises `CheckpointError` if it is not there or is not the one that was shipped; `KeyError` for another name.
    """
    expected = SHIPPED[name]
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise CheckpointError(path, f"the weights {name} are missing here: install rvm_perception again")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise CheckpointError(
            path, f"expected the shipped weights with sha256 {expected}, found {found}: install rvm_perception again"
        )
    return path
