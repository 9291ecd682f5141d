"""A folder that appears only when it is complete."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rvm_training.evaluation.benchmark import DatasetError

Progress = Callable[[str, int, int], None]
"""Is told what is done, how many are done, and how many there are."""


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, which becomes `path` if the body succeeds and is removed if it does not.

    Raises `DatasetError` if there is something at `path` that is no empty folder.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DatasetError(f"{path} exists already; remove it, or choose another folder with --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def safe_name(index: int, name: str) -> str:
    """A name for a folder, unique by its number, whatever characters the given name has."""
    cleaned = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:80].strip("-")
    return f"{index:04d}_{cleaned}" if cleaned else f"{index:04d}"
