"""Depth of videos of any length by windows."""

from pathlib import Path

import numpy as np
import pytest

from readout_data import load_reference, write_release
from rvm_core import CheckpointError
from rvm_core.checkpoint import load_fourds
from rvm_core.clip_depth import ClipDepth
from rvm_core.heads import DepthHead, DepthHeadConfig

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release("fourds_tiny", tmp_path_factory.mktemp("depth"))


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return list(load_reference("fourds_tiny").tensors["frames"].numpy())


def test_window_matches_the_release(path: Path, images: list[np.ndarray]) -> None:
    depth = ClipDepth.load(path)
    assert (depth.frames, depth.image_size, depth.model) == (16, (64, 64), "4ds_custom")
    expected = load_reference("fourds_tiny").tensors["depth"][..., 0].numpy()
    assert np.abs(np.stack(depth(images)) - expected).max() < TOLERANCE


def test_last_window_is_filled_up(path: Path, images: list[np.ndarray]) -> None:
    depth = ClipDepth.load(path)
    found = depth(images + images[:3])
    assert len(found) == 19
    assert np.abs(np.stack(found[:16]) - np.stack(depth(images))).max() < TOLERANCE
    black = [np.zeros_like(images[0])] * 13
    assert np.abs(np.stack(found[16:]) - np.stack(depth(images[:3] + black)[:3])).max() < TOLERANCE
    assert depth([]) == []


def test_wrong_images_and_parts_are_refused(path: Path, images: list[np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected images \(64, 64, 3\), got \(32, 64, 3\)"):
        ClipDepth.load(path)([images[0][:32]])
    params = load_reference("fourds_tiny").params
    encoder = {name: value for name, value in params.items() if "layers_2" not in name.split("/")[1]}
    np.savez(tmp_path / "encoder.npz", **encoder)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="no sound depth readout"):
        ClipDepth.load(tmp_path / "encoder.npz")
    assert ClipDepth.load(tmp_path / "encoder.npz", path).frames == 16
    with pytest.raises(ValueError, match="readout is for 16 frames of 32 channels, the encoder gives 16 of 64"):
        head = DepthHead(DepthHeadConfig(features=32, image_size=(16, 16), channels=16, num_heads=2))
        ClipDepth(load_fourds(path), head)
