"""The torch engine: the model on the CPU, or as a CUDA graph on a GPU, without files of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from rvm_core.engines.base import Engine, EngineError, EngineSpec, Progress
from rvm_core.fused import Step, cast_copy
from rvm_core.streaming import State, StreamingEncoder, state_like, state_tensors

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchBackend:
    """See `rvm_core.engines.base.Backend`."""

    name = "torch"
    precisions = ("fp32", "bf16")
    builds_files = False

    def missing(self) -> str | None:
        return None

    def devices(self) -> tuple[str, ...]:
        return (*(f"cuda:{i}" for i in range(torch.cuda.device_count())), "cpu")

    def native_precision(self, device: str) -> str:
        if device.startswith("cuda"):
            return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
        capabilities = torch.cpu.get_capabilities()
        return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "fp32"

    def runtime(self) -> str:
        return f"torch {torch.__version__}"

    def hardware(self, device: str) -> str:
        return (
            torch.cuda.get_device_name(device) if device.startswith("cuda") else torch.backends.cpu.get_cpu_capability()
        )

    def build(self, model: StreamingEncoder, spec: EngineSpec, folder: Path, progress: Progress) -> None:
        raise EngineError("the torch engine has no files to build")

    def load(self, model: StreamingEncoder, spec: EngineSpec, folder: Path | None = None) -> Engine:
        return CudaGraphEngine(model, spec) if spec.device.startswith("cuda") else TorchEngine(model, spec)


class TorchEngine:
    """Eager torch. See `rvm_core.engines.base.Engine` for the contract."""

    def __init__(self, model: StreamingEncoder, spec: EngineSpec) -> None:
        self.spec = spec
        self._device = torch.device(spec.device)
        model = cast_copy(model, _DTYPES[spec.precision]).to(self._device).eval()
        self._initial: State = model.init_state(spec.batch_size, *spec.image_size)
        self._step = Step(model).requires_grad_(False)

    def init_state(self) -> State:
        return state_like(self._initial, tuple(tensor.clone() for tensor in state_tensors(self._initial)))

    @torch.inference_mode()
    def step(self, frames: np.ndarray, state: State) -> tuple[torch.Tensor, State]:
        self.spec.check_frames(frames)
        pixels = torch.from_numpy(np.require(frames, requirements=["C", "W"])).to(self._device)
        features, state = self._step(pixels, state)
        return features, state


class CudaGraphEngine(TorchEngine):
    """The step recorded once and replayed: a small model on a GPU otherwise waits for its launches.

    Frames and state are copied into the memory that the recording reads, features out of the memory that it writes.
    `step` returns before the GPU is done, as all of torch's CUDA operations do.
    """

    @torch.inference_mode()
    def __init__(self, model: StreamingEncoder, spec: EngineSpec) -> None:
        super().__init__(model, spec)
        shape = (spec.batch_size, *spec.image_size, 3)
        self._host_frames = torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
        self._frames = torch.zeros(shape, dtype=torch.uint8, device=self._device)
        self._state = self.init_state()
        self._frames_are_copied = torch.cuda.Event()
        self._graph = torch.cuda.CUDAGraph()
        # torch rounds the factors of float32 convolutions on CUDA to TF32, unless told otherwise.
        with torch.cuda.device(self._device), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            # Libraries choose their kernels and take their memory in the first calls, which must not be recorded.
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self._step(self._frames, self._state)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self._graph):
                self._features, self._next = self._step(self._frames, self._state)

    @torch.inference_mode()
    def step(self, frames: np.ndarray, state: State) -> tuple[torch.Tensor, State]:
        self.spec.check_frames(frames)
        # The copy of the frames before may not have left the pinned memory yet.
        self._frames_are_copied.synchronize()
        np.copyto(self._host_frames.numpy(), frames)
        with torch.cuda.device(self._device):
            self._frames.copy_(self._host_frames, non_blocking=True)
            self._frames_are_copied.record()
            for target, source in zip(state_tensors(self._state), state_tensors(state), strict=True):
                target.copy_(source)
            self._graph.replay()
            features = self._features.clone()
            if self._next is self._features:
                return features, features
            return features, state_like(self._next, tuple(tensor.clone() for tensor in state_tensors(self._next)))
