"""Compares the tensors of a file with the parameters that are expected, and reads them; collects every problem."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from rvm_core.parameter_layout import Parameter, PartialShape
from rvm_core.tensor_file import CheckpointError, TensorFile, TensorHeader, printable

DTYPES = ("float32", "float16", "bfloat16")
"""What weights may be stored in."""


def match_tensors(
    headers: Mapping[str, TensorHeader], parameters: Iterable[Parameter], sizes: Mapping[str, int]
) -> tuple[list[Parameter], list[str]]:
    """The parameters whose tensors are as expected, and all that is missing, unexpected, mis-shaped or mistyped."""
    expected = {parameter.stored: parameter for parameter in parameters}
    sound: list[Parameter] = []
    problems = [
        f"unexpected: {printable(name)} {shape_text(headers[name].shape)}" for name in headers.keys() - expected.keys()
    ]
    for name, parameter in expected.items():
        shape = parameter.stored_shape(sizes)
        header = headers.get(name)
        if header is None:
            problems.append(f"missing: {name} {shape_text(shape)}")
        elif header.shape != shape:
            problems.append(f"shape: {name}: expected {shape_text(shape)}, found {shape_text(header.shape)}")
        elif header.dtype not in DTYPES:
            problems.append(f"dtype: {name}: expected {', '.join(DTYPES)}, found {printable(header.dtype)}")
        else:
            sound.append(parameter)
    return sound, sorted(problems)


def read_parameters(
    file: TensorFile, parameters: Iterable[Parameter], problems: list[str]
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors as in the state_dict, in the file's dtype; adds those damaged or not finite to `problems`."""
    for parameter in parameters:
        try:
            tensor = file.read(parameter.stored)
        except CheckpointError as error:
            problems += [f"unreadable: {problem}" for problem in error.problems]
            continue
        problems += check_finite(parameter.stored, tensor)
        yield parameter.name, parameter.row.axes.to_own(tensor)


def check_readable(file: TensorFile, parameters: Iterable[Parameter]) -> list[str]:
    """Reads tensors for their problems only."""
    problems: list[str] = []
    for _ in read_parameters(file, parameters, problems):
        pass
    return problems


def check_finite(name: str, tensor: Tensor) -> list[str]:
    """The problem of a tensor with values that are not finite, or none."""
    bad = tensor.numel() - int(torch.isfinite(tensor).sum())
    return [f"not finite: {name}: {bad} of {tensor.numel()} values"] if bad else []


def describe(count: int) -> str:
    """ "1 problem", "2 problems"."""
    return f"{count} problem{'s' if count > 1 else ''}"


def tensors_hash(items: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 (hex) over names, shapes and float32 values, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(items, key=lambda item: item[0]):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()


def shape_text(shape: PartialShape) -> str:
    """A shape for a message; "?" for a size that is not known."""
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"
