"""What a training run measures between two rows of its log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rvm_training.train_log import Row


class Meter:
    """Means of the steps since the last row, and how fast they were.

    Args:
        examples: of a step, over all devices.
        flops: of an example, forward and backward, without what is computed again to save memory.
        peak_flops: FLOP/s of all devices together.
        training_s: seconds that the run has taken before.
    """

    def __init__(self, *, examples: int, flops: float, peak_flops: float, training_s: float = 0.0) -> None:
        self._examples, self._flops, self._peak_flops = examples, flops, peak_flops
        self._training_s, self._begun = training_s, time.perf_counter()
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._learning_rate = 0.0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves out the time before, and the steps it was needed for."""
        self._started = time.perf_counter()
        self._waited = self._paused = 0.0
        self._uncounted = len(self._losses)

    def add(self, *, loss: float, gradient_norm: float, learning_rate: float) -> None:
        """One step that is done."""
        self._losses.append(loss)
        self._norms.append(gradient_norm)
        self._learning_rate = learning_rate

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, the step waits for its data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Inside is something else than training."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def take(self) -> Row:
        """The row, of at least one step; begins the next one.

        loss and gradient_norm are means; learning_rate is of the last step; examples_per_s is over all devices;
        data_wait is the share of the time that went on waiting for data; mfu is the share of the peak;
        training_s is how long the run has taken, with all that is around the steps.
        """
        count = len(self._losses)
        row: Row = {
            "loss": sum(self._losses) / count,
            "gradient_norm": sum(self._norms) / count,
            "learning_rate": self._learning_rate,
        }
        seconds = time.perf_counter() - self._started - self._paused
        if (counted := count - self._uncounted) and seconds > 0:
            rate = counted * self._examples / seconds
            row |= {
                "examples_per_s": rate,
                "data_wait": min(1.0, self._waited / seconds),
                "mfu": rate * self._flops / self._peak_flops,
            }
        row["training_s"] = self._training_s + time.perf_counter() - self._begun
        self._losses, self._norms = [], []
        self.restart_clock()
        return row
