"""What a result rests on, as hashes: code, data, and all of it together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rvm_core.code_version import installed_version, source_hash

_PACKAGES = ("rvm_core", "rvm_training")
_CHUNK = 1 << 20


def code_version() -> dict[str, str]:
    """The installed version, and a sha256 over all sources of rvm_core and rvm_training."""
    return {"version": installed_version(), "sources_sha256": source_hash(_PACKAGES)}


def hash_json(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """sha256 (hex) of plain JSON."""
    text = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def hash_files(files: Sequence[Path], root: Path | None, *, contents: bool) -> str:
    """sha256 (hex) over names, relative to `root`, and sizes of files, and when each was changed.

    contents: over what is in the files instead of when they were changed: slower, and the same for a copy elsewhere.
    Raises `OSError` for a file that is not there.
    """
    entries: list[list[object]] = []
    for path in sorted(files):
        name = path.relative_to(root).as_posix() if root and path.is_relative_to(root) else path.as_posix()
        status = path.stat()
        entries.append([name, status.st_size, _content(path) if contents else status.st_mtime_ns])
    return hash_json(entries)


def _content(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
