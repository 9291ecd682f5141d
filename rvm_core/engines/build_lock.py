"""The lock of an engine that is being built, so that one process builds it and the others wait."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rvm_core.engines.base import EngineError, Progress
from rvm_core.file_lock import try_lock

_POLL_S = 0.1
_REMIND_S = 30.0


@contextmanager
def build_lock(path: Path, progress: Progress | None = None, *, wait: bool = True) -> Iterator[bool]:
    """Holds the lock of a file, which is made if need be and stays, during the body.

    Yields whether the lock is held: always true unless `wait` is false. While another process holds it, `progress` is
    told, at once and every half minute. Raises `EngineError` if the file cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise EngineError(f"cannot open the lock file {path}: {error.strerror}; make its folder writable") from error
    try:
        held = try_lock(descriptor)
        if wait and not held:
            _wait(descriptor, progress)
            held = True
        if held:
            _sign(descriptor)
        yield held
    finally:
        os.close(descriptor)


def _sign(descriptor: int) -> None:
    """Only for the message of those who wait, so a full disk is no reason to fail."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)


def _wait(descriptor: int, progress: Progress | None) -> None:
    start = reminded = time.monotonic()
    _say_who(descriptor, progress, 0)
    while not try_lock(descriptor):
        time.sleep(_POLL_S)
        if time.monotonic() - reminded >= _REMIND_S:
            reminded = time.monotonic()
            _say_who(descriptor, progress, reminded - start)


def _say_who(descriptor: int, progress: Progress | None, seconds: float) -> None:
    if progress:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace") or "unknown"
        waited = f", for {seconds:.0f} s now" if seconds else ""
        progress(f"another process (pid {holder}) is building this engine: waiting for it{waited}")
