"""A lock between processes that the kernel releases when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO, Any


def try_lock(file: int | IO[Any]) -> bool:
    """Takes the lock of an open file, or of its descriptor, which lasts until it is closed.

    Returns False if it is held already, by another process or by another opening of the file here.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(file: IO[Any], path: Path) -> bool:
    """Whether an open file still has its name; between opening and locking, another process may have taken it away."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
