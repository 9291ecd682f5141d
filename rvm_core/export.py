"""The recurrent step as a program that other runtimes read: torch.export's, and ONNX's.

Inputs and outputs, under these names and without any free dimension:

    frames    uint8 (B, H, W, 3) RGB, or float32 of the same values, 0 to 255
    state     float32 (B, N+1, D)
    features  float32 (B, N+1, D), also the new state

For a model whose state is a tuple, `state_0`, `state_1` and so on stand for `state`, and `next_0`, `next_1` and so on,
of the same shapes, follow the features. Without memory there is no state.

Preprocessing is part of the program. Types are explicit at every edge, so a runtime that keeps them (a "strongly typed"
one) computes what the model does: the products inside the blocks in the precision asked for; patch embedding, gates,
LayerNorms, softmax and the residual stream in float32.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rvm_core.atomic import publish
from rvm_core.checkpoint import weights_hash
from rvm_core.config import PATCH_SIZE
from rvm_core.engines.base import EngineError, EngineSpec
from rvm_core.fused import Step, cast_copy
from rvm_core.model import RVM
from rvm_core.position import resize_grid
from rvm_core.streaming import State, StreamingEncoder, state_like, state_tensors
from rvm_core.trecvit import TRecViT

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Precisions that can be exported, and the dtype of the products inside the blocks in each."""

OPSET = 20
"""The lowest with all that is used. Its successors' Attention operator is unknown to the TensorRT of most robots, and
none takes it with a float32 softmax."""
INLINE_BYTES = 1 << 27
"""Weights above this go into a file beside the .onnx. As part of it they are in memory three times while it is written,
and as one protocol buffer it may not have 2 GiB."""

_FLOAT, _FLOAT16 = 1, 10
"""ONNX's numbers for float32 and float16."""


@dataclass(frozen=True)
class StepShapes:
    """Shapes and names of what enters and leaves a step."""

    frames: tuple[int, ...]
    features: tuple[int, ...]
    state: tuple[tuple[int, ...], ...]
    """Of its tensors, each float32."""
    features_are_state: bool
    """Whether the features are the new state, which is then a single tensor and no output of its own."""

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("state",) if self.features_are_state else tuple(f"state_{i}" for i in range(len(self.state)))

    @property
    def next_names(self) -> tuple[str, ...]:
        """Of the new state's tensors, in the order of the old one's."""
        return ("features",) if self.features_are_state else tuple(f"next_{i}" for i in range(len(self.state)))

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, in the program's order."""
        return {"frames": self.frames, **dict(zip(self.state_names, self.state, strict=True))}

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, in the program's order."""
        return {"features": self.features, **dict(zip(self.next_names, self.state, strict=True))}

    def make_state(self, tensors: Sequence[Tensor]) -> State:
        """The state of an engine that knows these shapes alone: one tensor, or a tuple of them."""
        return tensors[0] if self.features_are_state else tuple(tensors)


