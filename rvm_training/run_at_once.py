"""Several trainings at once, each in a process of its own on its part of the cores."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Protocol

from tqdm import tqdm

from rvm_training.data.pool import SPAWN, blocked_signals, start_pool

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Run(Protocol):
    """A training, picklable. Returns False if it was stopped; what it had is saved then."""

    def __call__(self, *, is_stopped: Callable[[], bool]) -> bool: ...


def run_at_once(runs: Iterable[Run], jobs: int, is_stopped: Callable[[], bool]) -> None:
    """Each run in a process of its own, which never sees a signal: it is told of the end by a flag, and saves."""
    todo = list(runs)
    flag = SPAWN.RawValue(ctypes.c_bool, False)
    running: dict[Future[bool], int] = {}
    pools = [start_pool(1, _start, index, jobs, flag) for index in range(jobs)]
    try:
        with tqdm(total=len(todo), unit="run", disable=None) as bar:
            while running or (todo and not is_stopped()):
                flag.value = is_stopped()
                for index in sorted(set(range(jobs)) - set(running.values())):
                    if todo and not is_stopped():
                        with blocked_signals():
                            running[pools[index].submit(_run, todo.pop(0))] = index
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    del running[future]
                    bar.update(bool(future.result()))
    finally:
        for pool in pools:
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)


# In the process of a run.

_stopped: Any


def _start(index: int, jobs: int, flag: Any) -> None:
    global _stopped
    _stopped = flag
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        mine = cores[index % jobs :: jobs] or cores
        os.sched_setaffinity(0, mine)
        os.environ.update(dict.fromkeys(_THREADS, str(len(mine))))


def _run(run: Run) -> bool:
    return run(is_stopped=lambda: bool(_stopped.value))
