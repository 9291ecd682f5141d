"""4DS against the release: tokens, features, what readouts look at, and depth."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from readout_data import Reference, load_reference, write_release
from rvm_core.checkpoint import load_fourds, read_info, save_checkpoint, weights_hash
from rvm_core.config import FOURDS_SIZES, FourDSConfig
from rvm_core.fourds import FourDS, windows
from rvm_core.readout_checkpoint import load_readout

TOLERANCE = 2e-5
"""Between float32 results of the release's code and ours, which differ by 5e-6 through the order of sums."""


@pytest.fixture(scope="module")
def reference() -> Reference:
    return load_reference("fourds_tiny")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release("fourds_tiny", tmp_path_factory.mktemp("fourds"))


@pytest.fixture(scope="module")
def model(path: Path) -> FourDS:
    return load_fourds(path)


@pytest.fixture(scope="module")
def clip(reference: Reference) -> Tensor:
    """(1, T, 3, H, W) in [0, 1]."""
    return (reference.tensors["frames"].permute(0, 3, 1, 2) / 255)[None]


def largest(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


@torch.inference_mode()
def test_last_features_match_the_release(model: FourDS, clip: Tensor, reference: Reference) -> None:
    """The last of the release's list is what enters the last block."""
    features = model.encode(model.tokenize(clip), blocks=model.config.depth - 1)
    assert largest(features[0], reference.tensors["last_features"]) < TOLERANCE


@torch.inference_mode()
def test_readout_features_match_the_release(model: FourDS, clip: Tensor, reference: Reference) -> None:
    assert largest(model(clip)[0], reference.tensors["readout_features"]) < TOLERANCE


@torch.inference_mode()
def test_depth_matches_the_release(model: FourDS, clip: Tensor, path: Path, reference: Reference) -> None:
    """The encoder and the readout are in one file, as those of the ScanNet release are."""
    depth = load_readout(path, kind="depth")
    assert largest(depth(model(clip))[0], reference.tensors["depth"]) < TOLERANCE


def test_sizes_are_inferred(path: Path, model: FourDS) -> None:
    assert model.config == FourDSConfig(width=64, depth=5, heads=4, mlp_width=128, position_grid=(8, 4, 4))
    assert model.config.frames == 16
    info = read_info(path)
    assert info.config == model.config
    # Without the readout that lies in the same file.
    assert sum(info.parameters.values()) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("prefix", ["params/", "", "params/layers_0/"])
def test_encoder_alone_is_found_under_any_prefix(prefix: str, model: FourDS, tmp_path: Path) -> None:
    import numpy as np

    old = "params/layers_0/"
    params = {
        prefix + name.removeprefix(old): value
        for name, value in load_reference("fourds_tiny").params.items()
        if name.startswith(old)
    }
    np.savez(tmp_path / "alone.npz", **params)  # type: ignore[arg-type]
    assert weights_hash(load_fourds(tmp_path / "alone.npz")) == weights_hash(model)


@pytest.mark.parametrize("name", ["saved.npz", "saved.safetensors"])
def test_saved_model_is_the_same(model: FourDS, tmp_path: Path, name: str) -> None:
    save_checkpoint(model, tmp_path / name)
    again = load_fourds(tmp_path / name)
    assert again.config == model.config
    assert weights_hash(again) == weights_hash(model)


@torch.inference_mode()
def test_other_sizes_resize_the_positions(model: FourDS) -> None:
    clip = torch.rand(1, 16, 3, 48, 96, generator=torch.Generator().manual_seed(0))
    features = model(clip)
    assert features.shape == (1, 16, 18, 64)
    with pytest.raises(ValueError, match="multiples of 16"):
        model(clip[..., :90])


def test_other_lengths_are_refused(model: FourDS, clip: Tensor) -> None:
    with pytest.raises(ValueError, match="clips of 16 frames, got 15"):
        model(clip[:, :15])


def test_last_window_is_filled_with_zeros() -> None:
    video = torch.arange(1, 22).float()
    found = list(windows(video, 16))
    assert [real for _, real in found] == [16, 5]
    assert torch.equal(torch.cat([clip[:real] for clip, real in found]), video)
    assert found[1][0].shape == (16,) and not found[1][0][5:].any()


@pytest.mark.parametrize(("name", "millions"), [("4ds_b16", 88), ("4ds_e16", 3800)])
def test_named_sizes_have_the_published_number_of_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = FourDS(FourDSConfig.named(name), seed=None)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(millions * 1e6, rel=0.02)
    assert model.config.name == name


def test_unknown_names_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=", ".join(FOURDS_SIZES)):
        FourDSConfig.named("4ds_x")
    with pytest.raises(ValueError, match="position_grid must be positive"):
        FourDSConfig(width=8, depth=1, heads=2, mlp_width=8, position_grid=(0, 1, 1))


def test_random_model_is_the_seed() -> None:
    config = FourDSConfig(width=8, depth=1, heads=2, mlp_width=8, position_grid=(1, 2, 2))
    first, again, other = (FourDS(config, seed=seed) for seed in (1, 1, 2))
    assert weights_hash(first) == weights_hash(again) != weights_hash(other)
