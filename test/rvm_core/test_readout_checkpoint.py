"""Readouts and heads in files: loading, saving, and the errors of unsound files."""

import tracemalloc
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from readout_data import DATA, TOLERANCE, load_reference
from rvm_core import CheckpointError
from rvm_core.heads import (
    BoxHead,
    BoxHeadConfig,
    ClassHead,
    ClassHeadConfig,
    DepthHead,
    DepthHeadConfig,
    PointHead,
    PointHeadConfig,
    PoseHead,
    PoseHeadConfig,
)
from rvm_core.readout import AttentionReadout, ReadoutConfig
from rvm_core.readout_checkpoint import Kind, Readout, load_readout, save_readout
from rvm_core.recurrent_readout import RecurrentReadout, RecurrentReadoutConfig

SMALL: dict[str, Any] = {"features": 12, "channels": 16, "num_heads": 2}
READOUTS: dict[str, Readout] = {
    "learned": AttentionReadout(ReadoutConfig(frames=4, outputs=3, num_queries=2, **SMALL), seed=1),
    "given": AttentionReadout(ReadoutConfig(frames=4, outputs=3, query_width=5, mlp_ratio=2, **SMALL), seed=1),
    "points": PointHead(PointHeadConfig(frames=4, copies=2, fourier_bases=3, query_width=6, **SMALL), seed=1),
    "boxes": BoxHead(BoxHeadConfig(frames=4, fourier_bases=3, query_hidden=6, **SMALL), seed=1),
    "depth": DepthHead(DepthHeadConfig(frames=2, image_size=(8, 24), patch_size=(1, 4, 8), **SMALL), seed=1),
    "classes": ClassHead(ClassHeadConfig(classes=5, frames=3, **SMALL), seed=1),
    "pose": PoseHead(PoseHeadConfig(**SMALL), seed=1),
    "recurrent": RecurrentReadout(RecurrentReadoutConfig(kind="boxes", fourier_bases=3, **SMALL), seed=1),
}


def write_release(path: Path, params: Mapping[str, np.ndarray], prefix: str = "", **others: np.ndarray) -> Path:
    np.savez(path, **{prefix + name: value for name, value in params.items()}, **others)  # type: ignore[arg-type]
    return path


def problems_of(path: Path, **options: Any) -> tuple[str, ...]:
    with pytest.raises(CheckpointError) as caught:
        load_readout(path, **options)
    assert str(path) in str(caught.value)
    return caught.value.problems


# The release's layout.


@pytest.mark.parametrize(
    ("name", "kind", "cls"),
    [
        ("readout_classify", None, AttentionReadout),
        ("readout_queries", None, AttentionReadout),
        ("readout_classify", "classes", ClassHead),
        ("readout_depth", "depth", DepthHead),
        ("tracking_head_points", None, PointHead),
        ("tracking_head_boxes", None, BoxHead),
    ],
)
def test_release_is_loaded(name: str, kind: Kind | None, cls: type, tmp_path: Path) -> None:
    params, tensors = load_reference(name)
    readout = load_readout(write_release(tmp_path / "a.npz", params), kind=kind)
    assert type(readout) is cls
    assert not readout.training
    inputs = [tensors[name] for name in ("inputs", "queries") if name in tensors]
    with torch.no_grad():
        output = readout(*inputs)
    output = output.positions if isinstance(readout, PointHead) else output
    expected = tensors["output"] if "output" in tensors else tensors["values"]
    assert output.shape == expected.shape
    assert (output - expected).abs().max() < TOLERANCE


def test_depth_that_is_not_square(tmp_path: Path) -> None:
    path = write_release(tmp_path / "a.npz", load_reference("readout_depth").params)
    head = load_readout(path, kind="depth", image_size=(64, 16))
    assert isinstance(head, DepthHead)
    assert head.config.image_size == (64, 16)
    (problem,) = problems_of(path, kind="depth", image_size=(64, 64))
    assert problem.startswith("sizes: a video of (4, 64, 64) needs 128 learned queries, got 32")


