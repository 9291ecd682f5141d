"""A tiny pretraining configuration and random batches for it, shared by tests of the training step."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from rvm_core.config import DecoderConfig, RVMConfig
from rvm_training.objective import PretrainBatch
from rvm_training.pretrain_config import OptimizerConfig, PretrainConfig, SamplingConfig


def tiny_config(**changes: Any) -> PretrainConfig:
    """Without a loop over layers and without rematerialisation, in float32, unless `changes` say otherwise."""
    decoder = DecoderConfig(width=32, depth=2, num_heads=2, mlp_width=64)
    model = RVMConfig(
        width=64,
        encoder_depth=2,
        encoder_heads=4,
        encoder_mlp_width=256,
        core_depth=1,
        core_heads=2,
        core_mlp_width=128,
        decoder=decoder,
    )
    values = {
        "model": model,
        "sampling": SamplingConfig(image_size=48, source_frames=2, targets=3, mask_ratio=0.6),
        "optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=2, steps=20, clip_norm=0.5),
        "batch_size": 8,
        "compute_dtype": "float32",
        "remat": False,
        "scan_layers": False,
    }
    return dataclasses.replace(PretrainConfig(**values), **changes)  # type: ignore[arg-type]


def random_batch(config: PretrainConfig, seed: int = 0) -> PretrainBatch:
    """Of numpy arrays."""
    random = np.random.default_rng(seed)
    sampling, batch = config.sampling, config.batch_size
    frame = (sampling.image_size, sampling.image_size, 3)
    places = np.argsort(random.random((batch, sampling.targets, sampling.patches)))[..., : sampling.visible]
    return PretrainBatch(
        random.integers(0, 256, (batch, sampling.source_frames, *frame), dtype=np.uint8),
        random.integers(0, 256, (batch, sampling.targets, *frame), dtype=np.uint8),
        random.integers(sampling.min_gap, sampling.max_gap + 1, (batch, sampling.targets), dtype=np.int32),
        np.sort(places).astype(np.int32),
    )


def as_torch(batch: PretrainBatch) -> PretrainBatch:
    return PretrainBatch(*map(torch.from_numpy, batch))
