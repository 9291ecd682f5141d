"""Randomly damaged checkpoints: nothing but `CheckpointError` is raised, and nothing wrong is loaded."""

import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rvm_core import RVM, CheckpointError, DecoderConfig, RVMConfig, load_checkpoint, save_checkpoint
from rvm_core.tensor_file import open_tensor_file


@pytest.fixture(scope="module")
def small_model() -> RVM:
    return RVM(
        RVMConfig(
            width=8,
            encoder_depth=1,
            encoder_heads=2,
            encoder_mlp_width=6,
            core_depth=1,
            core_heads=4,
            core_mlp_width=4,
            decoder=DecoderConfig(width=4, depth=1, num_heads=2, mlp_width=6, max_time_gap=3),
        )
    )


def place(size: int) -> st.SearchStrategy[int]:
    """Anywhere, and more often near both ends, where the directories are."""
    return st.one_of(
        st.integers(0, size - 1), st.integers(0, min(size, 4096) - 1), st.integers(max(0, size - 8192), size - 1)
    )


@st.composite
def damage(draw: st.DrawFn, content: bytes) -> bytes:
    damaged = bytearray(content)
    kind = draw(st.sampled_from(["flip", "set", "cut", "insert", "remove"]))
    if kind == "cut":
        return content[: draw(place(len(content)))]
    for _ in range(draw(st.integers(1, 4))):
        at = draw(place(len(damaged)))
        if kind == "flip":
            damaged[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            damaged[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == "insert":
            damaged[at:at] = draw(st.binary(min_size=1, max_size=16))
        else:
            del damaged[at : at + draw(st.integers(1, 16))]
    return bytes(damaged)


@pytest.mark.parametrize("format", ["npz", "safetensors"])
def test_random_damage_is_refused_or_harmless(small_model: RVM, tmp_path: Path, format: str) -> None:
    """Nothing but `CheckpointError` is raised, and what still loads has the very weights that were saved."""
    path = tmp_path / f"a.{format}"
    save_checkpoint(small_model, path)
    content = path.read_bytes()
    weights = small_model.state_dict()
    refusals = 0

    @settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(damage(content))
    def load(damaged: bytes) -> None:
        nonlocal refusals
        path.write_bytes(damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = load_checkpoint(path, decoder=True)
        except CheckpointError:
            refusals += 1
            return
        assert model.config == small_model.config
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())

    load()
    assert refusals > 200


def test_random_array_headers_are_refused_or_harmless(tmp_path: Path) -> None:
    """Damage that the archive's checksums do not see, because they were made after it."""
    path = tmp_path / "a.npz"
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"shape": (4, 4), "fortran_order": False, "descr": "<f4"})
    header = stream.getvalue()

    @settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.one_of(damage(header), st.binary(max_size=80).map(lambda text: header[:8] + b"\x50\x00" + text)))
    def open_file(damaged: bytes) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("cls_token.npy", damaged + bytes(64))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with open_tensor_file(path) as opened:
                    shape, dtype = opened.headers["cls_token"].shape, opened.headers["cls_token"].dtype
                    if dtype in ("float32", "float16", "bfloat16"):
                        assert opened.read("cls_token").shape == shape
        except CheckpointError:
            pass

    open_file()
