"""One process of `rvm bench`: holds one thing to measure, works when told to and sleeps in between."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from rvm_core.checkpoint import load_encoder
from rvm_core.encoders import make_encoder
from rvm_core.process_memory import peak_bytes, release_unused_memory, resident_bytes
from rvm_core.streaming import StreamingEncoder

MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the square matrices whose product counts as the peak."""
CAMERA_SIZE = (1080, 1920)
"""Height and width of the frame that preprocessing is measured with, pixels."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_WARM_UP = 3
_FRAMES = 4
_LAUNCHES = 1000
_SHORTEST_SLEEP = 0.05

Task = Callable[[], None]
"""Does once what is measured, and returns when it is done on the device too."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one worker measures."""

    kind: str
    """"engine"; "eager", the model as it is, in torch; "matmul"; or "preprocess"."""
    backend: str = "torch"
    precision: str = "fp32"
    device: str = "cpu"
    model: str = ""
    """Name of a released size, stepped with random weights; unused where `weights` is given."""
    weights: Path | None = None
    image_size: tuple[int, int] = (256, 256)
    """(height, width) of the model's frames, pixels."""
    cameras: int = 1
    arrangement: str = "batch"
    """Several cameras step as one "batch", or one after the other in "turns", each with its own state."""
    check: bool = False
    """Have the engine pass the numeric gate first."""

    @property
    def name(self) -> str:
        """Short name for people: "openvino:bf16", "eager:fp32", "matmul:bf16", "preprocess"."""
        head = self.backend if self.kind == "engine" else self.kind
        return head if self.kind == "preprocess" else f"{head}:{self.precision}"


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The job is loaded and warm."""

    device: str
    threads: int
    load_s: float
    """From the start of loading to the end of warming up."""
    parameters: int = 0
    """Of encoder and core."""
    kernels: int | None = None
    """GPU kernels of one step."""
    launch_s: float | None = None
    """Time that the GPU takes for an empty kernel."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one turn of steps took."""

    seconds: list[float]
    resident_bytes: int
    """Of this process at the end of the turn."""
    peak_bytes: int
    """Most that was ever resident, including loading."""
    device_bytes: int | None
    """GPU memory taken; None on a CPU."""
    idle_cpu: float | None
    """Processor time per second that this process used while it should have slept, since its last turn.

    None if that was too short a time to tell.
    """


@dataclass(frozen=True)
class Failed:
    """The job could not be done."""

    reason: str


@dataclass(frozen=True)
class Request:
    """Do so many steps, after one more that is not measured: the caches hold what another process worked on."""

    steps: int
    timed: bool = True


def serve(connection: Connection, job: Job) -> None:
    """Loads the job, then answers requests until the other side closes the connection."""
    # Ctrl-C reaches the whole process group; what then happens is for the parent to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        free = _free_device_bytes(job.device)
        started = time.perf_counter()
        task, ready = _load(job, started)
        connection.send(ready)
        slept_from = time.perf_counter(), time.process_time()
        while True:
            request: Request = connection.recv()
            slept, used = time.perf_counter() - slept_from[0], time.process_time() - slept_from[1]
            seconds = _do(task, request)
            connection.send(
                Turn(
                    seconds=seconds,
                    resident_bytes=resident_bytes(),
                    peak_bytes=peak_bytes(),
                    device_bytes=_taken_device_bytes(job.device, free),
                    idle_cpu=used / slept if slept >= _SHORTEST_SLEEP else None,
                )
            )
            slept_from = time.perf_counter(), time.process_time()
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:  # Whatever a runtime raises makes a row of the table, not the end of the benchmark.
        connection.send(Failed(f"{type(error).__name__}: {error}"))


def _do(task: Task, request: Request) -> list[float]:
    task()
    seconds = []
    for _ in range(request.steps):
        started = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - started)
    return seconds if request.timed else []


def _load(job: Job, started: float) -> tuple[Task, Ready]:
    make = {"engine": _engine, "eager": _eager, "matmul": _matmul, "preprocess": _preprocess}[job.kind]
    task, device, parameters = make(job)
    release_unused_memory()
    for _ in range(_WARM_UP):
        task()
    kernels = launch_s = None
    if device.startswith("cuda") and job.kind in ("engine", "eager"):
        kernels, launch_s = _count_kernels(task), _launch_seconds()
    return task, Ready(
        device=device,
        threads=torch.get_num_threads(),
        load_s=time.perf_counter() - started,
        parameters=parameters,
        kernels=kernels,
        launch_s=launch_s,
    )


