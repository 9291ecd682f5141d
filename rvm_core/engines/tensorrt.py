"""The TensorRT engine, for NVIDIA GPUs: TensorRT or TensorRT-RTX, which have the same interface.

Engines are built from the ONNX export as strongly typed networks. TensorRT builds for the GPU it runs on; TensorRT-RTX
also for compute capabilities named beforehand, on a machine without a GPU. That part is tested. What runs an engine,
`_Graphs` and `_deserialize`, is untested on hardware.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rvm_core.atomic import atomic_file
from rvm_core.engines.base import Engine, EngineError, EngineSpec, Progress
from rvm_core.engines.onnx_int8 import to_int8_onnx
from rvm_core.export import DTYPES, StepShapes, step_shapes, to_onnx
from rvm_core.streaming import State, StreamingEncoder, state_tensors

PLAN_FILE = "step.plan"
DESCRIPTION_FILE = "step.json"
FORMAT_VERSION = 1
"""Of the description; another one is refused."""

_EXTRAS = "pip install rvm_perception[tensorrt], or rvm_perception[tensorrt-rtx] for GeForce and RTX GPUs"
_NO_GPU = "torch sees no NVIDIA GPU on this machine; an engine can be built here, but running it needs one"
_WARM_UP_STEPS = 3
"""The first steps allocate and compile, which may not happen while a graph is captured."""

_log = logging.getLogger(__name__)

Launch = Callable[[int], None]
"""Enqueues a step that reads the state buffers of this number, 0 or 1, and writes the others."""


class Buffers(NamedTuple):
    """Memory on the device that a step reads and writes."""

    frames: Tensor
    states: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
    """Two of each of the state's tensors."""
    features: tuple[Tensor, Tensor]
    """Written by the step that writes the states of this number; the same memory where features are the state."""


Prepare = Callable[[Buffers], Launch]
"""Makes a `Launch` for its buffers."""


