"""The attentive readout against the release's, and its parts one by one."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from readout_data import TOLERANCE, load_reference
from rvm_core import CheckpointError
from rvm_core.readout import (
    AttentionReadout,
    FourierQueries,
    ReadoutConfig,
    assemble_patches,
    fourier_features,
)

EXACT = 1e-5
"""Between two ways of ours to the same float32 result."""

SIZES: dict[str, Any] = {"features": 12, "frames": 4, "channels": 24, "num_heads": 3, "outputs": 5}


def run(name: str, **options: Any) -> tuple[Tensor, Tensor]:
    params, tensors = load_reference(name)
    readout = AttentionReadout.from_release(params, **options)
    with torch.no_grad():
        return readout(tensors["inputs"], tensors.get("queries")), tensors["output"]


# Against the release.


@pytest.mark.parametrize(
    ("name", "options"),
    [("readout_classify", {}), ("readout_depth", {"video_size": (4, 32, 32)}), ("readout_queries", {})],
)
def test_output_matches_release(name: str, options: dict[str, Any]) -> None:
    output, expected = run(name, **options)
    assert output.shape == expected.shape
    assert (output - expected).abs().max() < TOLERANCE


def test_every_parameter_matters() -> None:
    """So that none was left out unnoticed: a change of any one changes the output, but a bias of keys, which cannot."""
    params, tensors = load_reference("readout_queries")
    for name in params:
        changed = params | {name: params[name] + np.random.default_rng(0).random(params[name].shape, np.float32)}
        readout = AttentionReadout.from_release(changed)
        with torch.no_grad():
            same = torch.allclose(readout(tensors["inputs"], tensors["queries"]), tensors["output"], atol=TOLERANCE)
        assert same == (name == "key_embedding/bias"), name


def test_sizes_are_inferred() -> None:
    assert AttentionReadout.from_release(load_reference("readout_queries").params).config == ReadoutConfig(
        features=64, frames=4, channels=96, num_heads=8, outputs=8, query_width=32
    )
    assert AttentionReadout.from_release(load_reference("readout_classify").params).config == ReadoutConfig(
        features=64, frames=4, channels=64, num_heads=4, outputs=10, num_queries=1
    )


def test_from_release_is_float32_and_in_eval_mode() -> None:
    params = {name: value.astype(np.float16) for name, value in load_reference("readout_queries").params.items()}
    readout = AttentionReadout.from_release(params)
    assert not readout.training
    assert {parameter.dtype for parameter in readout.parameters()} == {torch.float32}


def test_from_release_tells_every_problem_at_once() -> None:
    params = load_reference("readout_queries").params
    del params["LayerNorm_0/scale"]
    params["extra"] = np.zeros(2, np.float32)
    params["Dense_1/kernel"] = np.zeros((3, 3), np.float32)
    params["Dense_2/bias"] = params["Dense_2/bias"].astype(np.int32)
    params["key_embedding/bias"][0, 0] = np.nan
    with pytest.raises(CheckpointError) as caught:
        AttentionReadout.from_release(params)
    assert caught.value.problems == (
        "dtype: Dense_2/bias: expected float32, float16, bfloat16, found int32",
        "missing: LayerNorm_0/scale (64)",
        "shape: Dense_1/kernel: expected (96, 96), found (3, 3)",
        "unexpected: extra (2)",
        "not finite: key_embedding/bias: 1 of 96 values",
    )


def test_from_release_refuses_other_parameters() -> None:
    with pytest.raises(CheckpointError, match="missing: query "):
        AttentionReadout.from_release({"cls_token": np.zeros((1, 4), np.float32)})


def test_from_release_refuses_a_video_that_does_not_fit() -> None:
    params = load_reference("readout_depth").params
    with pytest.raises(ValueError, match=r"a video of \(4, 64, 32\) needs 64 learned queries, got 32"):
        AttentionReadout.from_release(params, video_size=(4, 64, 32))


# Its parts.


def test_patches_are_put_together() -> None:
    """Against a loop over every pixel."""
    video, patch, colours = (4, 6, 10), (2, 3, 5), 2
    patches = torch.rand(1, math.prod(video) // math.prod(patch), math.prod(patch) * colours)
    whole = assemble_patches(patches, video, patch)
    assert whole.shape == (1, *video, colours)
    for t, y, x, c in np.ndindex(*video, colours):
        number = ((t // 2) * 2 + y // 3) * 2 + x // 5
        inside = (((t % 2) * 3 + y % 3) * 5 + x % 5) * colours + c
        assert whole[0, t, y, x, c] == patches[0, number, inside]


def test_fourier_features() -> None:
    """Against the formula in float64, for the octaves where float32 has digits left."""
    positions, bases = torch.tensor([[0.1, 0.7], [1.0, 0.0]]), 5
    features = fourier_features(positions, bases)
    assert features.shape == (2, 20)
    angles = [math.pi * 2**i * x for i in range(bases) for x in positions[0].tolist()]
    expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    assert features[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_fourier_queries_are_per_position() -> None:
    queries = FourierQueries(2, bases=3, hidden=8, width=6)
    torch.nn.init.normal_(queries.dense_in.weight)
    torch.nn.init.normal_(queries.dense_out.weight)
    for layer in (queries.dense_in, queries.dense_out):
        assert layer.bias is not None
        torch.nn.init.zeros_(layer.bias)
    positions = torch.rand(1, 7, 2)
    assert torch.allclose(queries(positions)[:, 3:4], queries(positions[:, 3:4]), atol=EXACT)


def test_queries_do_not_see_each_other() -> None:
    readout = AttentionReadout(ReadoutConfig(**SIZES, query_width=6))
    features, queries = torch.rand(2, 4, 9, 12), torch.rand(2, 7, 6)
    assert torch.allclose(readout(features, queries)[:, 2:3], readout(features, queries[:, 2:3]), atol=EXACT)


def test_placed_frames_are_the_window() -> None:
    """Frames projected one by one and then placed give what the whole window gives."""
    params, tensors = load_reference("readout_queries")
    readout = AttentionReadout.from_release(params)
    with torch.no_grad():
        window = readout.place([readout.project(frame) for frame in tensors["inputs"].unbind(1)])
        output = readout.attend(readout.embed(tensors["queries"]), *window)
    assert (output - tensors["output"]).abs().max() < TOLERANCE


def test_seed_decides_the_weights() -> None:
    config = ReadoutConfig(**SIZES, num_queries=2)
    weights = [AttentionReadout(config, seed=seed).output.weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_blocks_in_bfloat16() -> None:
    params, tensors = load_reference("readout_queries")
    readout = AttentionReadout.from_release(params)
    for module in (readout.key_embedding, readout.value_embedding, readout.attention_output, readout.mlp):
        module.bfloat16()
    with torch.no_grad():
        output = readout(tensors["inputs"], tensors["queries"])
    assert output.dtype == torch.float32
    assert (output - tensors["output"]).abs().max() < 0.1


@pytest.mark.parametrize(
    ("name", "options"),
    [("readout_classify", {}), ("readout_depth", {"video_size": (4, 32, 32)}), ("readout_queries", {})],
)
def test_export_traces_it(name: str, options: dict[str, Any]) -> None:
    params, tensors = load_reference(name)
    readout = AttentionReadout.from_release(params, **options)
    inputs = (tensors["inputs"], tensors["queries"]) if "queries" in tensors else (tensors["inputs"],)
    program = torch.export.export(readout, inputs)
    with torch.no_grad():
        assert torch.allclose(program.module()(*inputs), tensors["output"], atol=TOLERANCE)


# What it refuses.


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, "either num_queries"),
        ({"num_queries": 2, "query_width": 3}, "either num_queries"),
        ({"num_queries": 0}, "num_queries must be positive, got 0"),
        ({"num_queries": 1, "num_heads": 5}, "num_heads must divide channels, got 5 and 24"),
        ({"num_queries": 4, "video_size": (4, 16, 12)}, r"video_size of whole patches \(2, 8, 8\), got \(4, 16, 12\)"),
        ({"num_queries": 5, "video_size": (4, 16, 8)}, "needs 4 learned queries, got 5"),
        ({"num_queries": 4, "video_size": (4, 16, 8)}, "outputs of 128 pixels a patch"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReadoutConfig(**SIZES | sizes)


def test_inputs_that_do_not_fit_are_refused() -> None:
    learned = AttentionReadout(ReadoutConfig(**SIZES, num_queries=2))
    given = AttentionReadout(ReadoutConfig(**SIZES, query_width=6))
    features, queries = torch.rand(1, 4, 9, 12), torch.rand(1, 2, 6)
    with pytest.raises(ValueError, match="expected features of 4 frames, got 3"):
        learned(features[:, 1:])
    with pytest.raises(ValueError, match="queries of this readout are learned"):
        learned(features, queries)
    with pytest.raises(ValueError, match="needs queries"):
        given(features)
    with pytest.raises(ValueError, match="a window of 4 frames, got 1"):
        given.place([given.project(features[:, 0])])
