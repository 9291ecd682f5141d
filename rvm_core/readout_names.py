"""The one table of a readout's parameters: the release's names and axes <-> those of our state_dicts, with shapes.

The release numbers its unnamed layers in the order of their use, so the number of a layer depends on whether the
queries are learned or given.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from rvm_core.checkpoint_checks import check_finite, describe, match_tensors
from rvm_core.parameter_layout import Axes, Layout, Parameter, Row, Symbol
from rvm_core.tensor_file import CheckpointError, TensorHeader

Form: TypeAlias = Literal["learned", "given", "points", "boxes", "recurrent"]
"""What a set of parameters is: a readout with learned or with given queries, a tracking head, a recurrent readout."""

LEARNED_OR_GIVEN: tuple[Form, ...] = ("learned", "given")
RELEASED: tuple[Form, ...] = (*LEARNED_OR_GIVEN, "points", "boxes")
"""All that there is a release of; the rest has our names only."""

_PLAIN = {rank: Axes(tuple(range(rank))) for rank in range(1, 5)}
_LINEAR = Axes((1, 0))
_SPLIT_HEADS = Axes((1, 2, 0))
_MARK = "temporal_posenc/embeddings"
"""A parameter that every readout has, and nothing else."""
_NO_BLOCKS = r"(?!)()"


def _dense(name: str, stored: str, inputs: Symbol, outputs: Symbol) -> list[Row]:
    return [
        Row(f"{name}.weight", f"{stored}/kernel", (outputs, inputs), _LINEAR),
        Row(f"{name}.bias", f"{stored}/bias", (outputs,), _PLAIN[1]),
    ]


def _norm(name: str, stored: str, width: Symbol) -> list[Row]:
    return [
        Row(f"{name}.weight", f"{stored}/scale", (width,), _PLAIN[1]),
        Row(f"{name}.bias", f"{stored}/bias", (width,), _PLAIN[1]),
    ]


def _split(name: str) -> list[Row]:
    shape: tuple[Symbol, ...] = ("num_heads", "channels/num_heads", "features")
    return [
        Row(f"{name}.weight", f"{name}/kernel", shape, _SPLIT_HEADS),
        Row(f"{name}.bias", f"{name}/bias", shape[:2], _PLAIN[2]),
    ]


def _readout(*, given: bool) -> list[Row]:
    if given:
        query = _dense("query_embedding", "Dense_0", "query_width", "channels")
    else:
        query = [Row("query", "query", ("num_queries", "num_heads", "channels/num_heads"), _PLAIN[3])]
    return [
        *_norm("input_norm", "LayerNorm_0", "features"),
        Row("temporal_posenc", _MARK, (1, "frames", 1, "features"), _PLAIN[4]),
        *query,
        *_split("key_embedding"),
        *_split("value_embedding"),
        *_dense("attention_output", f"Dense_{int(given)}", "channels", "channels"),
        *_norm("mlp_norm", "LayerNorm_1", "channels"),
        *_dense("mlp.dense_in", "MLP_0/Dense_0", "channels", "mlp_width"),
        *_dense("mlp.dense_out", "MLP_0/Dense_1", "mlp_width", "channels"),
        *_dense("output", f"Dense_{1 + given}", "channels", "outputs"),
    ]


def _tracking_head() -> list[Row]:
    inside = [
        replace(row, name=f"readout.{row.name}", stored=f"attention_readout/{row.stored}")
        for row in _readout(given=True)
    ]
    return [
        *inside,
        *_dense("queries.dense_in", "query_initializer/layers_1/Dense_0", "query_inputs", "query_hidden"),
        *_dense("queries.dense_out", "query_initializer/layers_1/Dense_1", "query_hidden", "query_width"),
    ]


def _recurrent() -> list[Row]:
    norms = {"input_norm": "features"} | dict.fromkeys(("query_norm", "mlp_norm", "candidate_norm"), "channels")
    layers: dict[str, tuple[Symbol, Symbol]] = {
        "input_embedding": ("features", "channels"),
        "cell_embedding": ("cell_inputs", "channels"),
        "position_embedding.dense_in": ("position_inputs", "channels"),
        "position_embedding.dense_out": ("channels", "channels"),
        "mlp.dense_in": ("channels", "mlp_width"),
        "mlp.dense_out": ("mlp_width", "channels"),
        "update": ("two_channels", "channels"),
        "match": ("two_channels", "channels"),
        "cell_match": ("features", "channels"),
        "offset": ("channels", "coordinates"),
        "near": ("channels", 1),
        "seen": ("seen_inputs", 2),
    }
    head: Symbol = "channels/num_heads"
    rows = [row for name, width in norms.items() for row in _norm(name, name, width)]
    rows += [row for name, (inputs, outputs) in layers.items() for row in _dense(name, name, inputs, outputs)]
    others: dict[str, tuple[Symbol, ...]] = {
        "attention.out.weight": ("channels", "num_heads", head),
        "attention.out.bias": ("channels",),
        "sharpness": (1,),
    }
    for part in ("attention.query", "attention.key", "attention.value"):
        others |= {f"{part}.weight": ("num_heads", head, "channels"), f"{part}.bias": ("num_heads", head)}
    return [*rows, *(Row(name, name, shape, _PLAIN[len(shape)]) for name, shape in others.items())]


_TABLES: dict[Form, list[Row]] = {
    "learned": _readout(given=False),
    "given": _readout(given=True),
    "points": [
        *_tracking_head(),
        Row("copy_embedding", "temporal_tile_posenc/embeddings", (1, 1, "copies", "query_width"), _PLAIN[4]),
    ],
    "boxes": _tracking_head(),
    "recurrent": _recurrent(),
}


def readout_layout(form: Form, *, own: bool = False, prefix: str = "") -> Layout:
    """Names, axes and shapes: the release's behind a prefix, or, with `own`, those of our state_dict."""
    rows = _TABLES[form]
    if own:
        return Layout([replace(row, stored=row.name, axes=_PLAIN[len(row.shape)]) for row in rows], _NO_BLOCKS)
    return Layout([replace(row, stored=prefix + row.stored) for row in rows], _NO_BLOCKS)