class TensorRTBackend:
    """See `rvm_core.engines.base.Backend`.

    Args:
        compute_capabilities: of the GPUs to build for, such as ("8.9", "12.0"). Needs TensorRT-RTX but no GPU; such
            engines may run nowhere on this machine. Empty builds for the GPU of the spec.
    """

    name = "tensorrt"
    precisions = (*DTYPES, "int8")
    builds_files = True

    def __init__(self, compute_capabilities: Sequence[str] = ()) -> None:
        self.compute_capabilities = tuple(compute_capabilities)

    def missing(self) -> str | None:
        if _find_runtime() is None:
            return f"neither tensorrt nor tensorrt_rtx can be imported: {_EXTRAS}"
        return None if self.compute_capabilities or torch.cuda.is_available() else _NO_GPU

    def devices(self) -> tuple[str, ...]:
        return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))

    def native_precision(self, device: str) -> str:
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"

    def runtime(self) -> str:
        trt = _runtime()
        return f"{trt.__name__} {trt.__version__}"

    def hardware(self, device: str) -> str:
        if self.compute_capabilities:
            return " ".join(f"sm_{number.replace('.', '')}" for number in self.compute_capabilities)
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)} sm_{major}{minor}"

    def build(self, model: StreamingEncoder, spec: EngineSpec, folder: Path, progress: Progress) -> None:
        """Writes `PLAN_FILE`, TensorRT's own, and `DESCRIPTION_FILE`: what it was built from and its tensors."""
        trt = _runtime()
        if spec.precision not in self.precisions:
            raise EngineError(f"TensorRT engines are {', '.join(self.precisions)}; got {spec.precision!r}")
        with _current(spec.device):
            network, plan = self._build(trt, model, spec, folder, progress)
        description = self._describe(trt, network, model, spec)
        with atomic_file(folder / PLAN_FILE) as path:
            path.write_bytes(plan)
        with atomic_file(folder / DESCRIPTION_FILE) as path:
            path.write_text(json.dumps(description, indent=1) + "\n")

    def load(self, model: StreamingEncoder, spec: EngineSpec, folder: Path | None) -> Engine:
        trt = _runtime()
        if folder is None:
            raise EngineError("a TensorRT engine is loaded from the folder it was built into; got none")
        description = _read_description(folder / DESCRIPTION_FILE)
        shapes = step_shapes(model, spec)
        expected = _tensors(shapes)
        if description.get("precision") != spec.precision or description.get("tensors") != expected:
            raise EngineError(f"{folder} holds another engine: expected {spec.precision} {expected}, got {description}")
        if not torch.cuda.is_available():
            raise EngineError(_NO_GPU)
        device = torch.device(spec.device)
        if device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():
            raise EngineError(f"no device {spec.device!r} on this machine; present are {', '.join(self.devices())}")
        with _current(device):
            engine = _deserialize(trt, folder / PLAN_FILE)
            return TensorRTEngine(spec, shapes, device, lambda buffers: _Graphs(engine, shapes, buffers).launch)

    def _build(
        self, trt: Any, model: StreamingEncoder, spec: EngineSpec, folder: Path, progress: Progress
    ) -> tuple[Any, Any]:
        log = _make_log(trt)
        builder = trt.Builder(log)
        config = self._config(trt, builder, spec, progress)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            progress("exporting to ONNX")
            if spec.precision == "int8":
                to_int8_onnx(model, spec, Path(temporary, "step.onnx"), progress)
            else:
                to_onnx(model, spec, Path(temporary, "step.onnx"))
            progress("reading the ONNX file")
            parser = trt.OnnxParser(network, log)
            if not parser.parse_from_file(str(Path(temporary, "step.onnx"))):
                raise EngineError(f"{trt.__name__} cannot read the export: {log.text()}")
        # TensorRT tells the stages from here on by itself.
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(f"{trt.__name__} cannot build the engine: {log.text()}")
        return network, plan

    def _config(self, trt: Any, builder: Any, spec: EngineSpec, progress: Progress) -> Any:
        config = builder.create_builder_config()
        # The gates and the patch embedding stay float32: exact where the engine is, else as fine as its products.
        if spec.precision == "fp32":
            config.clear_flag(trt.BuilderFlag.TF32)
        config.progress_monitor = _make_monitor(trt, progress)
        if not self.compute_capabilities:
            if not torch.cuda.is_available():
                raise EngineError(
                    "torch sees no NVIDIA GPU to build for; with tensorrt_rtx, name those of another machine: "
                    'TensorRTBackend(compute_capabilities=["8.9"])'
                )
            return config
        if not hasattr(config, "num_compute_capabilities"):
            raise EngineError(f"{trt.__name__} builds only for the GPU it runs on; tensorrt_rtx builds for others")
        known = {name[2:]: value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
        unknown = [number for number in self.compute_capabilities if number.replace(".", "") not in known]
        if unknown:
            names = ", ".join(f"{name[:-1]}.{name[-1]}" for name in known)
            raise EngineError(f"{trt.__name__} cannot build for compute capability {', '.join(unknown)}; only {names}")
        config.num_compute_capabilities = len(self.compute_capabilities)
        for index, number in enumerate(self.compute_capabilities):
            config.set_compute_capability(known[number.replace(".", "")], index)
        return config

    def _describe(self, trt: Any, network: Any, model: StreamingEncoder, spec: EngineSpec) -> dict[str, Any]:
        tensors = {}
        for role, count, get in (
            ("input", network.num_inputs, network.get_input),
            ("output", network.num_outputs, network.get_output),
        ):
            for tensor in map(get, range(count)):
                dtype = np.dtype(trt.nptype(tensor.dtype)).name
                tensors[tensor.name] = {"role": role, "dtype": dtype, "shape": list(tensor.shape)}
        if tensors != _tensors(step_shapes(model, spec)):
            raise EngineError(f"{trt.__name__} read other inputs or outputs from the export: {tensors}")
        return {
            "format_version": FORMAT_VERSION,
            "model": model.config.name,
            "precision": spec.precision,
            "runtime": self.runtime(),
            "hardware": self.hardware(spec.device),
            "tensors": tensors,
        }


class TensorRTEngine:
    """See `rvm_core.engines.base.Engine` for the contract.

    The step runs between two sets of state buffers on the device, to and fro, so that no state is copied in. What
    `step` returns is a copy of the buffers it wrote, the caller's to keep for as long as it likes; where features are
    the state, they are one tensor. If the state passed in is not the one last returned (a second stream, a repeated
    frame, a new start), it is first copied into the buffers. torch refuses to change the returned tensors in place,
    except in inference mode, where the caller must not.

    Args:
        shapes: of the step.
        prepare: see `Prepare`.
    """

    def __init__(self, spec: EngineSpec, shapes: StepShapes, device: torch.device, prepare: Prepare) -> None:
        self.spec = spec
        self._shapes = shapes
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._pinned = torch.empty((spec.batch_size, *spec.image_size, 3), dtype=torch.uint8, pin_memory=self._on_gpu)
        with torch.inference_mode():
            self._buffers = _make_buffers(self._pinned, shapes, device)
            self._launch = prepare(self._buffers)
        self._newest = 0
        self._returned: tuple[Tensor, ...] | None = None

    def init_state(self) -> State:
        return self._shapes.make_state([torch.zeros_like(buffer) for buffer in self._buffers.states[0]])

    @torch.inference_mode()
    def step(self, frames: np.ndarray, state: State) -> tuple[Tensor, State]:
        self.spec.check_frames(frames)
        source = self._newest
        given = state_tensors(state)
        if (found := tuple(tuple(tensor.shape) for tensor in given)) != self._shapes.state:
            raise EngineError(f"expected a state {_text(self._shapes.state)}, got {_text(found)}")
        # Until the end of this step, no buffer is known to hold what was returned.
        returned, self._returned = self._returned, None
        if returned is None or any(a is not b for a, b in zip(given, returned, strict=True)):
            for buffer, tensor in zip(self._buffers.states[source], given, strict=True):
                buffer.copy_(tensor)
        self._pinned.copy_(torch.from_numpy(np.require(frames, requirements=["C", "W"])))
        # All is enqueued on the caller's current stream, so that what it does with the features comes after.
        with torch.cuda.device(self._device) if self._on_gpu else nullcontext():
            self._buffers.frames.copy_(self._pinned, non_blocking=True)
            self._launch(source)
            self._newest = 1 - source
            features = self._buffers.features[self._newest].clone()
            if self._shapes.features_are_state:
                after: tuple[Tensor, ...] = (features,)
            else:
                after = tuple(buffer.clone() for buffer in self._buffers.states[self._newest])
            if self._on_gpu:
                torch.cuda.current_stream().synchronize()
        self._returned = after
        return features, self._shapes.make_state(after)


def _make_buffers(frames: Tensor, shapes: StepShapes, device: torch.device) -> Buffers:
    def states() -> tuple[Tensor, ...]:
        return tuple(torch.zeros(*shape, device=device) for shape in shapes.state)

    both = states(), states()
    if shapes.features_are_state:
        features = both[0][0], both[1][0]
    else:
        one = torch.zeros(*shapes.features, device=device)
        features = one, one
    return Buffers(torch.zeros_like(frames, device=device), both, features)


def _text(shapes: Sequence[Sequence[int]]) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes) or "without tensors"


