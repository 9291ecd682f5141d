"""Configurations of pretraining: checks, and the way to JSON and YAML and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from rvm_core.config import DecoderConfig, RVMConfig
from rvm_training.pretrain_config import (
    ConfigError,
    DataConfig,
    OptimizerConfig,
    PretrainConfig,
    SamplingConfig,
    SourceConfig,
    from_dict,
    to_dict,
)

MODEL = RVMConfig.named("rvm_s16", decoder=True)


def test_defaults_are_those_of_the_paper() -> None:
    sampling = SamplingConfig()
    assert (sampling.patches, sampling.visible) == (256, 12)
    assert (sampling.source_frames, sampling.targets, sampling.min_gap, sampling.max_gap) == (4, 4, 4, 48)
    config = PretrainConfig(model=MODEL)
    assert (config.batch_size, config.compute_dtype, config.aggregator) == (2048, "bfloat16", "core")


@pytest.mark.parametrize(
    ("ratio", "visible"), [(0.95, 12), (0.75, 64), (0.9, 25), (0.5, 128), (0.999, 1), (0.001, 255)]
)
def test_visible_patches(ratio: float, visible: int) -> None:
    assert SamplingConfig(mask_ratio=ratio).visible == visible


def test_through_json_and_yaml() -> None:
    config = PretrainConfig(
        model=MODEL,
        aggregator="self_attention",
        sampling=SamplingConfig(source_frames=2, crop_scale=(0.5, 0.9)),
        optimizer=OptimizerConfig(clip_norm=1.0),
        data=DataConfig(sources=(SourceConfig(name="a", path="shards", weight=2.0), SourceConfig(name="b", path="c"))),
    )
    assert from_dict(PretrainConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert from_dict(PretrainConfig, yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


def test_what_is_left_out_keeps_its_default() -> None:
    model = to_dict(MODEL)
    config = from_dict(PretrainConfig, {"model": model, "optimizer": {"learning_rate": 1}, "sampling": {}})
    assert config == PretrainConfig(model=MODEL, optimizer=OptimizerConfig(learning_rate=1.0))
    assert isinstance(config.optimizer.learning_rate, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": to_dict(MODEL), "batchsize": 4}, "unknown keys batchsize; known ones: model, "),
        ({"model": to_dict(MODEL) | {"wide": 1}}, "model has unknown keys wide"),
        ({}, "PretrainConfig lacks model"),
        ({"model": {}}, "model lacks width"),
        ({"model": to_dict(MODEL), "batch_size": "8"}, "batch_size must be of type int, got '8'"),
        ({"model": to_dict(MODEL), "batch_size": True}, "batch_size must be of type int, got True"),
        ({"model": to_dict(MODEL), "remat": 1}, "remat must be of type bool, got 1"),
        ({"model": to_dict(MODEL), "aggregator": "mean"}, "aggregator must be one of core, self_attention, got 'mean'"),
        ({"model": to_dict(MODEL), "sampling": {"crop_scale": [1.0]}}, r"sampling.crop_scale must be a list of 2"),
        (
            {"model": to_dict(MODEL), "sampling": {"crop_scale": [0.3, "x"]}},
            r"sampling.crop_scale\[1\] must be of type",
        ),
        ({"model": to_dict(MODEL), "data": {"sources": [{"name": "a"}]}}, r"data.sources\[0\] lacks path"),
        ({"model": to_dict(MODEL), "optimizer": {"clip_norm": "1"}}, "optimizer.clip_norm must be of type float"),
        ({"model": to_dict(MODEL) | {"width": 385}}, "encoder_heads must divide width"),
        ([], "PretrainConfig must be a mapping, got list"),
    ],
)
def test_wrong_files(values: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(PretrainConfig, values)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (SamplingConfig, {"mask_ratio": 1.0}, "mask_ratio must be between 0 and 1, got 1.0"),
        (SamplingConfig, {"min_gap": 9, "max_gap": 8}, "max_gap must be at least min_gap, 9, got 8"),
        (SamplingConfig, {"clip_frames": 50}, r"at least source_frames \+ max_gap = 52, got 50"),
        (
            SamplingConfig,
            {"image_size": 100},
            "image_size: expected an image height and width that are multiples of 16",
        ),
        (SamplingConfig, {"image_size": 16}, "image_size must be more than one patch"),
        (SamplingConfig, {"crop_scale": (0.5, 0.3)}, "crop_scale must be two rising numbers"),
        (SamplingConfig, {"flip": 2.0}, "flip must be between 0 and 1"),
        (OptimizerConfig, {"learning_rate": float("nan")}, "learning_rate must be positive"),
        (OptimizerConfig, {"steps": 10, "warmup_steps": 10}, "warmup_steps must be 0 or more and under steps, 10"),
        (OptimizerConfig, {"b2": 1.0}, "b2 must be at least 0 and under 1"),
        (OptimizerConfig, {"clip_norm": 0.0}, "clip_norm must be positive or None"),
        (SourceConfig, {"name": "a", "path": "b", "weight": 0.0}, "weight must be positive"),
        (SourceConfig, {"name": "a", "path": ""}, "path must be not empty"),
        (DataConfig, {"sources": (SourceConfig(name="a", path="b"),) * 2}, "sources must be of different names"),
        (PretrainConfig, {"model": RVMConfig.named("rvm_s16")}, "must have a decoder"),
        (PretrainConfig, {"model": MODEL, "batch_size": 0}, "batch_size must be at least 1"),
        (
            PretrainConfig,
            {"model": MODEL, "compute_dtype": "float16"},
            "compute_dtype must be one of bfloat16, float32",
        ),
    ],
)
def test_wrong_values(cls: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(**values)


def test_gaps_fit_the_decoder() -> None:
    model = RVMConfig(**vars(RVMConfig.named("rvm_s16")) | {"decoder": DecoderConfig(max_time_gap=48)})
    with pytest.raises(ConfigError, match="max_gap must be under the decoder's max_time_gap, 48, got 48"):
        PretrainConfig(model=model)