def find_form(
    names: Collection[str],
    forms: Sequence[Form],
    *,
    own: bool = False,
    prefix: str = "",
    preferred: Sequence[Form] = (),
) -> Form | None:
    """Which of the forms has the most of these names, and the fewest others; None if none has any of them.

    A preferred form that has all of these names wins, for what it has beside them is but missing.
    """
    known = {form: {parameter.stored for parameter in _parameters(form, own, prefix)} for form in forms}
    found = [form for form in forms if known[form] & set(names)]
    likely = [form for form in found if form in preferred and known[form] >= set(names)]
    return max(
        likely or found,
        key=lambda form: len(known[form] & set(names)) - len(known[form] - set(names)),
        default=None,
    )


def find_readouts(names: Iterable[str]) -> list[str]:
    """What stands in front of the release's names of each readout in a file, "" or "params/layers_2/" for instance."""
    found = set()
    for name in names:
        head, mark, tail = name.rpartition(_MARK)
        if mark and not tail and (not head or head.endswith("/")):
            found.add(head.removesuffix("attention_readout/"))
    return sorted(found)


def check_readout(
    headers: Mapping[str, TensorHeader], form: Form, *, own: bool = False, prefix: str = ""
) -> tuple[list[Parameter], dict[str, int], list[str]]:
    """The sound parameters, every size that the shapes tell, and all problems that names, shapes and dtypes show."""
    layout = readout_layout(form, own=own, prefix=prefix)
    sizes = layout.infer_sizes({name: header.shape for name, header in headers.items()})
    sound, problems = match_tensors(headers, layout.parameters(sizes), sizes)
    return sound, sizes, problems + _size_problems(sizes, form)


def parameters_from_release(
    params: Mapping[str, np.ndarray], forms: Sequence[Form]
) -> tuple[Form, dict[str, int], dict[str, Tensor]]:
    """(form, sizes, state_dict in float32) of the release's parameters, by their flat names.

    Raises `CheckpointError` with everything that is missing, unexpected, mis-shaped, mistyped or not finite.
    """
    form = find_form(params.keys(), forms) or forms[0]
    headers = {name: TensorHeader(array.shape, str(array.dtype)) for name, array in params.items()}
    sound, sizes, problems = check_readout(headers, form)
    state = {}
    for parameter in sound:
        tensor = torch.from_numpy(np.array(params[parameter.stored], dtype=np.float32))
        problems += check_finite(parameter.stored, tensor)
        state[parameter.name] = parameter.row.axes.to_own(tensor).contiguous()
    if problems:
        raise CheckpointError("parameters", f"not those of a readout, {describe(len(problems))}:", tuple(problems))
    return form, sizes, state


def _parameters(form: Form, own: bool, prefix: str) -> list[Parameter]:
    return readout_layout(form, own=own, prefix=prefix).parameters({})


def _size_problems(sizes: Mapping[str, int], form: Form) -> list[str]:
    """Sizes that no readout can have, though each shape agrees with the others."""
    problems = []
    missing = {symbol for row in _TABLES[form] for symbol in row.shape if isinstance(symbol, str) and "/" not in symbol}
    problems += [f"sizes: no tensor tells {name}" for name in sorted(missing - sizes.keys())]
    if problems:
        return problems
    for number, divisor in [("channels", "num_heads"), ("mlp_width", "channels")]:
        if sizes[number] % sizes[divisor]:
            problems.append(f"sizes: {divisor} {sizes[divisor]} does not divide {number} {sizes[number]}")
    return problems + _head_problems(sizes, form)


def _head_problems(sizes: Mapping[str, int], form: Form) -> list[str]:
    if form == "recurrent":
        return _recurrent_problems(sizes)
    if form in LEARNED_OR_GIVEN:
        return []
    coordinates, frames, copies = (2, sizes["frames"], sizes["copies"]) if form == "points" else (4, sizes["frames"], 1)
    problems = []
    if sizes["query_inputs"] % (2 * coordinates):
        problems.append(f"sizes: {sizes['query_inputs']} Fourier features are not those of {coordinates} coordinates")
    # A point has two logits beside its two coordinates, so either head gives four numbers a frame.
    if frames % copies or sizes["outputs"] != 4 * frames // copies:
        problems.append(
            f"sizes: {copies} queries of {sizes['outputs']} outputs are not 4 numbers for each of {frames} frames"
        )
    return problems


def _recurrent_problems(sizes: Mapping[str, int]) -> list[str]:
    channels, coordinates, bases = sizes["channels"], sizes["coordinates"], sizes["cell_inputs"] // 4
    expected = {
        "cell_inputs": 4 * bases,
        "position_inputs": 2 * bases * coordinates,
        "two_channels": 2 * channels,
        "seen_inputs": channels + 1,
    }
    problems = [
        f"sizes: {name} must be {size} for {channels} channels, {coordinates} coordinates and {bases} bases, "
        f"found {sizes[name]}"
        for name, size in expected.items()
        if sizes[name] != size
    ]
    if coordinates not in (2, 4):
        problems.append(f"sizes: expected 2 or 4 coordinates, found {coordinates}")
    return problems