class _Graphs:
    """A CUDA graph of the step for each direction between two states. Untested on hardware."""

    def __init__(self, engine: Any, shapes: StepShapes, buffers: Buffers) -> None:
        # Owns memory that the graphs work in, so it lives as long as they do.
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineError("TensorRT cannot make an execution context; is the GPU's memory full?")
        self._graphs = [self._capture(shapes, buffers, source) for source in range(2)]

    def launch(self, source: int) -> None:
        self._graphs[source].replay()

    def _capture(self, shapes: StepShapes, buffers: Buffers, source: int) -> torch.cuda.CUDAGraph:
        target = 1 - source
        tensors = {"frames": buffers.frames, "features": buffers.features[target]}
        tensors |= dict(zip(shapes.state_names, buffers.states[source], strict=True))
        tensors |= dict(zip(shapes.next_names, buffers.states[target], strict=True))
        for name, tensor in tensors.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_STEPS):
                self._enqueue(stream)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self._enqueue(stream)
        return graph

    def _enqueue(self, stream: torch.cuda.Stream) -> None:
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise EngineError("TensorRT cannot run the step")


def _current(device: torch.device | str) -> AbstractContextManager[Any]:
    """Makes a GPU the current one, for runtimes that take no other; nothing where there is none."""
    on_gpu = torch.cuda.is_available() and torch.device(device).type == "cuda"
    return torch.cuda.device(device) if on_gpu else nullcontext()


def _deserialize(trt: Any, path: Path) -> Any:
    """Untested on hardware."""
    log = _make_log(trt)
    engine = trt.Runtime(log).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise EngineError(f"{trt.__name__} cannot use {path}: {log.text()}; build it again on this machine")
    return engine


def _tensors(shapes: StepShapes) -> dict[str, dict[str, Any]]:
    """Inputs and outputs as the description lists them."""
    listed = {}
    for role, tensors in (("input", shapes.inputs), ("output", shapes.outputs)):
        for name, shape in tensors.items():
            listed[name] = {"role": role, "dtype": "uint8" if name == "frames" else "float32", "shape": list(shape)}
    return listed


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot read {path}: {error}; build the engine again") from error
    if not isinstance(description, dict) or description.get("format_version") != FORMAT_VERSION:
        raise EngineError(f"{path} is not of version {FORMAT_VERSION}; build the engine again")
    return description


def _find_runtime() -> Any | None:
    """The module tensorrt or tensorrt_rtx, the first that can be imported."""
    # A package whose libraries are missing raises OSError.
    try:
        return import_module("tensorrt")
    except (ImportError, OSError):
        pass
    try:
        return import_module("tensorrt_rtx")
    except (ImportError, OSError):
        return None


def _runtime() -> Any:
    trt = _find_runtime()
    if trt is None:
        raise EngineError(f"neither tensorrt nor tensorrt_rtx can be imported: {_EXTRAS}")
    return trt


def _make_log(trt: Any) -> Any:
    """A logger that keeps what TensorRT says of errors, for messages, and passes warnings on."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING:
                _log.warning("%s", message)

        def text(self) -> str:
            return "; ".join(self.errors[-3:]) or "it gives no reason"

    return Log()


def _make_monitor(trt: Any, progress: Progress) -> Any:
    """Tells the phases of a build; TensorRT calls it from its own threads."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                progress(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

    return Monitor()
