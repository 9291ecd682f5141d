"""A tiny pretraining configuration and random batches for it, shared by tests of the training step."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from rvm_core.config import DecoderConfig, FourDSConfig, RVMConfig, TRecViTConfig
from rvm_training.data.sampling import draw_visible
from rvm_training.mae_config import TubeDecoderConfig, TubeletMAEConfig, TubeMAEConfig
from rvm_training.pretrain_batch import ClipBatch, PretrainBatch, batch_layout, batch_like
from rvm_training.pretrain_config import ClipSamplingConfig, OptimizerConfig, PretrainConfig, SamplingConfig


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


def tiny_clip_config(objective: str, **changes: Any) -> PretrainConfig:
    """The same for "trecvit_mae" or "4ds_mae"; positions need no resize."""
    model: Any
    if objective == "trecvit_mae":
        encoder = TRecViTConfig(
            width=16, depth=2, heads=2, mlp_width=32, recurrent_width=32, recurrent_heads=2, position_grid=3
        )
        decoder = TubeDecoderConfig(width=16, depth=1, num_heads=2, mlp_width=32)
        model, mask = TubeMAEConfig(encoder=encoder, decoder=decoder), "tubes"
    else:
        clip_encoder = FourDSConfig(width=16, depth=3, heads=2, mlp_width=32, position_grid=(2, 3, 3))
        model, mask = TubeletMAEConfig(encoder=clip_encoder, decoder_blocks=1), "tubelets"
    sampling = ClipSamplingConfig(image_size=48, frames=4, mask=mask, mask_ratio=0.6)  # type: ignore[arg-type]
    values = {"objective": objective, "model": model, "sampling": sampling, "batch_size": 4}
    return tiny_config(**values | changes)


def random_batch(config: PretrainConfig, seed: int = 0) -> Any:
    """Of numpy arrays."""
    random = np.random.default_rng(seed)
    if isinstance(config.sampling, ClipSamplingConfig):
        frames, visible = batch_layout(config.sampling, config.batch_size)
        return ClipBatch(
            random.integers(0, 256, frames.shape, dtype=np.uint8),
            draw_visible(random, config.sampling, config.batch_size),
        )
    sampling, batch = config.sampling, config.batch_size
    frame = (sampling.image_size, sampling.image_size, 3)
    places = np.argsort(random.random((batch, sampling.targets, sampling.patches)))[..., : sampling.visible]
    return PretrainBatch(
        random.integers(0, 256, (batch, sampling.source_frames, *frame), dtype=np.uint8),
        random.integers(0, 256, (batch, sampling.targets, *frame), dtype=np.uint8),
        random.integers(sampling.min_gap, sampling.max_gap + 1, (batch, sampling.targets), dtype=np.int32),
        np.sort(places).astype(np.int32),
    )


def as_torch(batch: Any) -> Any:
    return batch_like(batch, map(torch.from_numpy, batch))
