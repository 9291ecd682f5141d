"""Checkpoints of a pretraining run, written with orbax while the training goes on."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rvm_training.pretrain_config import PretrainConfig, to_dict

if TYPE_CHECKING:
    from rvm_training.train_step import TrainState

_PARAMETERS, _OPTIMIZER, _PROGRESS = "parameters", "optimizer", "progress"
_WAIT_S = 1800
"""For the other processes of a run, at most."""

# orbax logs every error that it raises, and warns of what is not wrong.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class TrainCheckpointError(RuntimeError):
    """A checkpoint cannot be read."""


@dataclass(frozen=True)
class Progress:
    """What a checkpoint holds beside the weights and the optimiser."""

    step: int
    """Steps done."""
    loaders: list[Any]
    """Position of each process's loader."""


class TrainCheckpoints:
    """The checkpoints in a folder, each in one of its own that gets its name, the step's number, when it is complete.

    What another process left incomplete there is removed; so only one run at a time may use the folder. All processes
    of a run call the same functions in the same order.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(timeout_secs=_WAIT_S),
        )
        with _os_errors():
            self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def __enter__(self) -> TrainCheckpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Waits for what is being written."""
        try:
            with _os_errors():
                self._manager.close()
        except Exception:
            # The first error tells more.
            if error is None:
                raise
        finally:
            if error is not None:
                self._remove_incomplete()

    def save(self, state: TrainState, loaders: list[Any], config: PretrainConfig) -> None:
        """Takes a copy of the state and returns; it is written meanwhile. An older one is deleted only afterwards.

        Raises `OSError` if the last one could not be written.
        """
        step = int(state.step)
        progress = {"step": step, "loaders": loaders, "config": to_dict(config)}
        with _os_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{
                        _PARAMETERS: ocp.args.StandardSave(state.parameters),
                        _OPTIMIZER: ocp.args.StandardSave(state.optimizer),
                        _PROGRESS: ocp.args.JsonSave(progress),
                    }
                ),
            )

    def check(self) -> None:
        """Raises `OSError` if what was written meanwhile has failed; does not wait."""
        with _os_errors():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns when the last checkpoint is complete. Raises `OSError` if it could not be written."""
        with _os_errors():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def restore(self, abstract: TrainState, step: int) -> tuple[TrainState, Progress]:
        """A state as it was saved; `abstract` has its shapes, dtypes and shardings.

        Raises `TrainCheckpointError` if it cannot be read.
        """
        with _damage(self._folder / str(step)):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    **{
                        _PARAMETERS: ocp.args.StandardRestore(abstract.parameters),
                        _OPTIMIZER: ocp.args.StandardRestore(abstract.optimizer),
                        _PROGRESS: ocp.args.JsonRestore(),
                    }
                ),
            )
            progress = Progress(int(restored[_PROGRESS]["step"]), list(restored[_PROGRESS]["loaders"]))
            counter = _place(np.asarray(progress.step, np.int32), abstract.step)
            state = abstract._replace(step=counter, parameters=restored[_PARAMETERS], optimizer=restored[_OPTIMIZER])
        return state, progress

    def _remove_incomplete(self) -> None:
        """Makes room on a full disk."""
        if jax.process_index() == 0:
            for path in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)


def read_parameters(checkpoint: Path) -> dict[str, np.ndarray]:
    """The weights of one checkpoint, by their names in the torch model, float32, whatever devices wrote it.

    Raises `TrainCheckpointError` if it cannot be read.
    """
    path = checkpoint.resolve() / _PARAMETERS
    if not path.is_dir():
        raise TrainCheckpointError(f"there is no checkpoint {checkpoint}")
    with _damage(checkpoint), ocp.StandardCheckpointer() as reader:
        metadata = reader.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), dict(metadata))
        return {name: np.asarray(value) for name, value in reader.restore(path, as_numpy).items()}


def _place(value: np.ndarray, like: Any) -> jax.Array:
    return jax.make_array_from_callback(value.shape, like.sharding, lambda index: value[index])


@contextmanager
def _damage(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise TrainCheckpointError(
            f"the checkpoint {checkpoint} cannot be read ({_first_line(error)}); without its folder, "
            "the run goes on from the one before"
        ) from error


@contextmanager
def _os_errors() -> Iterator[None]:
    """tensorstore tells the number of a system error only in its text."""
    try:
        yield
    except ValueError as error:
        if not (match := re.search(r"os_error_code='(\d+)'", str(error))):
            raise
        raise OSError(int(match[1]), _first_line(error)) from error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
