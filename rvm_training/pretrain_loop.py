"""The loop of pretraining: steps, and what is logged, evaluated and saved between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from rvm_core.bench_plot import PlotError
from rvm_training import train_devices
from rvm_training.pretrain_batch import Batch, batch_like
from rvm_training.pretrain_config import PretrainConfig
from rvm_training.pretrain_loader import Loader
from rvm_training.sampling_config import Mask
from rvm_training.train_checkpoint import TrainCheckpoints
from rvm_training.train_log import Row, TrainLog
from rvm_training.train_meter import Meter
from rvm_training.train_picture import draw_reconstructions
from rvm_training.train_plot import draw_run
from rvm_training.train_step import Metrics, Trainer, TrainState

_PICTURED = 4
"""Examples in a picture."""


class DivergedError(RuntimeError):
    """A loss, gradient or weight is not finite."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"step {step}: {what}")
        self.step = step


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Who hears of a run. Only process 0 tells; all processes ask for the end."""

    is_stopped: Callable[[], bool] = lambda: False
    """Whether someone asks for an end of the run."""
    say: Callable[[str], None] = lambda line: None
    """Is told what people want to know."""
    show: Callable[[int, int, Row], None] = lambda step, last, row: None
    """Is told after each step: steps done, the last one to do, and the newest row of the log."""


@dataclass(kw_only=True)
class PretrainLoop:
    """Trains from one step to another. All processes of a run do the same."""

    config: PretrainConfig
    trainer: Trainer
    checkpoints: TrainCheckpoints
    loader: Loader
    held_out: list[Batch]
    """This process's part of the batches of the evaluation loss, of numpy."""
    meter: Meter
    log: TrainLog | None
    """None in all processes but the first."""
    hooks: Hooks

    def __post_init__(self) -> None:
        self._unread: tuple[int, Metrics] | None = None
        self._row: Row = {}
        self._all_finite = jax.jit(_all_finite)

    def run(self, state: TrainState, first: int, last: int) -> int:
        """Does the steps after `first` up to `last`, or fewer if someone asks for an end. Returns the last one done, of
        which a checkpoint is being written.

        Raises `DivergedError`, and `OSError` if something cannot be written.
        """
        step, ended = first, first >= last
        while not ended:
            with self.meter.waiting():
                local = next(self.loader)
                batch = self.trainer.place(local)
            began = time.perf_counter()
            state, metrics = self.trainer.step(state, batch)
            step += 1
            # The numbers of the step before are read while the devices work on this one.
            self._read()
            self._unread = (step, metrics)
            if step == first + 1:
                self._read()
                self.meter.restart_clock()
                self.hooks.say(f"the first step took {time.perf_counter() - began:.1f} s, nearly all of it to compile")
            self.checkpoints.check()
            ended = step == last or self._is_stopped(step)
            self._report(state, step, local, batch, ended=ended)
            if ended or step % self.config.checkpoint_every == 0:
                self._save(state, step)
            self.hooks.show(step, last, self._row)
        return step

    def _is_stopped(self, step: int) -> bool:
        # All processes must end after the same step, and it takes time to agree on it.
        if jax.process_count() > 1 and step % self.config.log_every:
            return False
        return train_devices.any_process(self.hooks.is_stopped())

    def _read(self) -> None:
        """Reads the numbers of the step that was begun before. Raises `DivergedError`."""
        if self._unread is None:
            return
        (step, metrics), self._unread = self._unread, None
        values = {name: float(value) for name, value in metrics._asdict().items()}
        if wrong := [f"{name.replace('_', ' ')} {value}" for name, value in values.items() if not math.isfinite(value)]:
            raise DivergedError(step, ", ".join(wrong))
        self.meter.add(**values)

    def _report(self, state: TrainState, step: int, local: Batch, batch: Batch, *, ended: bool) -> None:
        """Logs what is due after a step."""
        row: Row = {}
        if ended or step % self.config.log_every == 0:
            self._read()
            row |= self.meter.take() | self._skipped()
        if self.held_out and (ended or step % self.config.eval_every == 0):
            with self.meter.pause():
                losses = [self.trainer.loss(state, self.trainer.place(part)) for part in self.held_out]
                row["eval_loss"] = sum(losses) / len(losses)
        if row:
            self._row |= {"step": step, **row}
            if self.log:
                self.log.scalars(step, row)
        if ended or step % self.config.picture_every == 0:
            with self.meter.pause():
                self._picture(state, step, local, batch)

    def _skipped(self) -> Row:
        """Of the first process's share of the data."""
        skipped = sum(self.loader.skipped.values())
        return {"skipped_clips": skipped} if skipped else {}

    def _picture(self, state: TrainState, step: int, local: Batch, batch: Batch) -> None:
        if self.held_out:
            local = self.held_out[0]
            batch = self.trainer.place(local)
        pixels = _own_rows(self.trainer.reconstruct(state, batch))
        if self.log:
            shown = batch_like(local, (array[:_PICTURED] for array in local))
            pictured = pixels[: len(shown.visible)]
            mask: Mask = getattr(self.config.sampling, "mask", "tubes")
            self.log.picture(step, draw_reconstructions(shown, pictured, mask=mask))
            with suppress(PlotError):  # is told when the run ends
                draw_run(self.log.folder)

    def _save(self, state: TrainState, step: int) -> None:
        self._read()
        if not bool(self._all_finite(state)):
            raise DivergedError(step, "a weight or a moment of the optimiser is not finite")
        self.checkpoints.save(state, train_devices.gather(self.loader.get_state()), self.config)


def _all_finite(state: TrainState) -> jax.Array:
    numbers = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in numbers]))


def _own_rows(array: jax.Array) -> npt.NDArray[np.float32]:
    """The first examples of this process's part of an array that is split by examples."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    rows: list[npt.NDArray[np.float32]] = []
    for shard in shards:
        if sum(map(len, rows)) < _PICTURED:
            rows.append(np.asarray(shard.data, np.float32))
    return np.concatenate(rows)[:_PICTURED]
