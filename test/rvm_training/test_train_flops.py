"""The analytic count of a training step against what torch counts while it runs one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain_examples import as_torch, random_batch, tiny_clip_config, tiny_config
from rvm_training.objective import loss
from rvm_training.pretrain_config import PretrainConfig, SamplingConfig
from rvm_training.pretrain_model import build_model
from rvm_training.train_flops import train_flops

STATE_OF_ZEROS = 0.01
"""torch saves the gradient of the first state, which the formula counts as that of any other."""


def counted(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> int:
    # Positions for another size are made with products too, but only once.
    monkeypatch.setattr("rvm_core.encoder.resize_grid", lambda table, rows, cols: table.new_zeros(rows, cols, 1))
    model, batch = build_model(config, seed=0), as_torch(random_batch(config))
    # The counter knows matrix products; a fused attention would hide its own.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss(model, batch).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("aggregator", ["core", "self_attention"])
@pytest.mark.parametrize("source_frames", [1, 2, 4])
def test_as_torch_counts(aggregator: str, source_frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SamplingConfig(image_size=48, source_frames=source_frames, targets=3, mask_ratio=0.6)
    config = tiny_config(aggregator=aggregator, sampling=sampling)
    assert train_flops(config) == pytest.approx(counted(config, monkeypatch), rel=STATE_OF_ZEROS)


@pytest.mark.parametrize("objective", ["trecvit_mae", "4ds_mae"])
def test_masked_autoencoders_as_torch_counts(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_clip_config(objective)
    assert train_flops(config) == counted(config, monkeypatch)


def test_a_step_of_twice_the_batch_takes_twice_as_much() -> None:
    config = tiny_config()
    assert train_flops(dataclasses.replace(config, batch_size=16)) == 2 * train_flops(config)


def test_no_hidden_fused_attention() -> None:
    """The check itself sees the products of attention."""
    x = torch.zeros(1, 2, 8, 4)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        torch.nn.functional.scaled_dot_product_attention(x, x, x)
    assert counter.get_total_flops() == 2 * (2 * 2 * 8 * 8 * 4)
