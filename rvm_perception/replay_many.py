"""Replays all recordings of a folder: shares them out among workers, and does again what was lost with one of them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from tqdm import tqdm

from rvm_core.engines import plan_engine
from rvm_core.shipped_weights import weights_or_shipped
from rvm_core.weights import find_weights
from rvm_perception.bag_reader import BagError
from rvm_perception.parameters import NodeParameters
from rvm_perception.recording_worker import Outcome, StepperMaker, Task, WorkerSettings
from rvm_perception.recordings import find_recordings
from rvm_perception.recordings_page import check_folder, write_overview
from rvm_perception.replay import code_version
from rvm_perception.replay_job import ReplayOptions, make_stepper

ATTEMPTS = 3
"""So many processes may end over a recording, or one after another before they are ready."""

_POLL_S = 0.5


class Slot(Protocol):
    """Computes one recording at a time, in a process that keeps its engine from one to the next."""

    def prepare(self) -> Future[str]:
        """Starts the process, anew if there was one. The result, once it is ready, is its `code_version`."""

    def run(self, task: Task) -> Future[Outcome]:
        """Replays a recording. May raise the pool's `lost` at once."""


class Pool(Protocol):
    """Slots, here or elsewhere; all their processes have ended when its `with` block is left."""

    @property
    def lost(self) -> tuple[type[Exception], ...]:
        """Errors of a slot's futures that say that its process has ended."""

    @property
    def slots(self) -> Sequence[Slot]: ...

    def stop(self) -> None:
        """Every slot shall stop after the frame at which it is; what it did is kept."""

    def __enter__(self) -> Pool: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


def replay_many(
    folder: Path,
    out: Path,
    parameters: NodeParameters,
    options: ReplayOptions,
    *,
    jobs: int | None = None,
    threads: int | None = None,
    ray: str | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
    log: Callable[[str], None] = lambda line: None,
    maker: StepperMaker = make_stepper,
) -> list[Outcome]:
    """Replays every recording in a folder, each into a folder of its name in `out`, and writes an overview of all.

    The files, other than times, are the same whichever worker wrote them and however many there were.

    Args:
        options: for each recording. With `resume`, those that are complete are left as they are.
        jobs: how many at a time; None: by the processors and GPUs there are.
        threads: of each process; None: `default_threads()`.
        ray: None: in processes on this machine; else the address of a cluster, see `RayPool`.
        maker: makes the engine in each process; only tests need another.

    Returns what became of each recording, in the order of their names. Raises `BagError` if there is none,
    `OverviewError` where `out` does not fit, `RuntimeError` if there is no engine or no process stays alive,
    `FileNotFoundError` for weights that are not there, `MissingPackageError` without ray.
    """
    recordings = find_recordings(folder, leave_out=out)
    if not recordings:
        raise BagError(f"there is no recording in {folder}: expected folders of rosbag2, or files *.mcap or *.db3")
    check_folder(out)
    if weights := weights_or_shipped(parameters.weights, parameters.model):
        find_weights(weights)  # what would fail for all of them fails at once
    threads = default_threads() if threads is None else threads
    settings = WorkerSettings(parameters=parameters, threads=threads, make_stepper=maker)
    quiet = replace(options, quiet=True)
    tasks = [Task(name=r.name, path=r.path.absolute(), out=out.absolute() / r.name, options=quiet) for r in recordings]
    with _make_pool(settings, ray, jobs, len(tasks)) as pool:
        with tqdm(desc="recordings", total=len(tasks), unit="recording", disable=options.quiet or None) as bar:
            run = _Run(pool, tasks, log, bar.update)
            outcomes = run.finish(is_stopped)
    ordered = [outcomes[task.name] for task in tasks]
    write_overview(out, recordings, ordered)
    return ordered


