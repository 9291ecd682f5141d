"""Runs of engines that are compiled, and what all of them must keep to beside float32 torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from rvm_core.engines.base import Engine, EngineSpec
from rvm_core.engines.torch import TorchBackend
from rvm_core.streaming import StreamingEncoder

FP32_TOLERANCE = 2e-5
"""On features up to 4: sums in another order differ by 2e-6, also after 64 steps."""

BF16_TOLERANCE = 0.05
"""bfloat16 has 8 bits: on features up to 4, torch's own bfloat16 differs from float32 by 0.02."""

STEPS = 64
SIZES = [(64, 96), (128, 80)]


def ignore_progress(line: str) -> None:
    pass


def moving_frames(spec: EngineSpec, steps: int = STEPS, seed: int = 0) -> list[np.ndarray]:
    """Smooth pictures, another one for each stream, that move by two pixels a step."""
    rng = np.random.default_rng(seed)
    height, width = spec.image_size
    coarse = rng.integers(0, 256, (spec.batch_size, height // 8, width // 8, 3), dtype=np.uint8)
    picture = coarse.repeat(8, axis=1).repeat(8, axis=2)
    return [np.roll(picture, (step, 2 * step), axis=(1, 2)) for step in range(steps)]


def run(engine: Engine, frames: list[np.ndarray]) -> torch.Tensor:
    """Features of all steps (T, B, N+1, D), carrying the state."""
    state = engine.init_state()
    features = []
    for frame in frames:
        output, state = engine.step(frame, state)
        features.append(output)
    return torch.stack(features)


def check_matches_torch(engine: Engine, model: StreamingEncoder) -> None:
    spec = engine.spec
    frames = moving_frames(spec)
    reference = run(TorchBackend().load(model, replace(spec, backend="torch", precision="fp32")), frames)
    assert isinstance(engine, Engine)
    features = run(engine, frames)
    assert features.dtype == torch.float32
    tolerance = FP32_TOLERANCE if spec.precision == "fp32" else BF16_TOLERANCE
    torch.testing.assert_close(features, reference, rtol=0, atol=tolerance)
    # bfloat16 was really used, and only where asked for.
    assert ((features - reference).abs().max() > 100 * FP32_TOLERANCE) == (spec.precision == "bf16")


def check_state_is_a_value(engine: Engine) -> None:
    """Steps change none of the states and features that were given or returned before."""
    first, second = moving_frames(engine.spec, 2), moving_frames(engine.spec, 2, seed=1)
    _, state = engine.step(first[0], engine.init_state())
    kept = state.clone()
    features, new_state = engine.step(first[1], state)
    kept_features = features.clone()
    other, other_state = engine.step(second[0], engine.init_state())
    engine.step(second[1], other_state)
    again, _ = engine.step(first[1], state)
    assert torch.equal(state, kept)
    assert torch.equal(features, kept_features)
    assert torch.equal(again, features)
    assert not torch.allclose(other, features, atol=0.1)
    assert len({tensor.data_ptr() for tensor in (state, new_state, other_state, again)}) == 4
