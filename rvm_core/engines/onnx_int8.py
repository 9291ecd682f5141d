"""The step as ONNX with 8-bit factors, for runtimes that read QuantizeLinear and DequantizeLinear.

They are in the products with weights inside the blocks. The products of attention are float16. Patch embedding, gates,
LayerNorms, softmax and the residual stream stay float32 as in every precision.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from rvm_core.engines.base import EngineError, EngineSpec, Progress
from rvm_core.engines.calibration import calibration_inputs, check_int8, check_nncf, quantize
from rvm_core.engines.torch import TorchEngine
from rvm_core.export import step_shapes, to_onnx
from rvm_core.model import RVM
from rvm_core.streaming import StreamingEncoder

MAX_BYTES = (1 << 31) - (1 << 24)
"""A protocol buffer may have 2 GiB, of which the graph beside the weights takes little."""

_FLOAT_BYTES = 4


def to_int8_onnx(model: StreamingEncoder, spec: EngineSpec, path: Path, progress: Progress) -> None:
    """Writes the step as an ONNX file, and its weights as one beside it with the suffix .data.

    All numbers in 8 bits are symmetric, as TensorRT wants them. Raises `EngineError` if a package for it is missing, or
    the model is larger than an ONNX graph in memory may be.
    """
    check_int8(model)
    assert isinstance(model, RVM)
    check_nncf("onnxruntime")
    size = sum(
        parameter.numel() * _FLOAT_BYTES for parameter in (*model.encoder.parameters(), *model.core.parameters())
    )
    if size > MAX_BYTES:
        raise EngineError(
            f"int8 for TensorRT is for models of up to {MAX_BYTES / 1e9:.1f} GB in float32, this one has "
            f"{size / 1e9:.1f} GB; choose fp16 or bf16"
        )
    onnx, optimizer = import_module("onnx"), import_module("onnxscript.optimizer")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        to_onnx(model, replace(spec, precision="fp32"), Path(folder, "step.onnx"), half_attention=True)
        graph = onnx.load(Path(folder, "step.onnx"))
    # NNCF knows weights only as they enter a product; large ones are exported with their transposition to be done.
    graph = optimizer.optimize(graph, input_size_limit=sys.maxsize, output_size_limit=sys.maxsize)
    progress("computing the states of the calibration; int8 takes minutes")
    inputs = _calibration_inputs(model, spec)
    names = [*_attention_products(graph, model), *_gate_products(graph)]
    quantized = quantize(graph, inputs, without_names=names, without_types=["Conv"], symmetric=True, progress=progress)
    onnx.save(quantized, path, save_as_external_data=True, location=f"{path.name}.data")


def _calibration_inputs(model: RVM, spec: EngineSpec) -> list[dict[str, Any]]:
    engine = TorchEngine(model, replace(spec, backend="torch", precision="fp32", device="cpu"))
    shapes = step_shapes(model, spec)
    inputs = calibration_inputs(
        spec,
        shapes.state[0],
        lambda frames, state: engine.step(frames, torch.from_numpy(state))[0].numpy(),
    )
    return [dict(zip(shapes.inputs, pair, strict=True)) for pair in inputs]


def _attention_products(graph: Any, model: RVM) -> list[str]:
    """Names of the products without weights."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    found = [node.name for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] not in weights]
    expected = 2 * (model.config.encoder_depth + 2 * model.config.core_depth)
    if len(found) != expected:
        raise EngineError(f"expected {expected} products without weights in the ONNX graph, found {len(found)}")
    return found


def _gate_products(graph: Any) -> list[str]:
    """Names of the products whose sum goes through a sigmoid: those of the gates, and no others."""
    makers = {name: node for node in graph.graph.node for name in node.output}
    sums = [makers[node.input[0]] for node in graph.graph.node if node.op_type == "Sigmoid"]
    found = [makers[name].name for node in sums for name in node.input if makers[name].op_type == "MatMul"]
    if len(found) != 2:
        raise EngineError(f"expected two products in the gates of the ONNX graph, found {len(found)}")
    return found
