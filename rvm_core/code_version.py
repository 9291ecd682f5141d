"""Which code runs: what a result rests on beside weights and data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path


@cache
def source_hash(packages: Iterable[str]) -> str:
    """sha256 (hex) over all Python sources of these packages, a tuple of their names.

    Read once: an update of the files does not change the code that runs.
    """
    digest = hashlib.sha256()
    for package in packages:
        spec = find_spec(package)
        for folder in map(Path, (spec.submodule_search_locations or ()) if spec else ()):
            for path in sorted(folder.rglob("*.py")):
                digest.update(f"{package}/{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def installed_version() -> str:
    """Of rvm_perception; "unknown" where it is not installed."""
    try:
        return version("rvm_perception")
    except PackageNotFoundError:
        return "unknown"
