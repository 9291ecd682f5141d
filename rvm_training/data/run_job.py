"""Makes all shards of a job in several processes; goes on where an earlier run ended, however it did."""

from __future__ import annotations

import ctypes
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rvm_core.file_lock import try_lock
from rvm_training.data.cut import MadeShard, Skip, make_shard
from rvm_training.data.pool import SPAWN, blocked_signals, start_pool
from rvm_training.data.shard_job import Job
from rvm_training.data.shards import JOB, ShardError, read_json, shard_name, write_json, write_list

CRASHES = "crashes.json"
"""Videos whose decoding ended a process."""
_TEMPORARY = (".shard-*.tmp", f".{JOB}.*.tmp", ".shards.json.*.tmp", f".{CRASHES}.*.tmp")
_LOOK_S = 0.5
_MAX_CRASHES = 3
"""In a shard."""

Make = Callable[..., MadeShard]


@dataclass
class Summary:
    """What came of a job so far."""

    items: int = 0
    """Videos or scenes that are done."""
    clips: int = 0
    frames: int = 0
    bytes: int = 0
    made: int = 0
    """Clips made in this run."""
    seconds: float = 0.0
    """Of processor time, in this run."""
    skipped: list[Skip] = field(default_factory=list)
    """In the order of the shards."""


Progress = Callable[[int, int, int], None]
"""Is told how many items are done, how many clips there are, and how many videos were skipped."""


def run_job(job: Job, out: Path, *, workers: int, progress: Progress, make: Make = make_shard) -> Summary:
    """Makes the shards that are not there yet, and then the list of all.

    Raises `ShardError` if `out` is a folder with something else in it, or another process works in it.
    """
    if workers < 1:
        raise ValueError(f"expected one process or more, got {workers}")
    out.mkdir(parents=True, exist_ok=True)
    with _prepared(job, out):
        work = _Work(job, out, make)
        work.run(workers, progress)
        made = [work.made[number] for number in range(len(job.shards))]
        counts = ({"name": shard_name(i), "clips": m.clips, "frames": m.frames} for i, m in enumerate(made))
        write_list(out, counts)
    return Summary(
        items=job.items,
        clips=sum(m.clips for m in made),
        frames=sum(m.frames for m in made),
        bytes=sum(m.bytes for m in made),
        made=sum(made[number].clips for number in work.new),
        seconds=sum(made[number].seconds for number in work.new),
        skipped=[skip for m in made for skip in m.skipped],
    )


@contextmanager
def _prepared(job: Job, out: Path) -> Iterator[None]:
    """Makes sure that the folder is of this job, and works on it alone."""
    if not (out / JOB).is_file():
        if {path.name for path in out.iterdir()} - _stale(out):
            raise ShardError(f"{out} is not empty and holds no shards; choose another folder with --out")
        write_json(out / JOB, job.to_dict())
    elif read_json(out / JOB) != job.to_dict():
        raise ShardError(f"{out} holds shards of other videos or settings; choose another folder with --out")
    with open(out / JOB, "rb") as file:
        if not try_lock(file):
            raise ShardError(f"another process makes shards in {out}; wait for it, or stop it")
        for name in _stale(out):
            (out / name).unlink(missing_ok=True)
        yield


def _stale(out: Path) -> set[str]:
    """Files that were being written when a process was killed."""
    return {path.name for path in out.iterdir() if any(fnmatch.fnmatch(path.name, p) for p in _TEMPORARY)}


class _Work:
    """The shards of a job while they are made."""

    def __init__(self, job: Job, out: Path, make: Make) -> None:
        self._job, self._out, self._make = job, out, make
        self.made: dict[int, MadeShard] = {}
        for number in range(len(job.shards)):
            if (path := out / f"{shard_name(number)}.json").is_file():
                self.made[number] = MadeShard.from_dict(read_json(path))
        self.new = [number for number in range(len(job.shards)) if number not in self.made]
        # Each place is written by one process at a time: no lock is needed, which a process that is killed might hold.
        self._board = SPAWN.RawArray(ctypes.c_uint64, 1 + 2 * len(job.shards))

    def run(self, workers: int, progress: Progress) -> None:
        suspects = self._run(self.new, workers, progress)
        # One of them ended its process. Each by itself, it is known which.
        for number in suspects:
            crashes = 0
            while self._run([number], 1, progress):
                crashes += 1
                if crashes == _MAX_CRASHES:
                    raise ShardError(
                        f"a process ended {crashes} times at {shard_name(number)}, so it may not be because of single "
                        f"videos; is there enough memory? To try those again too, remove {CRASHES} from {self._out}"
                    )
                items = self._job.shards[number]
                self._note_crash(items[min(self._board[1 + 2 * number], len(items) - 1)])
        for name in _stale(self._out):
            (self._out / name).unlink(missing_ok=True)

    def _run(self, numbers: Sequence[int], workers: int, progress: Progress) -> list[int]:
        """Makes these shards. Returns those that a process which ended had not finished."""
        suspects: list[int] = []
        queue = iter(numbers)
        while True:
            begun: list[int] = []
            self._board[0] = 0
            running: dict[Future[MadeShard], int] = {}
            shared = (self._make, self._job, self._out, self._board)
            with start_pool(min(workers, len(numbers)) or 1, _start, *shared) as pool:
                try:
                    while True:
                        with blocked_signals():
                            for number in islice(queue, workers - len(running)):
                                begun.append(number)
                                running[pool.submit(_work, number, self._crashes())] = number
                        self._tell(progress)
                        if not running:
                            return suspects
                        for future in wait(running, timeout=_LOOK_S, return_when=FIRST_COMPLETED).done:
                            self.made[running[future]] = future.result()
                            del running[future]
                except BrokenProcessPool:
                    suspects += [number for number in begun if number not in self.made]
                finally:
                    # The others stop at their next clip.
                    self._board[0] = 1

    def _tell(self, progress: Progress) -> None:
        items = clips = skipped = 0
        for number, content in enumerate(self._job.shards):
            if made := self.made.get(number):
                items, clips, skipped = items + len(content), clips + made.clips, skipped + len(made.skipped)
            else:
                items, clips = items + self._board[1 + 2 * number], clips + self._board[2 + 2 * number]
        progress(items, clips, skipped)

    def _crashes(self) -> list[str]:
        path = self._out / CRASHES
        return [str(video) for video in read_json(path).get("videos", [])] if path.is_file() else []

    def _note_crash(self, item: str) -> None:
        write_json(self._out / CRASHES, {"videos": [*self._crashes(), item]})


# In a process of the pool.

_shared: tuple[Make, Job, Path, Any]


class _StoppedError(RuntimeError):
    """The process that started this one wants no more."""


def _start(make: Make, job: Job, out: Path, board: Any) -> None:
    global _shared
    _shared = make, job, out, board


def _work(number: int, crashes: Sequence[str]) -> MadeShard:
    make, job, out, board = _shared

    def tick(items: int, clips: int) -> None:
        if board[0]:
            raise _StoppedError
        board[1 + 2 * number], board[2 + 2 * number] = items, clips

    return make(job, out, number, crashes, tick)
