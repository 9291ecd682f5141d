"""Sizes of a training by name: the protocol's, and what a processor does in minutes. Light: imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What the options of `rvm-train readout` are where they are not given."""

    description: str
    steps: int
    batch_size: int
    learning_rates: tuple[float, ...]
    warmup_steps: int
    channels: int | None
    """None: the head's own default, that of the protocol."""
    num_heads: int | None


PRESETS = {
    "4ds": Preset(
        description="40,000 steps of 32 clips with each of three rates, as in arXiv 2412.15212",
        steps=40_000,
        batch_size=32,
        learning_rates=(1e-4, 3e-4, 1e-3),
        warmup_steps=1_000,
        channels=None,
        num_heads=None,
    ),
    "small": Preset(
        description="3,000 steps of 8 clips with one rate and a head of 128 channels, for a processor",
        steps=3_000,
        batch_size=8,
        learning_rates=(3e-3,),
        warmup_steps=100,
        channels=128,
        num_heads=4,
    ),
}
END_LEARNING_RATE = 1e-7
WEIGHT_DECAY = 1e-4
