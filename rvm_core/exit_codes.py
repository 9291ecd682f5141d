"""Exit codes of the `rvm` and `rvm-train` commands, and which errors mean that the disk is full."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

DONE = 0
ERROR = 1
"""Explained by one line."""
USAGE = 2
INCOMPLETE = 3
"""There are results, but not of everything: some of the input could not be used."""
DISK_FULL = 4
"""Earlier results are as they were."""
DIVERGED = 6
"""Training stopped at a loss, gradient or weight that is not finite; the last checkpoint is of before."""
INTERRUPTED = 130

_FULL = {errno.ENOSPC, errno.EDQUOT}


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is that of a full disk or a used-up quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


class DiskFullError(RuntimeError):
    """A result could not be written as the disk is full."""


@contextmanager
def disk_full_errors(what: str) -> Iterator[None]:
    """Turns the error of a full disk into a `DiskFullError` that says what could not be written."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise DiskFullError(
            f"the disk is full: {what} could not be written; what was written before is as it was. "
            "Free some space and run the same command again"
        ) from error
