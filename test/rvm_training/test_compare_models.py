"""Encoders of a comparison by what the user calls them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rvm_core.checkpoint import save_checkpoint, weights_hash
from rvm_core.config import FourDSConfig, TRecViTConfig
from rvm_core.encoders import make_encoder
from rvm_core.fourds import FourDS
from rvm_core.tensor_file import CheckpointError
from rvm_core.trecvit import TRecViT
from rvm_training.compare_models import Source, folder_name, open_compared, with_unique_names

TINY = {"width": 32, "depth": 2, "heads": 2, "mlp_width": 48}


@pytest.fixture(autouse=True)
def no_fetched_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_checkpoint_of_rvm(tiny_path: Path) -> None:
    found = open_compared(str(tiny_path), Source())
    assert (found.kind, found.random, found.frames) == ("recurrent", False, 1)
    assert found.name == f"rvm_custom ({tiny_path.name})"
    assert isinstance(found.model, torch.nn.Module)
    assert found.parameters == sum(parameter.numel() for parameter in found.model.parameters())
    assert not any(name.startswith("decoder") for name, _ in found.model.named_parameters())


def test_rvm_without_memory(tiny_path: Path) -> None:
    found = open_compared(f"image:{tiny_path}", Source())
    assert found.kind == "image"
    assert found.name == f"rvm_custom_image ({tiny_path.name})"
    # The same weights make other features, so results must not be taken for each other's.
    recurrent = open_compared(str(tiny_path), Source())
    assert found.encoder.identity((32, 32)) != recurrent.encoder.identity((32, 32))


def test_checkpoints_of_trecvit_and_4ds(tmp_path: Path) -> None:
    recurrent = TRecViT(TRecViTConfig(**TINY, recurrent_width=32, recurrent_heads=2))
    clip = FourDS(FourDSConfig(**TINY, position_grid=(2, 4, 4)))
    for model, name, kind, frames in ((recurrent, "a", "recurrent", 1), (clip, "b", "clip", 4)):
        path = tmp_path / f"{name}.safetensors"
        save_checkpoint(model, path)
        found = open_compared(str(path), Source())
        assert (found.kind, found.frames, found.width) == (kind, frames, 32)
        assert found.encoder.identity((32, 32))["weights_hash"] == weights_hash(model)


def test_a_name_without_fetched_weights_is_random_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rvm_training.compare_models.make_encoder", lambda name: _small())
    for spec in ("rvm_s16", "random:rvm_s16", "trecvit_b16", "rvm_s16_image"):
        found = open_compared(spec, Source())
        assert found.random and found.encoder.random
        assert found.name == f"{spec.removeprefix('random:')} (random weights)"


def _small() -> TRecViT:
    return TRecViT(TRecViTConfig(**TINY, recurrent_width=32, recurrent_heads=2))


def test_a_name_means_its_fetched_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_path: Path) -> None:
    monkeypatch.setattr("rvm_training.compare_models.find_weights", lambda name: {"rvm_s16": tiny_path}[name])
    recurrent, image = (open_compared(spec, Source()) for spec in ("rvm_s16", "rvm_s16_image"))
    assert (recurrent.name, recurrent.random, recurrent.kind) == ("rvm_s16", False, "recurrent")
    assert (image.name, image.random, image.kind) == ("rvm_s16_image", False, "image")


def test_library_models_by_folder_or_random(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra rvm_perception[encoders] is not installed")
    config = transformers.Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=56)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "small")
    found = open_compared(f"dinov2:{tmp_path / 'small'}", Source())
    assert (found.kind, found.random, found.width, found.name) == ("image", False, 24, "dinov2 (small)")
    with pytest.raises(ValueError, match=r"dinov2:FOLDER, or random:dinov2"):
        open_compared("dinov2", Source())


def test_pixels_need_no_weights() -> None:
    found = open_compared("pixels", Source())
    assert (found.kind, found.model, found.parameters, found.random) == ("pixels", None, 0, False)


@pytest.mark.parametrize("spec", ["random:rvm_x", "no/such/file.npz", "image:no/such/file.npz"])
def test_what_there_is_not(spec: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match="unknown model|no checkpoint at"):
        open_compared(spec, Source())


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "notes.npz").write_text("not a checkpoint")
    with pytest.raises(CheckpointError):
        open_compared(str(tmp_path / "notes.npz"), Source())


def test_folders_and_names_are_unique() -> None:
    specs = ["rvm_s16", "a/b.npz", "a_b.npz", "dinov2:/x/y", "dinov2:/x:y"]
    names = [folder_name(spec) for spec in specs]
    assert len(set(names)) == len(names)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") for name in names)
    assert names[0] == "rvm_s16"
    assert with_unique_names(["m", "m", "n"], ["a", "b", "c"]) == ["m [a]", "m [b]", "n"]


def test_make_encoder_is_what_names_are_opened_with() -> None:
    with pytest.raises(ValueError, match="known models"):
        make_encoder("4ds_b16")
