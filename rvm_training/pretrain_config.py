"""Configuration of pretraining: what is sampled, how it is optimised, where clips come from, how the step runs."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rvm_core.config import RVMConfig
from rvm_training.config_values import ConfigError, check, from_dict, to_dict
from rvm_training.mae_config import TubeletMAEConfig, TubeMAEConfig
from rvm_training.sampling_config import ClipSamplingConfig, SamplingConfig

__all__ = [
    "ClipSamplingConfig",
    "ConfigError",
    "DataConfig",
    "OptimizerConfig",
    "PretrainConfig",
    "SamplingConfig",
    "SourceConfig",
    "from_dict",
    "to_dict",
]

Objective = Literal["rvm", "trecvit_mae", "4ds_mae"]
Aggregator = Literal["core", "self_attention"]
ComputeDtype = Literal["bfloat16", "float32"]

_PARTS: dict[str, dict[str, type]] = {
    "rvm": {"model": RVMConfig, "sampling": SamplingConfig},
    "trecvit_mae": {"model": TubeMAEConfig, "sampling": ClipSamplingConfig},
    "4ds_mae": {"model": TubeletMAEConfig, "sampling": ClipSamplingConfig},
}
"""Of each objective."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay. Rates and decay default to those of 4DS (arXiv 2412.15212).

    Raises `ConfigError` at construction.
    """

    learning_rate: float = 1e-4
    """The highest rate, reached at the end of the warm-up."""
    end_learning_rate: float = 0.0
    """The rate at the last step."""
    warmup_steps: int = 10_000
    """Steps in which the rate rises linearly from 0."""
    steps: int = 1_000_000
    """Steps in all."""
    weight_decay: float = 0.05
    """Of weights of linear layers and of the patch embedding; norms, biases and tokens do not decay."""
    b1: float = 0.9
    """Decay of the mean of the gradients."""
    b2: float = 0.95
    """Decay of the mean of their squares."""
    epsilon: float = 1e-8
    """Added to the root of the mean square."""
    clip_norm: float | None = None
    """Longer gradients are scaled down to this norm, over all parameters; None leaves them."""

    def __post_init__(self) -> None:
        check(self, "learning_rate", 0 < self.learning_rate < math.inf, "positive")
        check(self, "end_learning_rate", 0 <= self.end_learning_rate <= self.learning_rate, "0 to learning_rate")
        check(self, "steps", self.steps >= 1, "at least 1")
        check(self, "warmup_steps", 0 <= self.warmup_steps < self.steps, f"0 or more and under steps, {self.steps}")
        check(self, "weight_decay", 0 <= self.weight_decay < math.inf, "0 or more")
        for name in ("b1", "b2"):
            check(self, name, 0 <= getattr(self, name) < 1, "at least 0 and under 1")
        check(self, "epsilon", 0 < self.epsilon < math.inf, "positive")
        check(self, "clip_norm", self.clip_norm is None or 0 < self.clip_norm < math.inf, "positive or None")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One data set of a mixture. Raises `ConfigError` at construction."""

    name: str
    """What reports call it."""
    path: str
    """Folder of shards or videos, or another source that the loader knows."""
    weight: float = 1.0
    """Share of the examples drawn from it, relative to the other sources."""

    def __post_init__(self) -> None:
        for name in ("name", "path"):
            check(self, name, bool(getattr(self, name)), "not empty")
        check(self, "weight", 0 < self.weight < math.inf, "positive")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where clips come from. Raises `ConfigError` at construction."""

    sources: tuple[SourceConfig, ...] = ()
    """The mixture."""
    held_out: tuple[SourceConfig, ...] = ()
    """The mixture of the evaluation loss: clips that are not in `sources`."""
    workers: int = 0
    """Processes that decode clips; 0: the training process does."""
    seed: int = 0
    """Of order, frames, crops and masks."""

    def __post_init__(self) -> None:
        for field_name in ("sources", "held_out"):
            names = [source.name for source in getattr(self, field_name)]
            check(self, field_name, len(set(names)) == len(names), "of different names")
        check(self, "workers", self.workers >= 0, "0 or more")
        check(self, "seed", self.seed >= 0, "0 or more")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A whole pretraining run. Raises `ConfigError` at construction."""

    model: RVMConfig | TubeMAEConfig | TubeletMAEConfig
    """Sizes of the model, with what decodes; of the class that belongs to the objective."""
    objective: Objective = "rvm"
    """What is learnt: RVM, later frames from a few of their patches; the others, whole clips as masked autoencoders."""
    aggregator: Aggregator = "core"
    """RVM only: what joins the source frames, the recurrent core, or full self-attention over all their tokens."""
    sampling: SamplingConfig | ClipSamplingConfig = field(default_factory=SamplingConfig)
    """What an example is; of the class that belongs to the objective."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How the weights move."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where clips come from."""
    batch_size: int = 2048
    """Examples of a step, over all devices."""
    compute_dtype: ComputeDtype = "bfloat16"
    """Of the linear layers inside the blocks. Weights, softmax, norms, residuals and loss are float32 in any case."""
    remat: bool = True
    """Whether the backward pass computes what is inside a block again, which saves memory."""
    scan_layers: bool = True
    """Whether equal blocks and time steps are one compiled loop: compiles faster, runs slower on a CPU."""
    seed: int = 0
    """Of the initial weights."""
    checkpoint_every: int = 1000
    """Steps from one checkpoint to the next."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints are kept."""
    log_every: int = 50
    """Steps from one line of the log to the next."""
    picture_every: int = 1000
    """Steps from one picture of reconstructions to the next."""
    eval_every: int = 1000
    """Steps from one evaluation of the loss on `data.held_out` to the next; none where there are no such clips."""
    eval_batches: int = 4
    """Batches of an evaluation: always the same ones, with the same masks."""

    def __post_init__(self) -> None:
        for name, choices in (("objective", Objective), ("aggregator", Aggregator), ("compute_dtype", ComputeDtype)):
            known = typing.get_args(choices)
            check(self, name, getattr(self, name) in known, f"one of {', '.join(known)}")
        for name, cls in _PARTS[self.objective].items():
            check(self, name, isinstance(getattr(self, name), cls), f"a {cls.__name__} for {self.objective}")
        if isinstance(self.model, RVMConfig):
            self._check_rvm(self.model)
        if isinstance(self.sampling, ClipSamplingConfig):
            self._check_clips(self.sampling)
        counts = ("batch_size", "checkpoint_every", "keep_checkpoints", "log_every", "picture_every")
        for name in (*counts, "eval_every", "eval_batches"):
            check(self, name, getattr(self, name) >= 1, "at least 1")
        check(self, "seed", self.seed >= 0, "0 or more")

    def _check_rvm(self, model: RVMConfig) -> None:
        if model.decoder is None:
            raise ConfigError("PretrainConfig.model must have a decoder: pretraining reconstructs pixels")
        sampling, gaps = self.rvm_sampling, model.decoder.max_time_gap
        check(sampling, "max_gap", sampling.max_gap < gaps, f"under the decoder's max_time_gap, {gaps}")

    def _check_clips(self, sampling: ClipSamplingConfig) -> None:
        check(self, "aggregator", self.aggregator == "core", f"core for {self.objective}")
        mask = "tubelets" if isinstance(self.model, TubeletMAEConfig) else "tubes"
        check(sampling, "mask", sampling.mask == mask, f"{mask} for {self.objective}")
        if isinstance(self.model, TubeletMAEConfig):
            frames = self.model.encoder.frames
            check(sampling, "frames", sampling.frames == frames, f"the {frames} of the encoder's window")

    @classmethod
    def chosen_types(cls, values: Mapping[Any, object]) -> dict[str, type]:
        """Of the fields whose class belongs to the objective; for `from_dict`. Raises `ConfigError` for another one."""
        objective = values.get("objective", "rvm")
        if objective not in _PARTS:
            raise ConfigError(f"objective must be one of {', '.join(_PARTS)}, got {objective!r}")
        return _PARTS[objective]

    @property
    def rvm_model(self) -> RVMConfig:
        """The model of the objective "rvm". Raises `ConfigError` for another objective."""
        check(self, "model", isinstance(self.model, RVMConfig), "an RVMConfig")
        return typing.cast(RVMConfig, self.model)

    @property
    def rvm_sampling(self) -> SamplingConfig:
        """The examples of the objective "rvm". Raises `ConfigError` for another objective."""
        check(self, "sampling", isinstance(self.sampling, SamplingConfig), "a SamplingConfig")
        return typing.cast(SamplingConfig, self.sampling)
