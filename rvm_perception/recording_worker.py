"""What replays recordings one after another with one engine, in whatever process it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rvm_core.exit_codes import is_disk_full
from rvm_core.threads import limit_threads
from rvm_perception.bag_reader import BagError
from rvm_perception.parameters import NodeParameters
from rvm_perception.replay import Interrupted, Stepper
from rvm_perception.replay_job import ReplayOptions, make_stepper, replay_bag

Status = Literal["done", "recovered", "bad", "failed", "full", "interrupted", "lost", "no engine"]
"""done: all of the recording; recovered: the readable part of a damaged one; bad: it cannot be used; failed: another
error; full: the disk is; interrupted: by the user; lost: its process ended again and again; no engine: model or engine
cannot be made, whatever the recording."""

StepperMaker = Callable[[NodeParameters, Callable[[str], None]], Stepper]


class _NoEngineError(RuntimeError):
    """See `Status`."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One recording to replay."""

    name: str
    path: Path
    out: Path
    options: ReplayOptions
    attempts: int = 0
    """How many processes ended over it so far."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a task."""

    name: str
    status: Status
    message: str = ""
    """One line that explains it; empty if all is well."""
    log: tuple[str, ...] = ()
    """What the engine told while it was made."""


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What all workers have in common: with it, a result depends neither on which of them computes it nor on how many
    there are."""

    parameters: NodeParameters
    threads: int
    make_stepper: StepperMaker = make_stepper
    """Another one for tests; a function that every process can import."""
    folder: str = field(default_factory=os.getcwd)
    """In which relative paths of the parameters are meant."""


class Worker:
    """Makes its engine for the first recording that is usable, and keeps it."""

    def __init__(self, settings: WorkerSettings) -> None:
        if os.path.isdir(settings.folder):
            os.chdir(settings.folder)
        limit_threads(settings.threads)
        self._settings = settings
        self._made: Stepper | None = None
        self._log: list[str] = []

    def run(self, task: Task, is_stopped: Callable[[], bool]) -> Outcome:
        """Replays a recording. All errors become outcomes."""
        self._log = []
        status, message = self._run(task, is_stopped)
        return Outcome(name=task.name, status=status, message=" ".join(message.split()), log=tuple(self._log))

    def _run(self, task: Task, is_stopped: Callable[[], bool]) -> tuple[Status, str]:
        # What a lost process did of the recording is kept.
        options = replace(task.options, resume=task.options.resume or task.attempts > 0)
        parameters = self._settings.parameters
        try:
            summary = replay_bag(task.path, task.out, parameters, self._stepper, options, is_stopped=is_stopped)
        except _NoEngineError as error:
            return "no engine", str(error)
        except Interrupted:
            return "interrupted", "interrupted"
        except BagError as error:
            return "bad", str(error)
        except Exception as error:  # one recording must not stop the others
            if is_disk_full(error):
                return "full", f"the disk is full: {task.out} could not be written"
            return "failed", f"{type(error).__name__}: {error}"
        return ("recovered", summary.recovered) if summary.recovered else ("done", "")

    def _stepper(self) -> Stepper:
        if self._made is None:
            try:
                self._made = self._settings.make_stepper(self._settings.parameters, self._log.append)
            except Exception as error:
                raise _NoEngineError(str(error) or type(error).__name__) from error
        return self._made