def test_readout_inside_of_a_model(tmp_path: Path) -> None:
    params = load_reference("readout_classify").params
    encoder = {"params/layers_0/kernel": np.zeros((2, 2), np.float32)}
    path = write_release(tmp_path / "a.npz", params, "params/layers_2/", **encoder)
    assert isinstance(load_readout(path), AttentionReadout)
    del params["LayerNorm_0/bias"]
    path = write_release(tmp_path / "b.npz", params, "params/layers_2/", **encoder)
    assert problems_of(path) == ("missing: params/layers_2/LayerNorm_0/bias (64)",)


def test_part_chooses_among_readouts(tmp_path: Path) -> None:
    points, boxes = (load_reference(f"tracking_head_{kind}").params for kind in ("points", "boxes"))
    path = write_release(tmp_path / "a.npz", points, "points/", **{f"boxes/{name}": v for name, v in boxes.items()})
    assert problems_of(path) == ("it holds 2 readouts; choose one with part=: 'boxes/', 'points/'",)
    assert isinstance(load_readout(path, part="boxes/"), BoxHead)
    assert isinstance(load_readout(path, part="points/"), PointHead)
    assert problems_of(path, part="masks/")[0].startswith("none of its tensors is in 'masks/'")


def test_half_precision_is_converted(tmp_path: Path) -> None:
    params = load_reference("tracking_head_points").params
    path = write_release(tmp_path / "a.npz", {name: value.astype(np.float16) for name, value in params.items()})
    readout = load_readout(path)
    assert {parameter.dtype for parameter in readout.parameters()} == {torch.float32}
    bias = params["attention_readout/LayerNorm_0/bias"].astype(np.float16).astype(np.float32)
    assert np.array_equal(readout.state_dict()["readout.input_norm.bias"], bias)


# Ours.


@pytest.mark.parametrize("name", READOUTS)
def test_round_trip_is_bit_equal(name: str, tmp_path: Path) -> None:
    readout, path = READOUTS[name], tmp_path / "a.safetensors"
    save_readout(readout, path)
    loaded = load_readout(path)
    assert type(loaded) is type(readout)
    assert loaded.config == readout.config
    assert not loaded.training
    state, expected = loaded.state_dict(), readout.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_release_survives_saving(tmp_path: Path) -> None:
    params, tensors = load_reference("tracking_head_boxes")
    save_readout(BoxHead.from_release(params), tmp_path / "a.safetensors")
    with torch.no_grad():
        boxes = load_readout(tmp_path / "a.safetensors")(tensors["inputs"], tensors["queries"])
    assert (boxes - tensors["values"]).abs().max() < TOLERANCE


