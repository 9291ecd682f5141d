"""Memory of this process: how much it has, and giving back what it no longer needs."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path

_MADV_PAGEOUT = 21
"""Of linux/mman.h. Unlike MADV_DONTNEED it keeps what was written, as the places of functions in a library."""


def resident_bytes() -> int:
    """Memory of this process now; 0 where the system does not tell."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """Most memory this process ever had."""
    # getrusage would also count what the parent had when it started this process.
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def release_freed_memory() -> None:
    """Gives to the system what was freed and malloc still keeps, as after an engine was made. Only glibc can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def release_mapped_files(folder: Path) -> None:
    """Lets go of what was read of the files of a folder that are mapped into memory, as weights that were packed since.

    What is needed again is read again. Only Linux from 5.4 on can; elsewhere nothing happens.
    """
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    try:
        mappings = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    for mapping in mappings:
        addresses, *_, path = mapping.split(maxsplit=5)
        if advise is not None and Path(path).is_relative_to(folder):
            begin, end = (int(address, 16) for address in addresses.split("-"))
            advise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_PAGEOUT)


def _status(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)
