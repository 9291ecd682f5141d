"""What pretraining needs of a loader, and the loaders of one process of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from rvm_training.pretrain_batch import Batch, Sampling
from rvm_training.pretrain_config import DataConfig, PretrainConfig


class Loader(Protocol):
    """Endless batches of this process's examples, of numpy; the same ones again from the same position."""

    def __next__(self) -> Batch: ...

    @property
    def skipped(self) -> Mapping[str, int]:
        """How many clips of each dataset could not be read so far."""

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch, as JSON can hold it."""

    def set_state(self, state: dict[str, Any], /) -> None: ...


class MakeLoader(Protocol):
    """As `rvm_training.data.loader.make_loader`."""

    def __call__(
        self,
        data: DataConfig,
        sampling: Sampling,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Loader: ...


def training_loader(make: MakeLoader, config: PretrainConfig, process: int, processes: int) -> Loader:
    """Of this process's share of the batches."""
    return make(
        config.data,
        config.sampling,
        batch_size=config.batch_size // processes,
        seed=config.seed,
        process_index=process,
        process_count=processes,
    )


def held_out_batches(make: MakeLoader, config: PretrainConfig, process: int, processes: int) -> list[Batch]:
    """This process's share of the batches of the evaluation loss; none where no clips are held out.

    They are always the same ones, with the same crops and masks.
    """
    if not config.data.held_out:
        return []
    data = replace(config.data, sources=config.data.held_out, held_out=(), workers=0)
    loader = training_loader(make, replace(config, data=data), process, processes)
    batches = [next(loader) for _ in range(config.eval_batches)]
    close(loader)
    return batches


def close(loader: Loader) -> None:
    """Ends the processes of a loader that has some."""
    if end := getattr(loader, "close", None):
        end()
