"""A run of pretraining in its folder: begins it or goes on with it, and leaves a checkpoint to go on from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import jax
import numpy as np

from rvm_core.bench_plot import PlotError
from rvm_training import train_devices
from rvm_training.peaks import Peak
from rvm_training.pretrain_config import PretrainConfig
from rvm_training.pretrain_loader import Loader, MakeLoader, close, held_out_batches, training_loader
from rvm_training.pretrain_loop import DivergedError, Hooks, PretrainLoop
from rvm_training.run_folder import RunFolder
from rvm_training.train_checkpoint import TrainCheckpoints
from rvm_training.train_flops import train_flops
from rvm_training.train_log import TrainLog, read_scalars
from rvm_training.train_meter import Meter
from rvm_training.train_plot import draw_run
from rvm_training.train_step import Trainer, TrainState

__all__ = ["DivergedError", "Hooks", "Outcome", "RunOptions", "pretrain"]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run is told beside its configuration."""

    folder: RunFolder
    """Where all processes of the run can read and write."""
    make_loader: MakeLoader
    resume: bool = False
    """Go on with the run in the folder, if there is one."""
    stop_after: int | None = None
    """Stop after this step, though the learning rate falls as if the run went on."""
    peak: Peak | None = None
    """Of one device; None takes the maker's figure, or measures it where that is not known."""
    hooks: Hooks = Hooks()


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    """Steps done; there is a checkpoint of them."""
    interrupted: bool
    """Whether someone asked for the end."""


def pretrain(config: PretrainConfig, options: RunOptions) -> Outcome:
    """Trains to the last step, or until someone asks for an end. All processes of a run call it.

    A checkpoint has everything that the next steps depend on: a run that was interrupted, even killed, and went on
    gives the same weights as one that was not.

    Raises:
        RunFolderError: the folder has another run, or another process trains in it.
        DivergedError: something is not finite. The newest checkpoint is of before.
        OSError: something could not be written. The newest complete checkpoint stays.
    """
    first = options.folder.check(config, resume=options.resume)
    train_devices.wait_for_all("checked")
    main = train_devices.is_main()
    hooks = options.hooks if main else Hooks(is_stopped=options.hooks.is_stopped)
    say = hooks.say
    say(_describe_devices())
    trainer = Trainer(config)
    peak = options.peak or train_devices.device_peak(trainer.mesh.local_devices[0])
    for line in _describe(config, trainer, peak):
        say(line)
    with ExitStack() as stack:
        if main:
            stack.enter_context(options.folder.alone())
            _prepare(options.folder, config, trainer, new=first is None)
        train_devices.wait_for_all("prepared")
        checkpoints = TrainCheckpoints(options.folder.checkpoints, keep=config.keep_checkpoints)
        stack.enter_context(checkpoints)
        place = (jax.process_index(), jax.process_count())
        loader = training_loader(options.make_loader, config, *place)
        stack.callback(close, loader)
        state = _start(trainer, checkpoints, loader, first)
        say("begins with step 1" if first is None else f"goes on after step {first}")
        log = stack.enter_context(TrainLog(options.folder, start=first or 0)) if main else None
        loop = PretrainLoop(
            config=config,
            trainer=trainer,
            checkpoints=checkpoints,
            loader=loader,
            held_out=held_out_batches(options.make_loader, config, *place),
            meter=_meter(config, options.folder, peak.flops * trainer.mesh.size),
            log=log,
            hooks=hooks,
        )
        steps = config.optimizer.steps
        last = min(steps, options.stop_after or steps)
        try:
            step = loop.run(state, first or 0, last)
            checkpoints.wait()
        finally:
            if main:
                _draw(options)
    return Outcome(step, interrupted=step < last)


def _start(trainer: Trainer, checkpoints: TrainCheckpoints, loader: Loader, first: int | None) -> TrainState:
    """The state to begin with or to go on from, with the loader set to the place that belongs to it."""
    if first is None:
        return trainer.init()
    state, progress = checkpoints.restore(trainer.abstract_state(), first)
    own, wrote = jax.process_index(), len(progress.loaders)
    # The position is of the whole run's order, so another number of processes can go on with it.
    loader.set_state(progress.loaders[own if wrote == jax.process_count() else 0])
    return state


def _prepare(folder: RunFolder, config: PretrainConfig, trainer: Trainer, *, new: bool) -> None:
    """Raises `OSError` if the folder cannot hold a run."""
    if new:
        folder.write_config(config)
    needed, free = _state_bytes(trainer), shutil.disk_usage(folder.path).free
    if free < needed:
        raise OSError(
            f"a checkpoint needs {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free in {folder.path}: free some "
            "space or name another folder with --out"
        )


def _state_bytes(trainer: Trainer) -> int:
    leaves = jax.tree.leaves(trainer.abstract_state())
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _meter(config: PretrainConfig, folder: RunFolder, peak_flops: float) -> Meter:
    rows = read_scalars(folder.scalars)
    before = rows[-1].get("training_s", 0.0) if rows else 0.0
    return Meter(examples=config.batch_size, flops=_flops(config), peak_flops=peak_flops, training_s=before)


def _describe_devices() -> str:
    devices = jax.devices()
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"devices: {len(devices)} x {devices[0].device_kind} ({devices[0].platform}){processes}"


def _describe(config: PretrainConfig, trainer: Trainer, peak: Peak) -> Iterator[str]:
    """What was found, a line each, for people."""
    steps = config.optimizer.steps
    counts: dict[str, int] = {}
    for name, leaf in trainer.abstract_state().parameters.items():
        part = name.partition(".")[0]
        counts[part] = counts.get(part, 0) + int(np.prod(leaf.shape))
    parts = ", ".join(f"{part} {count / 1e6:.1f} M" for part, count in counts.items())
    yield "mesh: " + ", ".join(f"{name} {size}" for name, size in trainer.mesh.shape.items())
    yield f"peak of a device: {peak}"
    yield f"model: {config.model.name}, {sum(counts.values()) / 1e6:.1f} M parameters ({parts}), {config.compute_dtype}"
    yield f"example: {config.sampling.describe()}; {_flops(config) / 1e9:.3g} GFLOP forward and backward"
    yield (
        f"step: {config.batch_size} examples, {config.batch_size // trainer.mesh.size} a device; {steps} steps, "
        f"{config.batch_size * steps / 1e6:.4g} M examples"
    )
    yield (
        f"checkpoints: every {config.checkpoint_every} steps, the newest {config.keep_checkpoints} kept, "
        f"{_state_bytes(trainer) / 1e9:.2f} GB each"
    )
    for what, sources in (("data", config.data.sources), ("held out", config.data.held_out)):
        if sources:
            yield f"{what}: " + ", ".join(f"{source.name} ({source.path}, {source.weight:g})" for source in sources)


def _flops(config: PretrainConfig) -> float:
    """Of an example, forward and backward."""
    return train_flops(config) / config.batch_size


def _draw(options: RunOptions) -> None:
    with suppress(OSError):
        try:
            draw_run(options.folder)
        except PlotError as error:
            options.hooks.say(str(error))
