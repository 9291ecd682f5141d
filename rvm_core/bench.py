"""Measures engines beside what a user has today, so that drift of a shared machine hits all alike.

Each thing to measure (a `Job`: an engine, the eager model in fp32 and bf16, a large matrix product) lives in a process
of its own, started afresh ("spawn"), so that its memory is its own. All processes of one workload, that is one model,
size, number of cameras and arrangement, live at the same time and are driven over pipes in rounds: in every round each
does a turn of a few steps while the others sleep, and the order rotates. Ratios are medians of those within a round.

A sleeping process waits for its pipe; the threads of its runtime must not spin meanwhile. So the workers are started
without a wish for active waiting (OMP_WAIT_POLICY, GOMP_SPINCOUNT), with 1 ms of it in Intel's OpenMP (KMP_BLOCKTIME,
otherwise 200 ms), and each turn begins with a step that is not measured: in it the spinning of the one before ends and
the caches fill. Each worker tells how much processor time it used while it should have slept, as `idle_cpu`.

Engines that build files are built in a process that is thrown away, so the memory measured is that of a later start.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from rvm_core.bench_worker import Failed, Job, Ready, Request, Turn, serve

TURN_STEPS = 5
"""Steps that are measured in one turn. Few, so that the turns of a round see the same machine."""
CHEAP_TURN_STEPS = 3
"""Matrix products in one turn."""
SOAK_CHUNKS = 50
"""Memory is read so often during a soak."""
_STOP_SECONDS = 5.0


class Progress(Protocol):
    """Is told what happens."""

    def __call__(self, text: str, steps: int = 0) -> None:
        """What is done now, and how many turns of `count_turns` were done since the last call."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is stepped, whoever steps it. `ValueError` if it cannot be."""

    model: str
    image_size: tuple[int, int]
    """(height, width), pixels."""
    cameras: int = 1
    arrangement: str = "batch"
    """"batch" or "turns"; see `Job`."""
    weights: Path | None = None

    def __post_init__(self) -> None:
        if self.cameras < 1:
            raise ValueError(f"expected 1 or more cameras, got {self.cameras}")


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """An engine to measure, with nothing left open."""

    backend: str
    precision: str
    device: str
    builds_files: bool = False
    missing: str | None = None
    """Why it cannot be measured here."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to measure."""

    steps: int = 60
    """Measured for each job, in turns of `TURN_STEPS`."""
    soak: int = 0
    """Steps for the growth of memory, after the others."""
    check: bool = False
    """Have every engine pass the numeric gate first."""
    cores: int | None = None
    """Processor cores that the workers may use; None for all."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"expected 1 or more steps, got {self.steps}")
        if self.soak < 0:
            raise ValueError(f"expected 0 or more steps to soak, got {self.soak}")
        if self.cores is not None and not 1 <= self.cores <= len(os.sched_getaffinity(0)):
            raise ValueError(f"expected 1 to {len(os.sched_getaffinity(0))} cores, got {self.cores}")

    @property
    def rounds(self) -> int:
        return -(-self.steps // TURN_STEPS)

    @property
    def turn_steps(self) -> int:
        return min(self.steps, TURN_STEPS)


@dataclass
class Measurement:
    """What was measured of one job. Grows while it is measured, so that an interrupted run has its part."""

    job: Job
    ready: Ready | None = None
    rounds: dict[int, list[float]] = field(default_factory=dict)
    """Seconds of each step, by round."""
    turn: Turn | None = None
    """The last turn."""
    idle_cpu: list[float] = field(default_factory=list)
    soak: list[tuple[int, int]] = field(default_factory=list)
    """(steps, resident bytes) during the soak."""
    failure: str | None = None
    build_first: bool = False
    """Whether the engine builds files, which a process before the measured one then does."""


@dataclass
class Group:
    """The measurements of one workload."""

    workload: Workload
    measurements: list[Measurement]


class WorkerFailed(RuntimeError):
    """A worker could not do its job."""


class Worker:
    """A process with one job; a context manager that ends it."""

    def __init__(self, job: Job, cores: int | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection: Connection
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, job), name=f"rvm bench {job.name}")
        with _worker_surroundings(cores):
            self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()
        # A worker in the middle of a turn would first finish it.
        self._process.join(0.0 if exception[0] else _STOP_SECONDS)
        for end in (self._process.terminate, self._process.kill):
            if self._process.is_alive():
                end()
                self._process.join(_STOP_SECONDS)

    def ready(self) -> Ready:
        """Waits until the job is loaded. Raises `WorkerFailed`."""
        reply = self._receive()
        assert isinstance(reply, Ready)
        return reply

    def turn(self, request: Request) -> Turn:
        """Has the worker do one turn while this process sleeps. Raises `WorkerFailed`."""
        try:
            self._connection.send(request)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise WorkerFailed(self._how_it_ended()) from error
        reply = self._receive()
        assert isinstance(reply, Turn)
        return reply

    def _receive(self) -> Any:
        wait([self._connection, self._process.sentinel])
        try:
            reply = self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise WorkerFailed(self._how_it_ended()) from error
        if isinstance(reply, Failed):
            raise WorkerFailed(reply.reason)
        return reply

    def _how_it_ended(self) -> str:
        self._process.join(_STOP_SECONDS)
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"its process ended with exit code {code}"
        return f"its process was ended by signal {-code}" + (", probably for want of memory" if code == -9 else "")


def choose_engines(names: Sequence[str], device: str | None = None) -> list[EngineChoice]:
    """Engines by name: "torch:bf16"; "torch" in the precision that is native to the device; "auto" for every runtime
    on this machine in its native precision.

    device: None for the best that each runtime sees. Raises `ValueError` for an unknown runtime.
    """
    from rvm_core.engines import backends

    known = backends()
    if unknown := [name for name in names if name != "auto" and name.partition(":")[0] not in known]:
        raise ValueError(f"unknown engine {unknown[0]!r}; expected auto or one of {', '.join(known)}, as torch:bf16")
    chosen: dict[EngineChoice, None] = {}
    for name in names:
        for backend_name in known if name == "auto" else [name.partition(":")[0]]:
            backend = known[backend_name]
            missing = backend.missing()
            if missing and name == "auto":
                continue
            where = device or (backend.devices()[0] if not missing else "cpu")
            precision = name.partition(":")[2] or ("?" if missing else backend.native_precision(where))
            choice = EngineChoice(
                backend=backend_name,
                precision=precision,
                device=where,
                builds_files=backend.builds_files,
                missing=missing,
            )
            chosen[choice] = None
    return list(chosen)


def make_group(workload: Workload, engines: Sequence[EngineChoice], options: Options) -> Group:
    """Everything to measure for one workload: on each device the engines, the references and the peaks."""
    base = Job(
        kind="engine",
        model=workload.model,
        weights=workload.weights,
        image_size=workload.image_size,
        cameras=workload.cameras,
        arrangement=workload.arrangement,
        check=options.check,
    )
    measurements = []
    for choice in engines:
        job = replace(base, backend=choice.backend, precision=choice.precision, device=choice.device)
        measurements.append(Measurement(job, failure=choice.missing, build_first=choice.builds_files))
    for device in dict.fromkeys(torch_device(choice.device) for choice in engines):
        for kind in ("eager", "matmul"):
            for precision in ("fp32", "bf16"):
                job = replace(base, kind=kind, precision=precision, device=device)
                measurements.append(Measurement(job))
    return Group(workload, measurements)


def torch_device(device: str) -> str:
    """The device of an engine as torch names it, which measures the references there."""
    return device if device.startswith("cuda") else "cpu"


def preprocess_group(image_sizes: Sequence[tuple[int, int]]) -> Group:
    """Preprocessing of a 1080p frame to each size."""
    jobs = [Job(kind="preprocess", image_size=size) for size in dict.fromkeys(image_sizes)]
    return Group(Workload(model="", image_size=jobs[0].image_size), [Measurement(job) for job in jobs])


def count_turns(groups: Sequence[Group], options: Options) -> int:
    """How many turns there are to do, for a progress bar."""
    soaks = (m for g in groups for m in g.measurements if options.soak and m.job.kind == "engine")
    return sum(len(group.measurements) for group in groups) * options.rounds + SOAK_CHUNKS * len(list(soaks))


def measure_group(group: Group, options: Options, progress: Progress) -> None:
    """Fills the group's measurements. A job that fails gets a `failure`; the others go on."""
    with ExitStack() as stack:
        workers: list[tuple[Measurement, Worker]] = []
        for measurement in group.measurements:
            if measurement.failure:
                continue
            progress(f"loading {measurement.job.name}")
            try:
                if measurement.build_first:
                    with Worker(measurement.job, options.cores) as builder:
                        builder.ready()
                worker = stack.enter_context(Worker(measurement.job, options.cores))
                measurement.ready = worker.ready()
            except WorkerFailed as error:
                measurement.failure = str(error)
            else:
                workers.append((measurement, worker))
        for number in range(options.rounds):
            _round(number, workers, options, progress)
        for measurement, worker in workers:
            if options.soak and measurement.job.kind == "engine":
                _soak(measurement, worker, options.soak, progress)


