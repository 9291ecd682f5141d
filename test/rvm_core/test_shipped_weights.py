"""Weights that come with the package."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from rvm_core import CheckpointError, load_checkpoint, shipped_weights
from rvm_core.readout_checkpoint import load_readout
from rvm_core.weights import find_weights


def test_every_shipped_file_is_known_and_sound() -> None:
    files = {path.stem for path in shipped_weights.FOLDER.glob("*.safetensors")}
    assert files == shipped_weights.SHIPPED.keys()
    for name in files:
        load_readout(find_weights(name)) if name.endswith(("_points", "_boxes")) else load_checkpoint(
            find_weights(name)
        )


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(b"weights")
    monkeypatch.setattr(shipped_weights, "FOLDER", tmp_path)
    monkeypatch.setitem(shipped_weights.SHIPPED, "tiny", hashlib.sha256(b"weights").hexdigest())
    return path


def test_shipped_weights_are_found_by_name(shipped: Path) -> None:
    assert find_weights("tiny") == shipped


@pytest.mark.parametrize("content", [b"Weights", b"", b"weights\n"])
def test_changed_weights_are_refused(shipped: Path, content: bytes) -> None:
    shipped.write_bytes(content)
    with pytest.raises(CheckpointError, match="sha256 .* install rvm_perception again"):
        find_weights("tiny")


def test_missing_weights_are_told(shipped: Path) -> None:
    shipped.unlink()
    with pytest.raises(CheckpointError, match="tiny are missing"):
        find_weights("tiny")


def test_names_are_listed(shipped: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tiny, rvm_s16"):
        find_weights("rvm_x16")
