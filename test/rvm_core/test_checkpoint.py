"""Loading, saving and hashing of sound checkpoints, and the errors of unsound weights in sound files."""

import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from rvm_core import RVM, CheckpointError, DecoderConfig, RVMConfig, load_checkpoint, save_checkpoint, weights_hash
from rvm_core.checkpoint import read_info

Tensors = dict[str, torch.Tensor]
FORMATS = ["npz", "safetensors"]

DENSE = {"npz": "encoder/layers_1/mlp/dense_in/kernel", "safetensors": "encoder.blocks.1.mlp.dense_in.weight"}
QUERY = {
    "npz": "rnn_core/transformer/xa_blocks_2/attention/query/kernel",
    "safetensors": "core.transformer.blocks.2.attention.query.weight",
}
DECODER_BIAS = {"npz": "decoder_embedder/bias", "safetensors": "decoder.embedding.bias"}


@pytest.fixture(params=FORMATS)
def format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stored(format: str, tiny_path: Path, tiny_model: RVM) -> Tensors:
    """The tiny checkpoint's tensors under the names of a format, to be damaged by a test."""
    if format == "npz":
        with np.load(tiny_path) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    return {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}


@pytest.fixture
def write(format: str, tmp_path: Path) -> Callable[..., Path]:
    """Writes tensors as a file of a format, with any library but ours."""

    def write_file(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
        path = tmp_path / f"written.{format}"
        if format == "npz":
            np.savez(path, **{name: to_numpy(tensor) for name, tensor in tensors.items()})  # type: ignore[arg-type]
        else:
            given = {"format_version": "1"} if metadata is None else dict(metadata)
            safetensors.torch.save_file(tensors, path, metadata=given)
        return path

    return write_file


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """As the ml_dtypes package writes it: bfloat16 becomes two raw bytes."""
    return tensor.view(torch.int16).numpy().view("V2") if tensor.dtype == torch.bfloat16 else tensor.numpy()


def assert_same(model: RVM, other: RVM) -> None:
    state, other_state = model.state_dict(), other.state_dict()
    assert state.keys() == other_state.keys()
    for name, tensor in state.items():
        assert tensor.dtype == other_state[name].dtype == torch.float32, name
        assert torch.equal(tensor, other_state[name]), name


# Sound checkpoints.


def test_sizes_are_inferred(tiny_path: Path) -> None:
    config = RVMConfig(
        width=64,
        encoder_depth=2,
        encoder_heads=4,
        encoder_mlp_width=128,
        core_depth=3,
        core_heads=8,
        core_mlp_width=96,
        decoder=DecoderConfig(width=32, depth=2, num_heads=4, mlp_width=64),
    )
    info = read_info(tiny_path)
    assert info.config == config
    assert info.format == "npz"
    assert info.dtypes == ("float32",)
    assert info.file_bytes == tiny_path.stat().st_size
    model = load_checkpoint(tiny_path, decoder=True)
    assert model.config == config
    parts = {"encoder": model.encoder, "core": model.core, "decoder": model.decoder}
    assert info.parameters == {
        name: sum(parameter.numel() for parameter in part.parameters()) for name, part in parts.items() if part
    }


def test_model_is_float32_and_in_eval_mode(tiny_path: Path) -> None:
    model = load_checkpoint(tiny_path)
    assert not model.training
    assert model.decoder is None
    assert model.config.decoder is None
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_official_layout_is_read_as_numpy_reads_it(tiny_path: Path, tiny_model: RVM) -> None:
    """One parameter of each kind, turned by hand."""
    state = tiny_model.state_dict()
    with np.load(tiny_path) as file:
        patches = file["tokenizer/patch_embedding/Conv_0/kernel"]
        query = file["encoder/layers_0/attention/query/kernel"]
        out = file["encoder/layers_0/attention/out/kernel"]
        dense = file["encoder/layers_0/mlp/dense_in/kernel"]
        scale = file["rnn_core/state_layer_norm/scale"]
    assert np.array_equal(state["encoder.patch_embedding.weight"][5, 2, 3, 7], patches[0, 3, 7, 2, 5])
    assert np.array_equal(state["encoder.blocks.0.attention.query.weight"][1, 2], query[:, 1, 2])
    assert np.array_equal(state["encoder.blocks.0.attention.out.weight"][3], out[:, :, 3])
    assert np.array_equal(state["encoder.blocks.0.mlp.dense_in.weight"], dense.T)
    assert np.array_equal(state["core.state_norm.weight"], scale)


@pytest.mark.parametrize("decoder", [False, True])
def test_round_trip_is_bit_equal(tiny_path: Path, tmp_path: Path, decoder: bool) -> None:
    model = load_checkpoint(tiny_path, decoder=decoder)
    save_checkpoint(model, tmp_path / "a.safetensors")
    save_checkpoint(load_checkpoint(tmp_path / "a.safetensors", decoder=decoder), tmp_path / "b.npz")
    assert_same(load_checkpoint(tmp_path / "b.npz", decoder=decoder), model)
    with np.load(tiny_path) as release, np.load(tmp_path / "b.npz") as ours:
        names = [name for name in release.files if decoder or not is_decoder(name)]
        assert sorted(ours.files) == sorted(names)
        for name in names:
            assert np.array_equal(ours[name], release[name]), name
            assert ours[name].dtype == release[name].dtype, name


def is_decoder(official: str) -> bool:
    return official.startswith(("decoder", "detokenizer", "delta_embedder", "mask_token"))


def test_format_is_told_by_content(tiny_model: RVM, tmp_path: Path) -> None:
    for format, other in (("npz", "safetensors"), ("safetensors", "npz")):
        path = tmp_path / f"model.{format}"
        save_checkpoint(tiny_model, path)
        misnamed = path.rename(tmp_path / f"misnamed.{other}")
        assert_same(load_checkpoint(misnamed, decoder=True), tiny_model)


def test_compressed_archive_is_read(tiny_path: Path, tiny_model: RVM, tmp_path: Path) -> None:
    with np.load(tiny_path) as file:
        arrays = {name: np.asfortranarray(file[name]) for name in file.files}
    np.savez_compressed(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    assert_same(load_checkpoint(tmp_path / "a.npz", decoder=True), tiny_model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted(tiny_path: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    with np.load(tiny_path) as file:
        half = {name: torch.from_numpy(file[name]).to(dtype) for name in file.files}
    np.savez(tmp_path / "half.npz", **{name: to_numpy(tensor) for name, tensor in half.items()})  # type: ignore[arg-type]
    model = load_checkpoint(tmp_path / "half.npz")
    expected = load_checkpoint(tiny_path)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert torch.equal(parameter, expected.state_dict()[name].to(dtype).float()), name
    assert read_info(tmp_path / "half.npz").dtypes == (str(dtype).removeprefix("torch."),)


def test_named_size(tmp_path: Path) -> None:
    model = RVM(RVMConfig.named("rvm_s16"))
    path = tmp_path / "model.npz"
    save_checkpoint(model, path)
    largest = max(parameter.numel() for parameter in model.parameters()) * 4
    tracemalloc.start()
    try:
        loaded = load_checkpoint(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert loaded.config.name == "rvm_s16"
    assert loaded.config == RVMConfig.named("rvm_s16")
    assert_same(loaded, model)
    # Beside torch's own memory for the model: one tensor, the one before, and the tables of names and positions.
    assert peak < 2 * largest + (4 << 20)


def test_progress_tells_every_parameter(tiny_path: Path, tmp_path: Path, format: str) -> None:
    counts: list[int] = []
    model = load_checkpoint(tiny_path, decoder=True, progress=counts.append)
    assert sum(counts) == sum(parameter.numel() for parameter in model.parameters())
    counts.clear()
    save_checkpoint(model, tmp_path / f"a.{format}", progress=counts.append)
    assert sum(counts) == sum(parameter.numel() for parameter in model.parameters())


# The hash.


def test_hash_is_that_of_the_weights(tiny_path: Path, tiny_model: RVM, tmp_path: Path, format: str) -> None:
    path = tmp_path / f"a.{format}"
    save_checkpoint(tiny_model, path)
    hashes = {weights_hash(load_checkpoint(path, decoder=decoder)) for decoder in (False, True)}
    assert hashes == {weights_hash(load_checkpoint(tiny_path))} == {weights_hash(tiny_model)}
    assert len(hashes.pop()) == 64


def test_hash_changes_with_any_weight_but_the_decoders(tiny_path: Path) -> None:
    model = load_checkpoint(tiny_path, decoder=True)
    before = weights_hash(model)
    state = model.state_dict()
    state["decoder.mask_token"].add_(1)
    assert weights_hash(model) == before
    for name in ("encoder.cls_token", "core.state_norm.weight"):
        value = state[name].view(-1)
        kept = value[0].clone()
        value[0] = torch.nextafter(kept, torch.tensor(torch.inf))
        assert weights_hash(model) != before, name
        value[0] = kept
    assert weights_hash(model) == before


# Saving.


def test_equal_weights_make_equal_files(tiny_model: RVM, tmp_path: Path) -> None:
    save_checkpoint(tiny_model, tmp_path / "a.npz")
    save_checkpoint(tiny_model, tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_safetensors_metadata(tiny_model: RVM, tmp_path: Path) -> None:
    save_checkpoint(tiny_model, tmp_path / "a.safetensors")
    with safetensors.safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format_version"] == "1"
    assert metadata["model"] == "rvm_custom"
    assert metadata["weights_hash"] == weights_hash(tiny_model)


def test_saving_refuses_other_suffixes(tiny_model: RVM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends with .npz or .safetensors, got 'a.pt'"):
        save_checkpoint(tiny_model, tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


def test_failed_save_leaves_old_file(tiny_model: RVM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"old")
    written = 0

    def fill_disk(count: int) -> None:
        nonlocal written
        written += 1
        if written == 5:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tiny_model, path, progress=fill_disk)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# Unsound weights.


def problems_of(path: Path, *, decoder: bool = False) -> tuple[str, ...]:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, decoder=decoder)
    assert str(path) in str(caught.value)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def test_missing_tensor(stored: Tensors, write: Callable[..., Path], format: str) -> None:
    shape = tuple(stored.pop(DENSE[format]).shape)
    assert problems_of(write(stored)) == (f"missing: {DENSE[format]} {shape}",)


def test_unexpected_tensor(stored: Tensors, write: Callable[..., Path]) -> None:
    stored["encoder/extra"] = torch.zeros(3, 4)
    assert problems_of(write(stored)) == ("unexpected: encoder/extra (3, 4)",)


def test_misshaped_tensor(stored: Tensors, write: Callable[..., Path], format: str) -> None:
    shape = tuple(stored[QUERY[format]].shape)
    found = (shape[0], shape[1] + 1, shape[2])
    stored[QUERY[format]] = torch.zeros(found)
    assert problems_of(write(stored)) == (f"shape: {QUERY[format]}: expected {shape}, found {found}",)


def test_tensor_with_other_number_of_axes(stored: Tensors, write: Callable[..., Path], format: str) -> None:
    shape = tuple(stored[QUERY[format]].shape)
    stored[QUERY[format]] = stored[QUERY[format]].flatten()
    assert problems_of(write(stored)) == (f"shape: {QUERY[format]}: expected {shape}, found (4096)",)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.bool])
def test_wrong_dtype(stored: Tensors, write: Callable[..., Path], format: str, dtype: torch.dtype) -> None:
    stored[DENSE[format]] = stored[DENSE[format]].to(dtype)
    (problem,) = problems_of(write(stored))
    assert problem.startswith(f"dtype: {DENSE[format]}: expected float32, float16, bfloat16, found ")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensor_that_is_not_finite(
    stored: Tensors, write: Callable[..., Path], format: str, value: float, dtype: torch.dtype
) -> None:
    stored[DENSE[format]] = stored[DENSE[format]].to(dtype)
    stored[DENSE[format]][3, :2] = value
    assert problems_of(write(stored)) == (f"not finite: {DENSE[format]}: 2 of 8192 values",)


def test_every_problem_is_told_at_once(stored: Tensors, write: Callable[..., Path], format: str) -> None:
    names = sorted(name for name in stored if "norm" in name and not is_decoder(name))
    del stored[names[0]], stored[names[1]]
    stored["extra_1"] = torch.zeros(1)
    stored["extra_2"] = torch.zeros(1)
    stored[QUERY[format]] = torch.zeros(2, 2)
    stored[DENSE[format]] = stored[DENSE[format]].double()
    stored[names[2]][0] = torch.nan
    stored[names[3]][0] = torch.inf
    found = [problem.split()[0:2] for problem in problems_of(write(stored))]
    assert found == [
        ["dtype:", f"{DENSE[format]}:"],
        ["missing:", names[0]],
        ["missing:", names[1]],
        ["shape:", f"{QUERY[format]}:"],
        ["unexpected:", "extra_1"],
        ["unexpected:", "extra_2"],
        ["not", "finite:"],
        ["not", "finite:"],
    ]


def test_missing_core_is_told_with_what_is_known(stored: Tensors, write: Callable[..., Path], format: str) -> None:
    kept = {name: tensor for name, tensor in stored.items() if not name.startswith(("core", "rnn_core"))}
    problems = problems_of(write(kept))
    query = QUERY[format].replace("2", "0")
    assert f"missing: {query} {'(64, ?, ?)' if format == 'npz' else '(?, ?, 64)'}" in problems
    assert "sizes: no tensor tells core_depth" in problems
    assert all(problem.startswith(("missing: ", "sizes: ")) for problem in problems)


def test_sizes_that_do_not_fit(stored: Tensors, write: Callable[..., Path], format: str) -> None:
    """All attention of the core agrees on 3 heads, which do not divide the width of 64."""
    for name, tensor in list(stored.items()):
        if name.startswith(("core", "rnn_core")) and "attention" in name and tensor.ndim > 1:
            stored[name] = torch.zeros([3 if size == 8 else size for size in tensor.shape])
    problems = problems_of(write(stored))
    assert any("core_heads must divide width, got 3 and 64" in problem for problem in problems)


def test_block_far_beyond_the_last_costs_nothing(stored: Tensors, write: Callable[..., Path], format: str) -> None:
    for block in (99999, 999999999):
        stored[DENSE[format].replace("1", str(block))] = torch.zeros(64, 128)
    problems = problems_of(write(stored))
    assert len(problems) < 30
    for block in (99999, 999999999):
        assert f"unexpected: {DENSE[format].replace('1', str(block))} (64, 128)" in problems


def test_decoder_that_is_not_there(tiny_path: Path, tmp_path: Path, format: str) -> None:
    path = tmp_path / f"a.{format}"
    save_checkpoint(load_checkpoint(tiny_path), path)
    assert load_checkpoint(path).decoder is None
    assert problems_of(path, decoder=True) == ("missing: the decoder; load this checkpoint with decoder=False",)


@pytest.mark.parametrize("decoder", [False, True])
def test_incomplete_decoder(stored: Tensors, write: Callable[..., Path], format: str, decoder: bool) -> None:
    """A decoder that is not wanted is checked all the same, but its values are not read."""
    del stored[DECODER_BIAS[format]]
    assert problems_of(write(stored), decoder=decoder) == (f"missing: {DECODER_BIAS[format]} (32)",)


def test_other_tensors(write: Callable[..., Path]) -> None:
    (problem,) = problems_of(write({"weight": torch.zeros(2), "bias\x1b[2J": torch.zeros(2)}))
    assert problem.startswith("none of its 2 tensors is a parameter of RVM: ")
    assert "weight" in problem
    assert "\x1b" not in problem


@pytest.mark.parametrize("metadata", [{}, {"format_version": "2"}, {"format": "pt"}])
def test_safetensors_of_another_version(tiny_model: RVM, tmp_path: Path, metadata: dict[str, str]) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(tiny_model.state_dict(), path, metadata=metadata)
    (problem,) = problems_of(path)
    assert problem.startswith("metadata: expected format_version '1', found ")


@pytest.mark.parametrize(("name", "key"), [("core.state_norm.weight", "weights"), ("decoder.mask_token", "decoder")])
def test_safetensors_with_flipped_bit(tiny_model: RVM, tmp_path: Path, name: str, key: str) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(tiny_model, path)
    tensors = tiny_model.state_dict()[name].numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(tensors)] ^= 1
    path.write_bytes(content)
    (problem,) = problems_of(path, decoder=True)
    assert problem == f"the weights do not match the {key}_hash in the file's metadata: it is damaged"
