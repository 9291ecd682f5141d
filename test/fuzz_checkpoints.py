"""Fuzz targets: checkpoints of the model and of readouts, .npz and .safetensors, damaged or made to mislead."""

from __future__ import annotations

import io
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fuzzing import Case, Forbidden, Target, damage, outcome_of
from rvm_core import RVM, CheckpointError, DecoderConfig, RVMConfig, load_checkpoint, save_checkpoint
from rvm_core.readout import AttentionReadout, ReadoutConfig
from rvm_core.readout_checkpoint import load_readout, save_readout
from rvm_core.tensor_file import open_tensor_file

SMALL = RVMConfig(
    width=8,
    encoder_depth=1,
    encoder_heads=2,
    encoder_mlp_width=6,
    core_depth=1,
    core_heads=4,
    core_mlp_width=4,
    decoder=DecoderConfig(width=4, depth=1, num_heads=2, mlp_width=6, max_time_gap=3),
)
torch.set_num_threads(1)
warnings.simplefilter("ignore")


def damaged_file(path: Path, load: Callable[[Path], torch.nn.Module]) -> Case:
    """What still loads after damage has the sizes and the very tensors that were saved, to the last bit."""
    content = path.read_bytes()
    model = load(path)
    config, saved = model.config, model.state_dict()

    def case(numbers: random.Random) -> str:
        path.write_bytes(damage(numbers, content))
        try:
            model = load(path)
        except CheckpointError as error:
            return outcome_of(error)
        loaded = model.state_dict()
        if (
            model.config != config
            or loaded.keys() != saved.keys()
            or not all(torch.equal(loaded[name], saved[name]) for name in saved)
        ):
            raise Forbidden("other weights were loaded than were saved")
        return "loaded"

    return case


def model_target(format: str) -> Callable[[Path], Case]:
    def make(folder: Path) -> Case:
        path = folder / f"model.{format}"
        save_checkpoint(RVM(SMALL), path)
        return damaged_file(path, lambda path: load_checkpoint(path, decoder=True))

    return make


def make_readout(folder: Path) -> Case:
    path = folder / "readout.safetensors"
    sizes: dict[str, Any] = {"features": 12, "channels": 16, "num_heads": 2}
    config = ReadoutConfig(frames=4, outputs=3, query_width=5, mlp_ratio=2, **sizes)
    save_readout(AttentionReadout(config, seed=1), path)
    return damaged_file(path, load_readout)


def make_headers(folder: Path) -> Case:
    """Damage that an archive's checksums do not see, as they were made after it."""
    path = folder / "a.npz"
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"shape": (4, 4), "fortran_order": False, "descr": "<f4"})
    header = stream.getvalue()
    shapes = ("(4, 4)", "(2**9,)", "(-4, -4)", "(99999999999, 4)", "((4, 4))", "[4, 4]", "(4.0, 4)", "()", "(True, 16)")
    dtypes = ("'<f4'", "'>f4'", "'|O'", "'<f2'", "'<i8'", "[('a', '<f4')]", "'<U9'", "'V4'", "__import__('os')", "'<f4")

    def text(numbers: random.Random) -> bytes:
        order = numbers.choice(("True", "False", "1"))
        shape, dtype = numbers.choice(shapes), numbers.choice(dtypes)
        made = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}"
        padded = made.ljust(118 - 1)[:117].encode() + b"\n"
        return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded

    def case(numbers: random.Random) -> str:
        damaged = damage(numbers, header) if numbers.random() < 0.5 else text(numbers)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("cls_token.npy", damaged + bytes(64))
        try:
            with open_tensor_file(path) as opened:
                found = opened.headers["cls_token"]
                if found.dtype not in ("float32", "float16", "bfloat16"):
                    return "another type"
                if opened.read("cls_token").shape != found.shape:
                    raise Forbidden("the tensor has another shape than its header says")
        except CheckpointError as error:
            return outcome_of(error)
        return "tensor"

    return case


TARGETS = {
    "npz": Target(make=model_target("npz"), cases=1500),
    "safetensors": Target(make=model_target("safetensors"), cases=1500),
    "readout": Target(make=make_readout, cases=500),
    "npy headers": Target(make=make_headers, cases=1500),
}
