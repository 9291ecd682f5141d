"""Makes batches of examples: in this process, or in others that write them to memory they share with this one.

The processes import neither torch nor jax.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from rvm_training.data.examples import DataError, Example, ExampleMaker, Skipped
from rvm_training.data.pool import SPAWN, blocked_signals, start_pool
from rvm_training.pretrain_batch import Batch, batch_layout, batch_like

_TASK_ROWS = 8
"""Examples that a process makes at a time: long enough to be worth the way there, short enough to share a batch."""
_BATCHES_AHEAD = 2


@dataclass
class PendingBatch:
    """A batch that is being made."""

    arrays: Batch
    futures: Sequence[Future[list[Skipped]]]
    copied: bool

    def result(self) -> tuple[Batch, list[Skipped]]:
        """The batch, in memory of its own, and the clips that could not be read. Raises `DataError`."""
        with _broken_pool_errors():
            skipped = [skip for future in self.futures for skip in future.result()]
        batch = self.arrays
        return batch_like(batch, (array.copy() for array in batch)) if self.copied else batch, skipped


@contextmanager
def _broken_pool_errors() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise DataError(
            "a process that makes examples ended by itself, perhaps killed for its memory; use fewer of them "
            "(data.workers), or a smaller batch"
        ) from error


class InThisProcess:
    """Makes a batch when it is asked for."""

    ahead = 1

    def __init__(self, maker: ExampleMaker, batch_size: int) -> None:
        self._maker, self._layout = maker, batch_layout(maker.sampling, batch_size)

    def submit(self, examples: Sequence[Example]) -> PendingBatch:
        arrays = batch_like(self._layout, (np.empty(shape, dtype) for shape, dtype in self._layout))
        future: Future[list[Skipped]] = Future()
        future.set_result(self._maker.make(examples, arrays))
        return PendingBatch(arrays, [future], False)

    def close(self) -> None:
        pass


class InProcesses:
    """Makes batches in processes, which write them to memory that is shared with this one."""

    def __init__(self, maker: ExampleMaker, batch_size: int, workers: int) -> None:
        layout = batch_layout(maker.sampling, batch_size)
        self._rows = max(1, min(_TASK_ROWS, -(-batch_size // workers)))
        tasks = -(-batch_size // self._rows)
        # Enough for every process to have work while a batch is waited for.
        self.ahead = _BATCHES_AHEAD + -(-workers // tasks)
        size = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in layout)
        buffers = [SPAWN.RawArray(ctypes.c_uint8, size) for _ in range(self.ahead)]
        self._slots = [_views(buffer, layout) for buffer in buffers]
        self._next = 0
        self._pool = start_pool(workers, _start_worker, maker, buffers, batch_size)

    def submit(self, examples: Sequence[Example]) -> PendingBatch:
        slot = self._next
        self._next = (slot + 1) % len(self._slots)
        parts = [examples[i : i + self._rows] for i in range(0, len(examples), self._rows)]
        with _broken_pool_errors(), blocked_signals():
            futures = [self._pool.submit(_work, slot, part) for part in parts]
        return PendingBatch(self._slots[slot], futures, True)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _views(buffer: Any, layout: Batch) -> Batch:
    flat = np.frombuffer(buffer, np.uint8)
    views: list[Any] = []
    begin = 0
    for shape, dtype in layout:
        end = begin + int(np.prod(shape)) * np.dtype(dtype).itemsize
        views.append(flat[begin:end].view(dtype).reshape(shape))
        begin = end
    return batch_like(layout, views)


# In a process of the pool.

_maker: ExampleMaker
_slots: list[Batch]


def _start_worker(maker: ExampleMaker, buffers: list[Any], batch_size: int) -> None:
    global _maker, _slots
    _maker = maker
    layout = batch_layout(maker.sampling, batch_size)
    _slots = [_views(buffer, layout) for buffer in buffers]


def _work(slot: int, examples: Sequence[Example]) -> list[Skipped]:
    return _maker.make(examples, _slots[slot])
