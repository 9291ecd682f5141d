"""The OpenVINO engine: the fastest on x86 CPUs.

The files are OpenVINO's own graph and its weights, in the engine's precision. Weights are mapped into memory, and the
graph is compiled in under a second. A compiled blob saves little of that, and holds bfloat16 weights as float32.

In int8 the products with weights inside the blocks have 8-bit factors. Those of attention are bfloat16 where the
processor has it: in 8 bits they are no faster. Patch embedding, gates, LayerNorms, softmax and the residual stream stay
float32 as in every precision.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rvm_core.engines.base import Engine, EngineError, EngineSpec, Progress
from rvm_core.engines.calibration import calibration_inputs, check_int8, check_nncf, quantize
from rvm_core.export import DTYPES, StepShapes, export_step, step_shapes, without_future_warnings
from rvm_core.streaming import State, StreamingEncoder, state_tensors
from rvm_core.threads import thread_limit

GRAPH_FILE = "step.xml"
WEIGHTS_FILE = "step.bin"

_DEVICE = "CPU"
_SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY",
    # The graph says where it is bfloat16.
    "INFERENCE_PRECISION_HINT": "f32",
}
_LAYOUT = ("Gather", "Reshape", "Split", "Squeeze", "Transpose", "Unsqueeze", "VariadicSplit")
"""Operators that only move values."""


class OpenVINOBackend:
    """See `rvm_core.engines.base.Backend`."""

    name = "openvino"
    precisions = ("fp32", "bf16", "int8")
    builds_files = True

    def missing(self) -> str | None:
        if find_spec("openvino") is None:
            return "openvino is not installed: pip install rvm_perception[openvino]"
        return None

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def native_precision(self, device: str) -> str:
        return "bf16" if "BF16" in _core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES") else "fp32"

    def runtime(self) -> str:
        return f"openvino {_openvino().__version__}"

    def hardware(self, device: str) -> str:
        # The files fit any processor, but the numeric gate's result is kept beside them.
        core = _core()
        capabilities = sorted(core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"))
        return f"{core.get_property(_DEVICE, 'FULL_DEVICE_NAME')} {' '.join(capabilities)}"

    def build(self, model: StreamingEncoder, spec: EngineSpec, folder: Path, progress: Progress) -> None:
        self._check(spec)
        int8 = spec.precision == "int8"
        if int8:
            check_int8(model)
            check_nncf()
        openvino = _openvino()
        progress("openvino: exporting the step")
        program = export_step(model, spec, dtype=DTYPES["fp32" if int8 else spec.precision])
        progress("openvino: converting the graph")
        try:
            with without_future_warnings():
                graph = openvino.convert_model(program)
            shapes = step_shapes(model, spec)
            _name_ports(graph, shapes)
            if int8:
                graph = _quantize(graph, spec, shapes, progress)
                if self.native_precision(spec.device) == "bf16":
                    _round_attention(graph)
            openvino.save_model(graph, folder / GRAPH_FILE, compress_to_fp16=False)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot convert the model: {error}") from error

    def load(self, model: StreamingEncoder, spec: EngineSpec, folder: Path | None) -> Engine:
        self._check(spec)
        if folder is None:
            raise EngineError("the OpenVINO engine is loaded from the files of its build, got no folder")
        return OpenVINOEngine(step_shapes(model, spec), spec, folder)

    def _check(self, spec: EngineSpec) -> None:
        missing = self.missing()
        if missing:
            raise EngineError(missing)
        if spec.precision not in self.precisions:
            raise EngineError(f"expected a precision of {', '.join(self.precisions)}, got {spec.precision!r}")
        if spec.device != "cpu":
            raise EngineError(f"the OpenVINO engine runs on 'cpu' only, got device {spec.device!r}")


class OpenVINOEngine:
    """See `rvm_core.engines.base.Engine`. Frames and state are read where they lie; features and new state are written
    once, into memory of their own, so that every state stays what it is."""

    def __init__(self, shapes: StepShapes, spec: EngineSpec, folder: Path) -> None:
        self.spec = spec
        self._shapes = shapes
        self._request = _compile(shapes, folder).create_infer_request()
        self._tensor = _openvino().Tensor

    def init_state(self) -> State:
        return self._shapes.make_state([torch.zeros(shape) for shape in self._shapes.state])

    def step(self, frames: np.ndarray, state: State) -> tuple[torch.Tensor, State]:
        self.spec.check_frames(frames)
        outputs = {name: torch.empty(shape) for name, shape in self._shapes.outputs.items()}
        # Shared memory must be writable, though inputs are only read. OpenVINO does not keep it alive: `inputs` does.
        given = (frames, *(tensor.numpy() for tensor in state_tensors(state)))
        inputs = [np.require(array, requirements=["C", "W"]) for array in given]
        for name, array in zip(self._shapes.inputs, inputs, strict=True):
            self._request.set_tensor(name, self._share(array))
        for name, output in outputs.items():
            self._request.set_tensor(name, self._share(output.numpy()))
        self._request.infer()
        return outputs["features"], self._shapes.make_state([outputs[name] for name in self._shapes.next_names])

    def _share(self, array: np.ndarray) -> Any:
        return self._tensor(array, shared_memory=True)


def _name_ports(graph: Any, shapes: StepShapes) -> None:
    """Fixes the shapes of inputs and names all that enters and leaves, in the program's order."""
    for port, name in zip(graph.inputs, shapes.inputs, strict=True):
        port.set_names({name})
    graph.reshape(shapes.inputs)
    for port, name in zip(graph.outputs, shapes.outputs, strict=True):
        port.set_names({name})


