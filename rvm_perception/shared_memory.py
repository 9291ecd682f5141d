"""Segments of shared memory that a killed process leaves behind: Fast DDS removes its own only in an orderly end."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_FOLDER = "/dev/shm/"


def segments_of(pid: int) -> set[str]:
    """Paths of the segments that a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {line[line.index(_FOLDER) :].strip() for line in lines if _FOLDER in line and "(deleted)" not in line}


def forget_segments(paths: Iterable[str]) -> None:
    """Removes those segments of Fast DDS that no process has mapped any more."""
    candidates = {path for path in paths if Path(path).name.startswith("fastrtps_")}
    for process in Path("/proc").glob("[0-9]*"):
        candidates -= segments_of(int(process.name))
    for path in candidates:
        with suppress(OSError):
            Path(path).unlink()
