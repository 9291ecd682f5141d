"""Experiments: each file opens with its command, hardware, cost and result, and has its configurations in CONFIGS."""

from __future__ import annotations

from rvm_training.pretrain_config import DataConfig, SourceConfig

PAPER_DATA = DataConfig(
    sources=tuple(
        SourceConfig(name=name, path=f"data/{name}")
        for name in ("howto100m", "kinetics700", "ssv2", "youtube_bb", "youtube8m")
    ),
    workers=16,
)
"""The data sets of the paper. Their weights in the mixture are not public: here they are equal."""
