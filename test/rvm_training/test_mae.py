"""TRecViT and 4DS as masked autoencoders, in torch: what is seen and decoded, and what is left when it is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain_examples import as_torch, random_batch, tiny_clip_config
from rvm_core.checkpoint import load_encoder, load_fourds, save_checkpoint, weights_hash
from rvm_core.fourds import FourDS
from rvm_core.trecvit import TRecViT
from rvm_training import objective
from rvm_training.fourds_mae import TubeletMAE
from rvm_training.pretrain_config import ConfigError, PretrainConfig, from_dict, to_dict
from rvm_training.pretrain_model import build_model
from rvm_training.trecvit_mae import TubeMAE

OBJECTIVES = ("trecvit_mae", "4ds_mae")
SAME = 1e-5
"""float32 sums in another order."""


def frames_and_visible(kind: str, batch: int = 2) -> tuple[Tensor, Tensor]:
    example = as_torch(random_batch(tiny_clip_config(kind, batch_size=batch)))
    return objective.to_unit(example.frames), example.visible.long()


def paint_over(frames: Tensor, kind: str, visible: Tensor) -> Tensor:
    """Other pixels in all hidden places."""
    other = torch.rand(frames.shape, generator=torch.Generator().manual_seed(9))
    slabs = frames.shape[1] if kind == "trecvit_mae" else 2
    shown = torch.zeros(len(frames), slabs, 9, dtype=torch.bool)
    for row, places in zip(shown, visible, strict=True):
        if kind == "trecvit_mae":
            row[:, places] = True
        else:
            row.view(-1)[places] = True
    pixels = shown.unflatten(2, (3, 3)).repeat_interleave(16, 2).repeat_interleave(16, 3)
    return torch.where(pixels.repeat_interleave(frames.shape[1] // slabs, 1).unsqueeze(2), frames, other)


@pytest.mark.parametrize("kind", OBJECTIVES)
@torch.inference_mode()
def test_hidden_pixels_are_not_seen(kind: str) -> None:
    model = build_model(tiny_clip_config(kind), seed=0)
    frames, visible = frames_and_visible(kind)
    pixels = model.reconstruct(frames, visible)
    assert pixels.shape == frames.shape
    torch.testing.assert_close(model.reconstruct(paint_over(frames, kind, visible), visible), pixels, rtol=0, atol=SAME)
    assert not torch.allclose(model.reconstruct(1 - frames, visible), pixels, atol=0.01), "nothing is seen at all"


@torch.inference_mode()
def test_tubes_are_encoded_as_the_streaming_encoder_does() -> None:
    config = tiny_clip_config("trecvit_mae")
    model = build_model(config, seed=0)
    assert isinstance(model, TubeMAE)
    frames, visible = frames_and_visible("trecvit_mae")
    seen: list[Tensor] = []
    model.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.reconstruct(frames, visible)
    encoder = model.pretrained()
    tokens = encoder.tokenizer(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
    shown = torch.stack([clip[:, places] for clip, places in zip(tokens, visible, strict=True)])
    state = encoder.empty_state(len(frames), visible.shape[1])
    for step in range(frames.shape[1]):
        features, state = encoder.encode(shown[:, step : step + 1], state)
        torch.testing.assert_close(features[:, 0], seen[0][:, step], rtol=0, atol=SAME)


@torch.inference_mode()
def test_last_blocks_of_4ds_decode() -> None:
    """With all tubelets visible, and the places of mask tokens taken, the features are those of the whole model."""
    model = build_model(tiny_clip_config("4ds_mae"), seed=0)
    assert isinstance(model, TubeletMAE) and len(model.encoder.blocks) == 2 and len(model.decoder.blocks) == 1
    frames, _ = frames_and_visible("4ds_mae")
    seen: list[Tensor] = []
    model.decoder.output_norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.reconstruct(frames, torch.arange(18).expand(2, -1))
    whole = model.pretrained()
    torch.testing.assert_close(seen[0], whole.encode(whole.tokenize(frames)), rtol=0, atol=SAME)


@pytest.mark.parametrize(("kind", "single"), [("trecvit_mae", TRecViT), ("4ds_mae", FourDS)])
def test_a_seed_gives_the_weights_of_the_plain_model(kind: str, single: Any, tmp_path: Path) -> None:
    config = tiny_clip_config(kind, seed=5)
    pretrained = build_model(config, seed=5).pretrained()
    expected = single(pretrained.config, seed=5)
    assert type(pretrained) is single and weights_hash(pretrained) == weights_hash(expected)
    assert not pretrained.training
    for suffix in (".npz", ".safetensors"):
        save_checkpoint(pretrained, tmp_path / f"model{suffix}")
        load = load_encoder if single is TRecViT else load_fourds
        assert weights_hash(load(tmp_path / f"model{suffix}")) == weights_hash(expected)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_loss_falls_on_a_few_clips(kind: str) -> None:
    config = tiny_clip_config(kind)
    model = build_model(config, seed=0)
    batch = random_batch(config)
    # Every clip a colour of its own, which changes with time: to be read off the few visible patches.
    colours = np.random.default_rng(1).integers(40, 200, (4, 1, 1, 1, 3))
    batch.frames[:] = colours + 10 * np.arange(4).reshape(1, 4, 1, 1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = objective.loss(model, as_torch(batch))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_configurations_through_plain_values() -> None:
    for kind in OBJECTIVES:
        config = tiny_clip_config(kind)
        assert from_dict(PretrainConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("trecvit_mae", {"objective": "4ds_mae"}, "model lacks|unknown keys decoder"),
        ("trecvit_mae", {"objective": "rvm"}, "model has unknown keys encoder"),
        ("trecvit_mae", {"objective": "mae"}, "objective must be one of rvm, trecvit_mae, 4ds_mae, got 'mae'"),
        ("trecvit_mae", {"aggregator": "self_attention"}, "aggregator must be core for trecvit_mae"),
        ("trecvit_mae", {"sampling": {"mask": "tubelets"}}, "mask must be tubes for trecvit_mae"),
        ("4ds_mae", {"sampling": {"mask": "tubes", "frames": 4}}, "mask must be tubelets for 4ds_mae"),
        ("4ds_mae", {"sampling": {"mask": "tubelets", "frames": 6}}, "frames must be the 4 of the encoder's window"),
        ("4ds_mae", {"sampling": {"mask": "tubelets", "frames": 5}}, "frames must be a multiple of 2 for tubelets"),
        ("4ds_mae", {"sampling": {"source_frames": 4}}, "sampling has unknown keys source_frames"),
    ],
)
def test_what_does_not_belong_together_is_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(PretrainConfig, to_dict(tiny_clip_config(kind)) | changes)


def test_missing_sampling_is_explained() -> None:
    values = to_dict(tiny_clip_config("4ds_mae"))
    del values["sampling"]
    with pytest.raises(ConfigError, match="sampling must be a ClipSamplingConfig for 4ds_mae"):
        from_dict(PretrainConfig, values)
