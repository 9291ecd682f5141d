"""Experiments: each file opens with its command, hardware, cost and result, and has its configurations in CONFIGS."""

from __future__ import annotations

from rvm_core.config import RVMConfig
from rvm_training.pretrain_config import DataConfig, OptimizerConfig, PretrainConfig, SourceConfig

PAPER_DATA = DataConfig(
    sources=tuple(
        SourceConfig(name=name, path=f"data/{name}")
        for name in ("howto100m", "kinetics700", "ssv2", "youtube_bb", "youtube8m")
    ),
    workers=16,
)
"""The data sets of the paper. Their weights in the mixture are not public: here they are equal."""


def paper_config(size: str, *, steps: int) -> PretrainConfig:
    """A released size, such as "rvm_s16", with the settings of the paper."""
    return PretrainConfig(
        model=RVMConfig.named(size, decoder=True),
        optimizer=OptimizerConfig(steps=steps),
        data=PAPER_DATA,
        batch_size=2048,
        checkpoint_every=5000,
        log_every=100,
        picture_every=10_000,
    )