def _round(number: int, workers: Sequence[tuple[Measurement, Worker]], options: Options, progress: Progress) -> None:
    start = number % max(1, len(workers))
    for measurement, worker in [*workers[start:], *workers[:start]]:
        if measurement.failure:
            continue
        progress(measurement.job.name)
        steps = min(options.turn_steps, CHEAP_TURN_STEPS) if measurement.job.kind == "matmul" else options.turn_steps
        try:
            turn = worker.turn(Request(steps))
        except WorkerFailed as error:
            measurement.failure = str(error)
            continue
        measurement.turn = turn
        measurement.rounds[number] = turn.seconds
        if turn.idle_cpu is not None:
            measurement.idle_cpu.append(turn.idle_cpu)
        progress(measurement.job.name, 1)


def _soak(measurement: Measurement, worker: Worker, steps: int, progress: Progress) -> None:
    done = 0
    for chunk in range(1, SOAK_CHUNKS + 1):
        until = steps * chunk // SOAK_CHUNKS
        try:
            # One more step opens each turn.
            turn = worker.turn(Request(max(0, until - done - 1), timed=False)) if until > done else None
        except WorkerFailed as error:
            measurement.failure = str(error)
            return
        if turn:
            measurement.soak.append((until, turn.resident_bytes))
        done = until
        progress(f"soaking {measurement.job.name}", 1)


@contextmanager
def _worker_surroundings(cores: int | None) -> Iterator[None]:
    """The environment and the cores that a process started meanwhile inherits; see the module's docstring."""
    kept, allowed = dict(os.environ), os.sched_getaffinity(0)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        os.environ.pop(name, None)
    os.environ["KMP_BLOCKTIME"] = "1"
    try:
        if cores is not None:
            os.sched_setaffinity(0, sorted(allowed)[:cores])
        yield
    finally:
        os.sched_setaffinity(0, allowed)
        for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
            if name in kept:
                os.environ[name] = kept[name]
            else:
                os.environ.pop(name, None)
