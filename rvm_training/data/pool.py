"""Processes of one thread that work on data and end with the one that started them, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import cv2

SPAWN = multiprocessing.get_context("spawn")
"""Forks of a process with threads, as jax has them, may hang."""


def start_pool(workers: int, initializer: Callable[..., None] | None = None, *arguments: Any) -> ProcessPoolExecutor:
    """Processes that call `initializer` first. Tasks are to be submitted within `blocked_signals`."""
    return ProcessPoolExecutor(workers, SPAWN, initializer=_start, initargs=(initializer, arguments))


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Processes started meanwhile never get SIGINT and SIGTERM, which a terminal sends to all; this one gets them
    afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(initializer: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    if initializer is not None:
        initializer(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
