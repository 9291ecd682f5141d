"""Files of a command's output folder that get their names all together, at the end."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder_at_the_end(out: Path, outputs: Sequence[str]) -> Iterator[Path]:
    """A folder to write into, whose files replace those in `out` at the end; after an exception, all is as it was.

    outputs: names of files and folders that this command may write, in the order in which they get their names; those
    of an earlier run that are not written again go. Everything else in `out` stays as it is.
    """
    existed = out.is_dir()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=out) as name:
            folder, old = Path(name, "new"), Path(name, "old")
            folder.mkdir()
            old.mkdir()
            yield folder
            with _uninterrupted():
                for output in outputs[::-1]:
                    if (out / output).exists():
                        (out / output).rename(old / output)
                for output in outputs:
                    if (folder / output).exists():
                        (folder / output).rename(out / output)
    finally:
        if not existed and not any(out.iterdir()):
            out.rmdir()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C takes effect afterwards."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