def test_saving_refuses_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends with .safetensors, got 'a.npz'"):
        save_readout(READOUTS["pose"], tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


def test_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown kind 'masks'; known kinds: readout, points"):
        load_readout(tmp_path / "a.npz", kind="masks")  # type: ignore[arg-type]


# Unsound files.


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    params = load_reference("tracking_head_points").params
    del params["attention_readout/Dense_1/kernel"]
    params["extra"] = np.zeros((2, 3), np.float32)
    params["attention_readout/key_embedding/kernel"] = np.zeros((40, 4), np.float32)
    params["query_initializer/layers_1/Dense_0/bias"] = np.zeros(48)
    params["attention_readout/LayerNorm_1/bias"][:3] = np.nan
    assert problems_of(write_release(tmp_path / "a.npz", params)) == (
        "dtype: query_initializer/layers_1/Dense_0/bias: expected float32, float16, bfloat16, found float64",
        "missing: attention_readout/Dense_1/kernel (64, 64)",
        "shape: attention_readout/key_embedding/kernel: expected (40, 4, 16), found (40, 4)",
        "unexpected: extra (2, 3)",
        "not finite: attention_readout/LayerNorm_1/bias: 3 of 64 values",
    )


def test_other_files_are_refused(tmp_path: Path) -> None:
    (problem,) = problems_of(DATA / "rvm_tiny_official_format.npz")
    assert "is a parameter of a readout" in problem
    (tmp_path / "a.npz").write_bytes(b"\x80\x04pickle")
    assert "pickle" in problems_of(tmp_path / "a.npz")[0]
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_readout(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("name", "kind", "problem"),
    [
        ("readout_queries", "classes", "kind: expected classes, found the parameters of a readout with given queries"),
        ("tracking_head_points", "boxes", "kind: expected boxes, found the parameters of a point head"),
        ("tracking_head_boxes", "points", "missing: temporal_tile_posenc/embeddings (1, 1, ?, 48)"),
        ("tracking_head_boxes", "readout", "kind: expected readout, found the parameters of a box head"),
        ("readout_depth", "classes", "kind: a head for classes has one query, found 32"),
        ("readout_classify", "pose", "kind: a head for pose reads 2 frames for 12 numbers, found 4 and 10"),
    ],
)
def test_other_kinds_are_refused(name: str, kind: Kind, problem: str, tmp_path: Path) -> None:
    assert problems_of(write_release(tmp_path / "a.npz", load_reference(name).params), kind=kind)[0] == problem


def rewrite(path: Path, change: Mapping[str, str | None]) -> None:
    """Changes the metadata of a .safetensors file."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() | dict(change)
    save_file(load_file(path), path, metadata={key: value for key, value in metadata.items() if value is not None})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format_version": "2"}, "metadata: expected format_version '1', found '2'"),
        ({"kind": None}, "metadata: expected kind readout, points, boxes"),
        ({"kind": "points"}, "kind: expected points, found the parameters of a readout with learned queries"),
        ({"kind": "pose"}, "kind: a head for pose has one query, found 12"),
        ({"video_size": None}, "metadata: expected video_size and patch_size"),
        ({"video_size": "2x8"}, "metadata: expected video_size and patch_size"),
        ({"video_size": "2x8x999999"}, "sizes: expected a video_size of whole patches"),
        ({"video_size": "2x8x8000"}, "sizes: a video of (2, 8, 8000) needs 4000 learned queries, got 12"),
        ({"video_size": None, "patch_size": None}, "metadata: expected the video_size of a depth head"),
        ({"weights_hash": "0" * 64}, "the weights do not match the weights_hash in its metadata: it is damaged"),
    ],
)
def test_wrong_metadata_is_refused(change: dict[str, str | None], problem: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_readout(READOUTS["depth"], path)
    rewrite(path, change)
    assert any(found.startswith(problem) for found in problems_of(path)), problems_of(path)


def test_kind_must_be_what_the_file_says(tmp_path: Path) -> None:
    save_readout(READOUTS["classes"], tmp_path / "a.safetensors")
    assert problems_of(tmp_path / "a.safetensors", kind="readout") == ("kind: expected readout, found classes",)


@pytest.mark.parametrize("name", READOUTS)
def test_one_flipped_bit_is_noticed(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_readout(READOUTS[name], path)
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_readout(path)


@pytest.mark.parametrize("name", READOUTS)
def test_any_missing_tensor_is_told(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_readout(READOUTS[name], path)
    tensors = load_file(path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for missing in tensors:
        save_file({key: value for key, value in tensors.items() if key != missing}, path, metadata=metadata)
        assert any(problem.startswith(f"missing: {missing} ") for problem in problems_of(path)), missing


def test_sizes_are_checked_before_allocation(tmp_path: Path) -> None:
    """A file whose bias claims a thousand times the channels costs no more than its own bytes."""
    params = load_reference("readout_classify").params
    for name in ("Dense_0/bias", "LayerNorm_1/scale", "LayerNorm_1/bias", "MLP_0/Dense_1/bias"):
        params[name] = np.zeros(640_000, np.float32)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **params)  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        assert any(problem.startswith("shape: ") for problem in problems_of(path))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["points", "depth", "recurrent", "release"])
def test_random_damage_is_refused_or_harmless(name: str, tmp_path: Path) -> None:
    """Nothing but `CheckpointError` is raised, and what still loads has the very weights that were saved."""
    path, random = tmp_path / "a", np.random.default_rng(0)
    if name == "release":
        write_release(tmp_path / "a.npz", load_reference("tracking_head_points").params).rename(path)
    else:
        save_readout(READOUTS[name], tmp_path / "a.safetensors")
        (tmp_path / "a.safetensors").rename(path)
    content, weights = path.read_bytes(), load_readout(path).state_dict()
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        near_an_end = random.integers(0, 4096, 2) * [1, -1]
        for at in [int(random.integers(len(damaged))), *near_an_end.tolist()][: random.integers(1, 4)]:
            damaged[at] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loaded = load_readout(path).state_dict()
        except CheckpointError:
            refused += 1
            continue
        assert all(torch.equal(loaded[key], value) for key, value in weights.items())
    assert refused > 140