def _compile(shapes: StepShapes, folder: Path) -> Any:
    core = _core()
    for name in (GRAPH_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise EngineError(f"there is no {name} in {folder}: build the engine again")
    try:
        graph = core.read_model(folder / GRAPH_FILE)
        found = {port.any_name: (port.element_type.get_type_name(), tuple(port.shape)) for port in graph.inputs}
        found |= {port.any_name: (port.element_type.get_type_name(), tuple(port.shape)) for port in graph.outputs}
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot read {folder / GRAPH_FILE}: {error}") from error
    expected = {name: ("f32", shape) for name, shape in (shapes.inputs | shapes.outputs).items()}
    expected["frames"] = ("u8", shapes.frames)
    if found != expected:
        raise EngineError(f"{folder / GRAPH_FILE} is of another engine: expected {expected}, got {found}")
    try:
        return core.compile_model(graph, _DEVICE, _settings())
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot compile {folder / GRAPH_FILE}: {error}") from error


def _settings() -> dict[str, Any]:
    threads = thread_limit()
    return _SETTINGS | ({} if threads is None else {"INFERENCE_NUM_THREADS": threads})


def _quantize(graph: Any, spec: EngineSpec, shapes: StepShapes, progress: Progress) -> Any:
    """The float32 graph with 8-bit factors in the products with weights inside the blocks."""
    progress("openvino: computing the states of the calibration; int8 takes a minute or more")
    inputs = _calibration_inputs(graph, spec, shapes)
    return quantize(
        graph,
        inputs,
        without_names=_gate_products(graph),
        without_types=("Convolution", "ScaledDotProductAttention"),
        progress=progress,
    )


def _calibration_inputs(graph: Any, spec: EngineSpec, shapes: StepShapes) -> list[dict[str, np.ndarray]]:
    step = _core().compile_model(graph, _DEVICE, _SETTINGS)
    inputs = calibration_inputs(spec, shapes.state[0], lambda frames, state: np.array(step((frames, state))[0]))
    return [dict(zip(shapes.inputs, pair, strict=True)) for pair in inputs]


def _gate_products(graph: Any) -> list[str]:
    """Names of the products whose sum goes through a sigmoid: those of the gates, and no others."""
    found = []
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "Sigmoid":
            terms = [value.get_node() for value in node.input_value(0).get_node().input_values()]
            found += [term.get_friendly_name() for term in terms if term.get_type_name() == "MatMul"]
    if len(found) != 2:
        raise EngineError(f"expected two products in the gates of OpenVINO's graph, found {len(found)}")
    return found


def _round_attention(graph: Any) -> None:
    """Query, key and value in bfloat16, rounded once where they are made, and the product with the values."""
    operators, dtypes = import_module("openvino.opset13"), _openvino().Type
    rounded = set()
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "ScaledDotProductAttention":
            continue
        for value in node.input_values()[:3]:
            while value.get_node().get_type_name() in _LAYOUT:
                value = value.get_node().input_value(0)
            if (place := (value.get_node().get_friendly_name(), value.get_index())) not in rounded:
                rounded.add(place)
                _convert(operators, value, dtypes.bf16)
        _convert(operators, node.output(0), dtypes.f32)
    graph.validate_nodes_and_infer_types()


def _convert(operators: Any, value: Any, dtype: Any) -> None:
    """Gives everything that reads a value of the graph this value in another type."""
    readers = list(value.get_target_inputs())
    converted = operators.convert(value, dtype).output(0)
    for reader in readers:
        reader.replace_source_output(converted)


def _openvino() -> Any:
    """The module, which is imported only where it is used."""
    # OpenVINO reports its import and use over the network to its maker unless told otherwise. A robot does not: with
    # this module out of reach, OpenVINO uses its own stand-in, which sends nothing.
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return import_module("openvino")


@cache
def _core() -> Any:
    """The one of this process.

    A core gives its thread a stack for signals and, when it goes, puts back what was there before. Two that do not go
    in the reverse order leave a stack that is freed, and the next Ctrl-C is a crash.
    """
    core = _openvino().Core()
    # An unmapped file would be read into memory of its own.
    core.set_property({"ENABLE_MMAP": True})
    return core