def step_shapes(model: StreamingEncoder, spec: EngineSpec) -> StepShapes:
    """The shapes of a model's step for the image and batch size of `spec`."""
    height, width = spec.image_size
    tokens = (height // PATCH_SIZE) * (width // PATCH_SIZE) + 1
    state = model.init_state(spec.batch_size, height, width)
    return StepShapes(
        frames=(spec.batch_size, height, width, 3),
        features=(spec.batch_size, tokens, model.config.width),
        state=tuple(tuple(tensor.shape) for tensor in state_tensors(state)),
        features_are_state=model.features_are_state,
    )


def export_step(
    model: StreamingEncoder, spec: EngineSpec, *, dtype: torch.dtype, frames_dtype: torch.dtype = torch.uint8
) -> torch.export.ExportedProgram:
    """The step of `model`, which is left as it is, for the image and batch size of `spec`.

    Args:
        dtype: of the products inside the blocks, one of the values of `DTYPES`.
        frames_dtype: torch.uint8 or torch.float32; both hold 0 to 255.
    """
    prepared = _prepare(model, spec, dtype)
    step = _ExportedStep(prepared).requires_grad_(False).eval()
    shapes = step_shapes(prepared, spec)
    inputs = (torch.zeros(shapes.frames, dtype=frames_dtype), *map(torch.zeros, shapes.state))
    with without_future_warnings():
        return torch.export.export(step, inputs, strict=False)


@contextmanager
def without_future_warnings() -> Iterator[None]:
    """Torch raises them about its own code when it traces a program, and when others read one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def to_onnx(
    model: StreamingEncoder,
    spec: EngineSpec,
    path: str | Path,
    *,
    frames_dtype: torch.dtype = torch.uint8,
    half_attention: bool = False,
) -> None:
    """Writes the step of `model` in the precision of `spec` as an ONNX file, whole or not at all.

    The same weights, spec and exporter give the same bytes. Its metadata say the model's name, the hash of its weights,
    precision and shapes. Weights over `INLINE_BYTES` go into a file beside it, `<name>.<hash of them>.data`, whose
    name the .onnx holds; those that an earlier export left there are removed.

    Args:
        half_attention: the two products of attention in float16, whatever the precision of the others.

    Raises `EngineError` if the precision cannot be exported or the exporter is not installed, and `OSError` if a file
    cannot be written.
    """
    if spec.precision not in DTYPES:
        raise EngineError(f"cannot export {spec.precision!r} as ONNX; expected one of {', '.join(DTYPES)}")
    ir, opset = _exporter()
    exported = export_step(model, spec, dtype=DTYPES[spec.precision], frames_dtype=frames_dtype)
    shapes = step_shapes(model, spec)
    program = torch.onnx.export(
        exported,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(shapes.inputs),
        output_names=list(shapes.outputs),
        custom_translation_table={
            torch.ops.aten.scaled_dot_product_attention.default: _attention(opset, half=half_attention)
        },
        verbose=False,
    )
    if program is None:
        raise EngineError("torch's ONNX exporter returned nothing")
    _drop_traces(program.model)
    program.model.metadata_props.update(_metadata(model, spec))
    _save(ir, program.model, Path(path))


class _ExportedStep(nn.Module):
    """The step with each tensor of the states as an input and an output of its own."""

    def __init__(self, model: StreamingEncoder) -> None:
        super().__init__()
        self.step = Step(model)
        self._features_are_state = model.features_are_state
        self._example = model.init_state(1, PATCH_SIZE, PATCH_SIZE)

    def forward(self, frames: Tensor, *state: Tensor) -> Any:
        # TensorRT does nothing with uint8 but convert it, so that comes first.
        features, after = self.step(frames.to(torch.float32), state_like(self._example, state))
        return features if self._features_are_state else (features, *state_tensors(after))


def _prepare(model: StreamingEncoder, spec: EngineSpec, dtype: torch.dtype) -> StreamingEncoder:
    """A copy on the CPU, in the precision, with the positions of this image size as a constant."""
    model = cast_copy(model, dtype).cpu()
    rows, cols = (side // PATCH_SIZE for side in spec.image_size)
    # The step resizes the table to the size it has now, which is to do nothing.
    if isinstance(model, RVM):
        model.encoder.position_table = resize_grid(model.encoder.position_table, rows, cols).contiguous()
    elif isinstance(model, TRecViT):
        table = model.tokenizer.positions(rows, cols).detach().contiguous()
        model.tokenizer.position_table, model.tokenizer.grid = nn.Parameter(table, False), (rows, cols)
    return model


def _exporter() -> tuple[Any, Any]:
    """The modules onnx_ir and onnxscript.opset20."""
    try:
        return import_module("onnx_ir"), import_module("onnxscript").opset20
    except ImportError as error:
        raise EngineError(f"export needs {error.name}: pip install rvm_perception[onnx]") from error


def _attention(op: Any, *, half: bool = False) -> Callable[..., Any]:
    """Translates attention to products in the dtype of its inputs, or in float16, and a softmax in float32.

    The query is scaled before the first product, as TensorRT wants it for its fused kernel, and so that float16 does
    not overflow.
    """

    def translate(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        if attn_mask is not None or dropout_p or is_causal or enable_gqa:
            raise EngineError("only attention without mask, dropout or grouped heads can be exported")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        given = int(query.dtype)
        dtype = _FLOAT16 if half else given
        if dtype != given:
            query, key, value = (op.Cast(x, to=dtype) for x in (query, key, value))
        query = op.Mul(query, op.Cast(op.Constant(value_float=scale), to=dtype))
        logits = op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2]))
        if dtype == _FLOAT:
            return op.MatMul(op.Softmax(logits, axis=-1), value)
        weights = op.Softmax(op.Cast(logits, to=_FLOAT), axis=-1)
        mixed = op.MatMul(op.Cast(weights, to=dtype), value)
        return mixed if dtype == given else op.Cast(mixed, to=given)

    return translate


def _drop_traces(model: Any) -> None:
    """Removes what the exporter noted of the sources: paths of this machine, which would make equal graphs differ."""
    for node in model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()


def _metadata(model: StreamingEncoder, spec: EngineSpec) -> dict[str, str]:
    shapes = step_shapes(model, spec)
    return {
        "rvm.model": model.config.name,
        "rvm.weights_hash": weights_hash(model),
        "rvm.precision": spec.precision,
        **{f"rvm.{name}_shape": "x".join(map(str, shape)) for name, shape in shapes.inputs.items()},
    }


def _save(ir: Any, model: Any, path: Path) -> None:
    tensors = [(name, value.const_value) for name, value in sorted(model.graph.initializers.items())]
    data_name = None
    if sum(tensor.nbytes for _, tensor in tensors) > INLINE_BYTES:
        digest = hashlib.sha256()
        for name, tensor in tensors:
            digest.update(f"{name} {tensor.dtype.name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.tobytes())
        data_name = f"{path.name}.{digest.hexdigest()[:16]}.data"
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder, path.name)
        ir.save(model, temporary, external_data=data_name)
        if data_name:
            publish(temporary.with_name(data_name), path.with_name(data_name))
        publish(temporary, path)
    for stale in path.parent.iterdir():
        if stale.name.startswith(f"{path.name}.") and stale.name.endswith(".data") and stale.name != data_name:
            stale.unlink()
