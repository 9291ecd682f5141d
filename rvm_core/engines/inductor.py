"""The Inductor engine: the step compiled by torch for this processor, ahead of time.

Its file is a shared library with weights packed as oneDNN's products want them, written by AOTInductor. Building takes
a C++ compiler and half a minute; loading takes neither. It needs no package but torch.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from rvm_core.engines.base import Engine, EngineError, EngineSpec, Progress
from rvm_core.engines.torch import TorchBackend
from rvm_core.export import DTYPES, StepShapes, export_step, step_shapes, without_future_warnings
from rvm_core.streaming import State, StreamingEncoder, state_tensors

LIBRARY_FILE = "step.so"

_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_OPTIONS = {
    # Weights are constants, which can be packed beforehand.
    "freezing": True,
    # Otherwise the number of threads is that of the process that built it.
    "cpp.dynamic_threads": True,
    # Otherwise processes for compiling stay as long as this one.
    "compile_threads": 1,
    # Otherwise they are kept in the folder for temporary files, where others could have put them.
    "aot_inductor.precompile_headers": False,
}


class InductorBackend(TorchBackend):
    """See `rvm_core.engines.base.Backend`."""

    name = "inductor"
    builds_files = True

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def hardware(self, device: str) -> str:
        # What is compiled may use every instruction that the processor has.
        found = torch.cpu.get_capabilities()
        features = sorted(name for name, value in found.items() if value is True)
        return " ".join([str(found.get("cpu_name", torch.backends.cpu.get_cpu_capability())), *features])

    def build(self, model: StreamingEncoder, spec: EngineSpec, folder: Path, progress: Progress) -> None:
        self._check(spec)
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise EngineError(f"inductor compiles with {compiler!r}, which is not installed: apt install g++")
        with tempfile.TemporaryDirectory(dir=folder) as scratch, _caches_in(scratch):
            library = Path(scratch) / LIBRARY_FILE
            progress("inductor: exporting the step")
            program = export_step(model, spec, dtype=DTYPES[spec.precision])
            progress(f"inductor: compiling with {compiler}")
            _compile(program, step_shapes(model, spec), library)
            os.replace(library, folder / LIBRARY_FILE)

    def load(self, model: StreamingEncoder, spec: EngineSpec, folder: Path | None = None) -> Engine:
        self._check(spec)
        if folder is None:
            raise EngineError("the Inductor engine is loaded from the file of its build, got no folder")
        return InductorEngine(step_shapes(model, spec), spec, folder)

    def _check(self, spec: EngineSpec) -> None:
        if spec.precision not in self.precisions:
            raise EngineError(f"expected a precision of {', '.join(self.precisions)}, got {spec.precision!r}")
        if spec.device != "cpu":
            raise EngineError(f"the Inductor engine runs on 'cpu' only, got device {spec.device!r}")


class InductorEngine:
    """See `rvm_core.engines.base.Engine`. Frames and state are read where they lie; what comes out is in new memory."""

    def __init__(self, shapes: StepShapes, spec: EngineSpec, folder: Path) -> None:
        self.spec = spec
        self._shapes = shapes
        path = folder / LIBRARY_FILE
        if not path.is_file():
            raise EngineError(f"there is no {LIBRARY_FILE} in {folder}: build the engine again")
        try:
            # A package, torch's public form of this, is unpacked into the folder for temporary files at every start.
            self._runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1)
        except RuntimeError as error:
            raise EngineError(f"{path} cannot be loaded: {error}") from error

    def init_state(self) -> State:
        return self._shapes.make_state([torch.zeros(shape) for shape in self._shapes.state])

    @torch.inference_mode()
    def step(self, frames: np.ndarray, state: State) -> tuple[torch.Tensor, State]:
        self.spec.check_frames(frames)
        given = [tensor.contiguous() for tensor in state_tensors(state)]
        # What is compiled reads as much as it was made for, whatever it is given.
        found = [(tuple(tensor.shape), tensor.dtype) for tensor in given]
        if found != [(shape, torch.float32) for shape in self._shapes.state]:
            raise EngineError(f"expected a float32 state of {self._shapes.state}, got {found}")
        pixels = torch.from_numpy(np.require(frames, requirements=["C", "W"]))
        outputs = dict(zip(self._shapes.outputs, self._runner.run([pixels, *given]), strict=True))
        return outputs["features"], self._shapes.make_state([outputs[name] for name in self._shapes.next_names])


def _compile(program: torch.export.ExportedProgram, shapes: StepShapes, library: Path) -> None:
    # Imported here, as it is large and only building needs it.
    from torch._inductor import aot_compile
    from torch._inductor.utils import fresh_cache

    inputs = (torch.zeros(shapes.frames, dtype=torch.uint8), *map(torch.zeros, shapes.state))
    options = _OPTIONS | {"aot_inductor.output_path": str(library)}
    try:
        with torch.no_grad(), fresh_cache(dir=str(library.parent)), without_future_warnings():
            aot_compile(program.module(), inputs, options=options)
    except RuntimeError as error:
        raise EngineError(f"inductor cannot compile the model: {error}") from error


@contextmanager
def _caches_in(folder: str) -> Iterator[None]:
    """Has Inductor keep nothing in its own place, which others can foresee: it runs what it finds there."""
    kept = os.environ.get(_CACHE)
    os.environ[_CACHE] = folder
    try:
        yield
    finally:
        os.environ.pop(_CACHE)
        if kept is not None:
            os.environ[_CACHE] = kept