def default_threads() -> int:
    """Of each process: the same however many there are, as results may depend on it."""
    return min(4, _cores())


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _make_pool(settings: WorkerSettings, ray: str | None, jobs: int | None, most: int) -> Pool:
    if ray is not None:
        from rvm_perception.ray_pool import RayPool

        return RayPool(settings, ray, jobs, most)
    from rvm_perception.local_pool import LocalPool

    if jobs is None:
        jobs = 1 if _on_gpu(settings.parameters) else max(1, _cores() // settings.threads)
    return LocalPool(settings, min(jobs, most))


def _on_gpu(parameters: NodeParameters) -> bool:
    plan = plan_engine(
        backend=parameters.backend,
        precision=parameters.precision,
        image_size=(parameters.height, parameters.width),
        device=None if parameters.device == "auto" else parameters.device,
    )
    return plan.spec.device.startswith("cuda")


class _Run:
    """Gives each free slot the next task until all have their outcome."""

    def __init__(
        self, pool: Pool, tasks: Collection[Task], log: Callable[[str], None], on_outcome: Callable[[], object]
    ) -> None:
        self._pool, self._log, self._on_outcome = pool, log, on_outcome
        self._waiting = deque(tasks)
        self._count = len(tasks)
        self._busy: dict[Future[Any], tuple[Slot, Task | None]] = {}
        self._idle: list[Slot] = []
        self._failed_starts: dict[int, int] = {}
        self._told: set[str] = set()
        self.outcomes: dict[str, Outcome] = {}

    def finish(self, is_stopped: Callable[[], bool]) -> dict[str, Outcome]:
        """Outcomes by name. Once `is_stopped`, what is left counts as interrupted."""
        for slot in self._pool.slots:
            self._busy[slot.prepare()] = slot, None
        stopped = False
        while len(self.outcomes) < self._count:
            if not stopped and is_stopped():
                stopped = True
                self._pool.stop()
            if stopped or self._is_full():
                self._give_up_waiting()
                if not any(task for _, task in self._busy.values()):
                    break
            while self._waiting and self._idle:
                self._give(self._waiting.popleft(), self._idle.pop())
            done, _ = wait(self._busy, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for future in done:
                self._take(future, *self._busy.pop(future), stopped)
        return self.outcomes

    def _give(self, task: Task, slot: Slot) -> None:
        try:
            self._busy[slot.run(task)] = slot, task
        except self._pool.lost:  # its process ended while it had nothing to do
            self._waiting.appendleft(task)
            self._busy[slot.prepare()] = slot, None

    def _take(self, future: Future[Any], slot: Slot, task: Task | None, stopped: bool) -> None:
        try:
            result = future.result()
        except self._pool.lost as error:
            if task is None:
                self._start_failed(slot, error)
            else:
                self._lost(task, stopped)
            if not stopped:
                self._busy[slot.prepare()] = slot, None
            return
        self._idle.append(slot)
        if task is None:
            self._failed_starts.pop(id(slot), None)
            if result != code_version():
                raise RuntimeError(f"a process runs other code of rvm_perception ({result}) than this one")
        else:
            self._finished(result)

    def _finished(self, outcome: Outcome) -> None:
        if outcome.status == "no engine":
            raise RuntimeError(outcome.message)
        for line in outcome.log:
            if line not in self._told:
                self._log(line)
        self._told.update(outcome.log)
        if outcome.message and outcome.status != "interrupted":
            self._log(f"{outcome.name}: {outcome.message}")
        self.outcomes[outcome.name] = outcome
        self._on_outcome()

    def _lost(self, task: Task, stopped: bool) -> None:
        attempts = task.attempts + 1
        if stopped:
            self._finished(Outcome(name=task.name, status="interrupted"))
        elif attempts < ATTEMPTS:
            self._log(f"{task.name}: its process ended; it is done again, attempt {attempts + 1} of {ATTEMPTS}")
            self._waiting.appendleft(replace(task, attempts=attempts))
        else:
            reason = f"its process ended {attempts} times, as where memory is short: try fewer --jobs"
            self._finished(Outcome(name=task.name, status="lost", message=reason))

    def _start_failed(self, slot: Slot, error: Exception) -> None:
        """Processes that end before they can be given work will do so for ever."""
        failed = self._failed_starts[id(slot)] = self._failed_starts.get(id(slot), 0) + 1
        if failed >= ATTEMPTS:
            raise RuntimeError(f"processes end as soon as they are started: {error}") from error

    def _is_full(self) -> bool:
        return any(outcome.status == "full" for outcome in self.outcomes.values())

    def _give_up_waiting(self) -> None:
        while self._waiting:
            self._finished(Outcome(name=self._waiting.popleft().name, status="interrupted"))
