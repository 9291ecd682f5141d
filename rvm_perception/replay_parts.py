"""The folder of a replay while it is made: finished parts that outlive an interruption, and results that come at once.

Beside the folder of the results, `.<name>.replay` holds parts/000000, 000001, ... with the messages of some turns each
and the state after them. Each part gets its name when it is complete and on the disk. Where one part ends and the next
starts has no influence on the results.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from rvm_core.atomic import atomic_file, flush
from rvm_core.file_lock import is_at, try_lock
from rvm_perception.replay_summary import SUMMARY
from rvm_perception.saved_state import StateError, load_value, save_value

_HEAD = struct.Struct("<HqI")
_MESSAGES, _STATE, _RUN = "messages.bin", "state.safetensors", "run.json"
_TABLES = ("frames", "timing")


class ReplayError(RuntimeError):
    """A replay cannot be done as asked; the text says why and what to do."""


class StoredMessage(NamedTuple):
    """A message of the results."""

    topic: int
    """Number of the topic."""
    time_ns: int
    data: bytes


class ReplayFolder:
    """A folder of results to be; use it in a `with` statement. One process at a time may have it.

    Raises `ReplayError` if `out` is something else than an earlier result, or another process has it.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.work = out.with_name(f".{out.name}.replay")
        self.stepped = self.work / "results"
        """The results, when all frames are stepped."""
        self._old = out.with_name(f".{out.name}.old")
        self._parts = self.work / "parts"
        self._lock: BinaryIO | None = None

    def __enter__(self) -> ReplayFolder:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        lock = self.out.with_name(f".{self.out.name}.lock")
        self._lock = open(lock, "wb")
        # The one before may have removed the file after it was opened here.
        if not try_lock(self._lock) or not is_at(self._lock, lock):
            self._lock.close()
            raise ReplayError(f"another process is writing {self.out}: give another --out, or wait")
        if self._old.exists() and not self.out.exists():
            self._old.rename(self.out)  # a run ended between the two renames of `publish`
        shutil.rmtree(self._old, ignore_errors=True)
        if (
            self.out.exists()
            and not (self.out / SUMMARY).exists()
            and (not self.out.is_dir() or any(self.out.iterdir()))
        ):
            self.__exit__()
            raise ReplayError(f"{self.out} exists and holds something else than a replay: give another --out")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._lock is not None
        Path(self._lock.name).unlink(missing_ok=True)
        self._lock.close()

    @property
    def is_interrupted(self) -> bool:
        """Whether an earlier run left something to go on from."""
        return (self.work / _RUN).exists()

    def start(self, run: Mapping[str, Any]) -> None:
        """Begins anew; what an interrupted run left is lost. `run`: what the results depend on."""
        shutil.rmtree(self.work, ignore_errors=True)
        self._parts.mkdir(parents=True)
        with atomic_file(self.work / _RUN) as file:
            file.write_text(json.dumps(run), encoding="utf-8")

    def resume(self, run: Mapping[str, Any]) -> Any:
        """The state after the last complete part; None before the first.

        Raises `ReplayError` if the interrupted run was of another recording, engine, code or other settings.
        """
        try:
            before = json.loads((self.work / _RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ReplayError(
                f"the interrupted run in {self.work} cannot be read ({error}): go without --resume"
            ) from None
        if different := [name for name in run if json.loads(json.dumps(run[name])) != before.get(name)]:
            raise ReplayError(
                f"the interrupted run for {self.out} had another {', '.join(different)}: repeat its command, or start "
                "anew without --resume"
            )
        for unfinished in self.work.glob("*.tmp"):
            shutil.rmtree(unfinished)
        folder = self.stepped if self.is_stepped else max(self._complete(), default=None)
        try:
            return None if folder is None else load_value(folder / _STATE)
        except StateError as error:
            raise ReplayError(f"the interrupted run cannot be continued ({error}): go without --resume") from error

    @property
    def is_stepped(self) -> bool:
        """Whether all frames were stepped and the messages are in `stepped`."""
        return self.stepped.exists()

    def new_part(self) -> PartWriter:
        """The next part; earlier ones stay as they are."""
        number = int(max(self._complete(), default=Path("-1")).name) + 1
        return PartWriter(self.work / "part.tmp", self._parts / f"{number:06d}")

    def messages(self) -> Iterator[StoredMessage]:
        """Those of all parts, in order."""
        for folder in self._complete():
            with open(folder / _MESSAGES, "rb") as file:
                while head := file.read(_HEAD.size):
                    topic, time_ns, size = _HEAD.unpack(head)
                    yield StoredMessage(topic, time_ns, file.read(size))

    def rows(self, table: str) -> Iterator[tuple[int, str]]:
        """Rows of a table, "frames" or "timing", of all parts: number of the camera and the line."""
        for folder in self._complete():
            with open(folder / f"{table}.csv", encoding="utf-8", newline="") as file:
                for line in file:
                    camera, _, rest = line.partition(",")
                    yield int(camera), rest

    def finish_stepping(self, results: Path) -> None:
        """`results`, which holds the messages of all parts, becomes `stepped`, and the parts go."""
        shutil.copyfile(max(self._complete()) / _STATE, results / _STATE)
        flush(results / _STATE)
        results.rename(self.stepped)
        flush(self.work)
        shutil.rmtree(self._parts)

    def publish(self) -> None:
        """`stepped` becomes `out`, in place of an earlier result, and nothing else is left."""
        (self.stepped / _STATE).unlink()
        for file in self.stepped.rglob("*"):
            flush(file)
        flush(self.stepped)
        if self.out.exists():
            self.out.rename(self._old)
        self.stepped.rename(self.out)
        flush(self.out.parent)
        shutil.rmtree(self._old, ignore_errors=True)
        shutil.rmtree(self.work)

    def _complete(self) -> list[Path]:
        return sorted(self._parts.iterdir()) if self._parts.exists() else []


class PartWriter:
    """One part that is being written."""

    def __init__(self, folder: Path, final: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self._folder, self._final = folder, final
        self._messages = open(folder / _MESSAGES, "wb")
        self._tables = {name: open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") for name in _TABLES}
        self.bytes = 0

    def add_message(self, message: StoredMessage) -> None:
        self._messages.write(_HEAD.pack(message.topic, message.time_ns, len(message.data)))
        self._messages.write(message.data)
        self.bytes += _HEAD.size + len(message.data)

    def add_row(self, table: str, camera: int, cells: Sequence[object]) -> None:
        """Adds a row to a table, "frames" or "timing", of the camera with this number."""
        self._tables[table].write(",".join(str(cell) for cell in (camera, *cells)) + "\n")

    def finish(self, state: Any) -> None:
        """The part is complete: `state` is the one after it."""
        self.close()
        save_value(self._folder / _STATE, state)
        for file in self._folder.iterdir():
            flush(file)
        os.replace(self._folder, self._final)
        flush(self._final.parent)

    def close(self) -> None:
        self._messages.close()
        for table in self._tables.values():
            table.close()
