"""Batches of pretraining in a fixed order, read by several processes ahead of time, resumable at the exact example."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Any

from rvm_training.data.batches import InProcesses, InThisProcess, PendingBatch
from rvm_training.data.examples import Example, ExampleMaker
from rvm_training.data.mixture import Mixture
from rvm_training.pretrain_batch import Batch, Sampling
from rvm_training.pretrain_config import DataConfig


def make_loader(
    data: DataConfig,
    sampling: Sampling,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Loader:
    """Batches of `batch_size` for the process `process_index` of `process_count`, each of which has the same arguments.

    Raises `ValueError` if a dataset is not there or empty, or there is none.
    """
    if batch_size < 1 or not 0 <= process_index < process_count:
        raise ValueError(
            f"expected a batch of one or more, and a process under their number; got {batch_size}, {process_index} of "
            f"{process_count}"
        )
    if not data.sources:
        raise ValueError("the mixture has no datasets; name some in data.sources")
    return Loader(data, sampling, batch_size, (data.seed, seed), process_index, process_count)


class Loader:
    """An endless iterator of batches of numpy arrays; see `make_loader`. Close it, or use it in `with`.

    Getting a batch raises `DataError` if a dataset cannot be read any more or a process ended; the state is then that
    before the batch.
    """

    def __init__(
        self,
        data: DataConfig,
        sampling: Sampling,
        batch_size: int,
        seed: tuple[int, int],
        process_index: int,
        process_count: int,
    ) -> None:
        self._sampling, self._batch_size = sampling, batch_size
        self._process_index, self._process_count = process_index, process_count
        self._names = [source.name for source in data.sources]
        maker = ExampleMaker.open(data.sources, sampling, seed)
        lengths = [len(source) for source in maker.sources]
        for source, length in zip(data.sources, lengths, strict=True):
            if not length:
                raise ValueError(f"{source.path} of the dataset {source.name} holds no clips")
        self._identity = {
            "seed": list(seed),
            "datasets": {s.name: [n, s.weight] for s, n in zip(data.sources, lengths, strict=True)},
        }
        self._mixture = Mixture(lengths, [source.weight for source in data.sources], seed)
        self._skipped: Counter[str] = Counter()
        self.last_skipped: deque[str] = deque(maxlen=20)
        """Why the last clips were skipped."""
        self._given = self._position()
        self._maker: InThisProcess | InProcesses
        if data.workers:
            self._maker = InProcesses(maker, batch_size, data.workers)
        else:
            self._maker = InThisProcess(maker, batch_size)
        self._ahead: deque[tuple[PendingBatch, dict[str, Any]]] = deque()

    @property
    def skipped(self) -> dict[str, int]:
        """How many clips of each dataset could not be read, by the name of the dataset."""
        return {name: self._skipped[name] for name in self._names}

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while len(self._ahead) < self._maker.ahead:
            self._ahead.append((self._maker.submit(self._next_examples()), self._position()))
        pending, position = self._ahead.popleft()
        batch, skipped = pending.result()
        self._given = position
        for dataset, reason in skipped:
            self._skipped[self._names[dataset]] += 1
            self.last_skipped.append(f"{self._names[dataset]}: {reason}")
        return batch

    def get_state(self) -> dict[str, Any]:
        """Where the next batch begins, for JSON. It is the same on all processes but for what was skipped."""
        return {**self._identity, **self._given, "skipped": self.skipped}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on where `get_state` was called. Batch size, processes and workers may be others than then.

        Raises `ValueError` for a state of another seed or of other datasets.
        """
        for key, now in self._identity.items():
            if (then := state.get(key)) != now:
                raise ValueError(f"the run was begun with other data: {key} is {now}, was {then}")
        try:
            examples = int(state["examples"])
            taken = [int(state["taken"][name]) for name in self._names]
            skipped = Counter({name: int(state["skipped"][name]) for name in self._names})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no state of a loader: {error!r}") from error
        for pending, _ in self._ahead:
            pending.result()
        self._ahead.clear()
        self._mixture.examples, self._mixture.taken[:] = examples, taken
        self._given, self._skipped = self._position(), skipped

    def close(self) -> None:
        """Ends the processes."""
        self._ahead.clear()
        self._maker.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _position(self) -> dict[str, Any]:
        taken = dict(zip(self._names, self._mixture.taken.tolist(), strict=True))
        return {"examples": self._mixture.examples, "taken": taken}

    def _next_examples(self) -> list[Example]:
        """Those of this process in the next batch of all processes."""
        begin = self._mixture.examples + self._process_index * self._batch_size
        datasets, clips = self._mixture.take(self._batch_size * self._process_count)
        mine = slice(self._process_index * self._batch_size, (self._process_index + 1) * self._batch_size)
        rows = enumerate(zip(datasets[mine].tolist(), clips[mine].tolist(), strict=True))
        return [Example(row, begin + row, dataset, clip) for row, (dataset, clip) in rows]
