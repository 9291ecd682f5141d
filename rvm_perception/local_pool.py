"""Replays recordings in processes on this machine."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from rvm_perception.recording_worker import Outcome, Task, Worker, WorkerSettings
from rvm_perception.replay import code_version

_SPAWN = multiprocessing.get_context("spawn")  # forks of a process with threads, as torch has them, may hang


class LocalPool:
    """See `rvm_perception.replay_many.Pool`. A process for each of `jobs` slots."""

    lost = (BrokenProcessPool,)

    def __init__(self, settings: WorkerSettings, jobs: int) -> None:
        # Without a lock, which a process that is killed might hold.
        self._stop = _SPAWN.RawValue(ctypes.c_bool, False)
        self.slots = [_LocalSlot(settings, self._stop) for _ in range(jobs)]

    def stop(self) -> None:
        self._stop.value = True

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *_: object) -> None:
        for slot in self.slots:
            slot.kill_if_busy()
        for slot in self.slots:
            slot.close()


class _LocalSlot:
    """One executor of one process, so that a process that ends takes nothing but its own recording with it."""

    def __init__(self, settings: WorkerSettings, stop: Any) -> None:
        self._initial = (settings, stop)
        self._executor: ProcessPoolExecutor | None = None
        self._children: set[multiprocessing.process.BaseProcess] = set()
        self._last: Future[Any] | None = None

    def prepare(self) -> Future[str]:
        self.close()
        self._executor = ProcessPoolExecutor(1, _SPAWN, initializer=_start, initargs=self._initial)
        before = set(multiprocessing.active_children())
        # Ctrl-C in a terminal reaches every process there: only this one shall act on it.
        with _blocked_signals():
            future = self._submit(code_version)
        self._children = set(multiprocessing.active_children()) - before
        return future

    def run(self, task: Task) -> Future[Outcome]:
        return self._submit(_run, task)

    def kill_if_busy(self) -> None:
        """Ends the process at once if it computes."""
        if self._last is not None and not self._last.done():
            for child in self._children:
                child.kill()

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def _submit(self, function: Callable[..., Any], *arguments: object) -> Future[Any]:
        assert self._executor is not None
        self._last = self._executor.submit(function, *arguments)
        return self._last


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Processes started meanwhile never get SIGINT and SIGTERM; this thread gets them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In the process of a slot.

_worker: Worker
_stopped: Any


def _start(settings: WorkerSettings, stop: Any) -> None:
    global _worker, _stopped
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker, _stopped = Worker(settings), stop


def _end_with_parent() -> None:
    """However the parent ends, its processes do not outlive it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(task: Task) -> Outcome:
    return _worker.run(task, lambda: bool(_stopped.value))
