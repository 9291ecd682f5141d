"""Configuration of pretraining: what is sampled, how it is optimised, where clips come from, how the step runs."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from rvm_core.config import PATCH_SIZE, RVMConfig, check_image_size

Aggregator = Literal["core", "self_attention"]
ComputeDtype = Literal["bfloat16", "float32"]
_T = TypeVar("_T")


class ConfigError(ValueError):
    """A configuration that makes no sense, or a file that holds something else."""


def _check(config: object, name: str, valid: bool, expected: str) -> None:
    if not valid:
        value = getattr(config, name)
        raise ConfigError(f"{type(config).__name__}.{name} must be {expected}, got {value!r}")


def _is_range(value: tuple[float, float], low: float, high: float) -> bool:
    return len(value) == 2 and low < value[0] <= value[1] <= high


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """What an example is: source and target frames of a clip, crops, masks. Raises `ConfigError` at construction."""

    source_frames: int = 4
    """Consecutive source frames, all of them seen whole."""
    targets: int = 4
    """Target frames of an example."""
    min_gap: int = 4
    """Smallest number of frames from the last source frame to a target."""
    max_gap: int = 48
    """Largest number of frames from the last source frame to a target, itself included."""
    mask_ratio: float = 0.95
    """Share of a target's patches that are hidden; at least one patch stays visible and one hidden."""
    image_size: int = 256
    """Height and width of all frames in pixels."""
    clip_frames: int = 64
    """Frames of a clip of the data set."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Least and greatest share of the frame's area that a random crop covers."""
    crop_aspect: tuple[float, float] = (0.75, 1.25)
    """Least and greatest ratio of width to height of a random crop."""
    flip: float = 0.5
    """Probability that a whole clip is mirrored left to right."""

    def __post_init__(self) -> None:
        for name in ("source_frames", "targets", "min_gap", "clip_frames"):
            _check(self, name, getattr(self, name) >= 1, "at least 1")
        _check(self, "max_gap", self.max_gap >= self.min_gap, f"at least min_gap, {self.min_gap}")
        needed = self.source_frames + self.max_gap
        _check(self, "clip_frames", self.clip_frames >= needed, f"at least source_frames + max_gap = {needed}")
        _check(self, "mask_ratio", 0 < self.mask_ratio < 1, "between 0 and 1")
        try:
            check_image_size(self.image_size, self.image_size)
        except ValueError as error:
            raise ConfigError(f"SamplingConfig.image_size: {error}") from error
        _check(self, "image_size", self.patches > 1, "more than one patch")
        _check(self, "crop_scale", _is_range(self.crop_scale, 0, 1), "two rising numbers above 0, at most 1")
        _check(self, "crop_aspect", _is_range(self.crop_aspect, 0, math.inf), "two rising numbers above 0")
        _check(self, "flip", 0 <= self.flip <= 1, "between 0 and 1")

    @property
    def patches(self) -> int:
        """Patches of a frame."""
        return (self.image_size // PATCH_SIZE) ** 2

    @property
    def visible(self) -> int:
        """Visible patches of a target: 12 of 256 at the ratio of the paper."""
        return min(max(math.floor(self.patches * (1 - self.mask_ratio) + 1e-9), 1), self.patches - 1)


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
        _check(self, "learning_rate", 0 < self.learning_rate < math.inf, "positive")
        _check(self, "end_learning_rate", 0 <= self.end_learning_rate <= self.learning_rate, "0 to learning_rate")
        _check(self, "steps", self.steps >= 1, "at least 1")
        _check(self, "warmup_steps", 0 <= self.warmup_steps < self.steps, f"0 or more and under steps, {self.steps}")
        _check(self, "weight_decay", 0 <= self.weight_decay < math.inf, "0 or more")
        for name in ("b1", "b2"):
            _check(self, name, 0 <= getattr(self, name) < 1, "at least 0 and under 1")
        _check(self, "epsilon", 0 < self.epsilon < math.inf, "positive")
        _check(self, "clip_norm", self.clip_norm is None or 0 < self.clip_norm < math.inf, "positive or None")


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
            _check(self, name, bool(getattr(self, name)), "not empty")
        _check(self, "weight", 0 < self.weight < math.inf, "positive")


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
            _check(self, field_name, len(set(names)) == len(names), "of different names")
        _check(self, "workers", self.workers >= 0, "0 or more")
        _check(self, "seed", self.seed >= 0, "0 or more")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A whole pretraining run. Raises `ConfigError` at construction."""

    model: RVMConfig
    """Sizes of the model, with its decoder."""
    aggregator: Aggregator = "core"
    """What joins the source frames: the recurrent core, or full self-attention over all their tokens."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """What an example is."""
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
        decoder = self.model.decoder
        if decoder is None:
            raise ConfigError("PretrainConfig.model must have a decoder: pretraining reconstructs pixels")
        gaps = decoder.max_time_gap
        _check(self.sampling, "max_gap", self.sampling.max_gap < gaps, f"under the decoder's max_time_gap, {gaps}")
        for name in ("aggregator", "compute_dtype"):
            choices = typing.get_args(Aggregator if name == "aggregator" else ComputeDtype)
            _check(self, name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        counts = ("batch_size", "checkpoint_every", "keep_checkpoints", "log_every", "picture_every")
        for name in (*counts, "eval_every", "eval_batches"):
            _check(self, name, getattr(self, name) >= 1, "at least 1")
        _check(self, "seed", self.seed >= 0, "0 or more")


def to_dict(config: object) -> dict[str, Any]:
    """A configuration as what JSON and YAML can hold; `from_dict` reads it."""
    return {name: _plain(value) for name, value in vars(config).items()}


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def from_dict(cls: type[_T], values: object, *, at: str = "") -> _T:
    """The dataclass `cls` from what `to_dict` returned or a YAML file held; what is left out keeps its default.

    `at` says in messages where in the file this is. Raises `ConfigError` for unknown or missing keys, wrong types and
    values that the class refuses.
    """
    where = at or cls.__name__
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be a mapping, got {type(values).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := [str(key) for key in values if key not in fields]:
        raise ConfigError(f"{where} has unknown keys {', '.join(unknown)}; known ones: {', '.join(fields)}")
    needs = [name for name, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in needs if name not in values]:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    hints = typing.get_type_hints(cls)
    parsed = {name: _parse(hints[name], value, f"{at}.{name}".lstrip(".")) for name, value in values.items()}
    try:
        return cls(**parsed)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _parse(hint: Any, value: object, at: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _parse(next(argument for argument in arguments if argument is not types.NoneType), value, at)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{at} must be one of {', '.join(arguments)}, got {value!r}")
    if origin is tuple:
        return _parse_tuple(arguments, value, at)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, at=at)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or isinstance(value, bool) != (hint is bool):
        raise ConfigError(f"{at} must be of type {hint.__name__}, got {value!r}")
    return value


def _parse_tuple(arguments: tuple[Any, ...], value: object, at: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{at} must be a list, got {value!r}")
    if arguments[-1] is not Ellipsis and len(value) != len(arguments):
        raise ConfigError(f"{at} must be a list of {len(arguments)}, got {value!r}")
    hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
    return tuple(_parse(hint, item, f"{at}[{i}]") for i, (hint, item) in enumerate(zip(hints, value, strict=True)))
