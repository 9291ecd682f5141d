"""The ablations of the paper at size S, and of rvm_nano: source frames, aggregator, share of hidden patches.

command:   rvm-train pretrain --config ablation_2_frames --out runs/ablation_2_frames
           rvm-train ablate --jobs 2 --seeds 2 --steps 1600 --set batch_size=8 --out out/ablation
hardware:  256 TPU v6e cores of 32 GB for size S; 2 cores of an AMD EPYC with AVX-512 for rvm_nano
cost:      500 M examples each at size S, as in the paper; 12,800 each for rvm_nano, 2 seeds of 4 variants in 2 hours
result:    rvm_nano: docs/ablation.md, where the paper's order does not appear. Size S is not run; the paper has 41.0,
           47.2 and 52.3 on SSv2 with 1, 2 and 4 source frames, 49.1 with self-attention
"""

from __future__ import annotations

from dataclasses import replace

from rvm_training.configs import rvm_nano, rvm_s16
from rvm_training.pretrain_config import PretrainConfig

_EXAMPLES = 500_000_000


def _ablations(prefix: str, base: PretrainConfig) -> dict[str, PretrainConfig]:
    """Every one differs from `base`, which is the one of 4 source frames, in one thing."""
    sampling = base.rvm_sampling
    configs = {f"{prefix}_4_frames": base}
    for frames in (1, 2):
        plural = "s" if frames > 1 else ""
        configs[f"{prefix}_{frames}_frame{plural}"] = replace(base, sampling=replace(sampling, source_frames=frames))
    configs[f"{prefix}_self_attention"] = replace(base, aggregator="self_attention")
    for percent in (75, 90, 95):
        if percent / 100 != sampling.mask_ratio:
            changed = replace(sampling, mask_ratio=percent / 100)
            configs[f"{prefix}_mask_{percent}"] = replace(base, sampling=changed)
    return configs


def _shorter(base: PretrainConfig, examples: int) -> PretrainConfig:
    return replace(base, optimizer=replace(base.optimizer, steps=examples // base.batch_size))


CONFIGS = _ablations("ablation", _shorter(rvm_s16.CONFIGS["rvm_s16"], _EXAMPLES)) | _ablations(
    "nano", rvm_nano.CONFIGS["rvm_nano"]
)