def _model(job: Job) -> StreamingEncoder:
    return load_encoder(job.weights) if job.weights else make_encoder(job.model)


def _parameters(model: StreamingEncoder) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _frames(job: Job, batch: int) -> np.ndarray:
    """Random frames uint8 (frame, turn, batch, H, W, 3); how fast a step is does not depend on what they show."""
    shape = (_FRAMES, job.cameras // batch, batch, *job.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _engine(job: Job) -> tuple[Task, str, int]:
    from rvm_core.engines import create_engine

    model = _model(job)
    batch = job.cameras if job.arrangement == "batch" else 1
    engine = create_engine(
        model,
        backend=job.backend,
        precision=job.precision,
        image_size=job.image_size,
        batch_size=batch,
        device=job.device,
        checked=job.check,
    )
    frames = _frames(job, batch)
    states = [engine.init_state() for _ in range(job.cameras // batch)]
    count = 0

    def step() -> None:
        nonlocal count
        for camera, state in enumerate(states):
            _, states[camera] = engine.step(frames[count % _FRAMES, camera], state)
        count += 1
        _finish(job.device)

    return step, engine.spec.device, _parameters(model)


def _eager(job: Job) -> tuple[Task, str, int]:
    """What a user has without engines: the model called from torch, in the mixed precision of the release for bf16."""
    from rvm_core.fused import cast_blocks

    model = _model(job)
    parameters = _parameters(model)
    model = cast_blocks(model, _DTYPES[job.precision]).to(job.device)
    batch = job.cameras if job.arrangement == "batch" else 1
    frames = _frames(job, batch)
    states = [model.init_state(batch, *job.image_size) for _ in range(job.cameras // batch)]
    count = 0

    @torch.inference_mode()
    def step() -> None:
        nonlocal count
        for camera, state in enumerate(states):
            pixels = torch.from_numpy(frames[count % _FRAMES, camera]).to(job.device)
            _, states[camera] = model(pixels.permute(0, 3, 1, 2) / 255.0, state)
        count += 1
        _finish(job.device)

    return step, job.device, parameters


def matmul_flops(device: str) -> int:
    """FLOPs of the product that counts as the peak."""
    return 2 * MATMUL_SIZE[device.partition(":")[0]] ** 3


def _matmul(job: Job) -> tuple[Task, str, int]:
    size = MATMUL_SIZE[job.device.partition(":")[0]]
    a, b = (torch.rand(size, size, device=job.device).to(_DTYPES[job.precision]) for _ in range(2))
    out = torch.empty_like(a)

    def multiply() -> None:
        torch.mm(a, b, out=out)
        _finish(job.device)

    return multiply, job.device, 0


def _preprocess(job: Job) -> tuple[Task, str, int]:
    from rvm_core.preprocess import Preprocess

    preprocess = Preprocess(height=job.image_size[0], width=job.image_size[1], policy="letterbox")
    image = np.random.default_rng(0).integers(0, 256, (*CAMERA_SIZE, 3), dtype=np.uint8)
    out = np.empty((*job.image_size, 3), np.uint8)

    def resize() -> None:
        preprocess(image, out)

    return resize, "cpu", 0


# ---- GPUs -----------------------------------------------------------------------------------------------------------


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _free_device_bytes(device: str) -> int | None:
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else None


def _taken_device_bytes(device: str, free: int | None) -> int | None:
    """The larger of what torch reserved at most and what the GPU has less than before: other runtimes have allocators
    of their own."""
    if free is None:
        return None
    return max(torch.cuda.max_memory_reserved(device), free - torch.cuda.mem_get_info(device)[0])


def _count_kernels(task: Task) -> int:
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        task()
    copies = ("Memcpy", "Memset")
    return sum(e.device_type == DeviceType.CUDA and not e.name.startswith(copies) for e in profiler.events())


def _launch_seconds() -> float:
    """Time for each of many empty kernels in a row."""
    torch.cuda._sleep(0)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(_LAUNCHES):
        torch.cuda._sleep(0)
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / _LAUNCHES
