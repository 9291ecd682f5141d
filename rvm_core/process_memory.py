"""Memory of this process: how much it has, and giving back what it no longer needs."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
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


def release_unused_memory() -> None:
    """Gives to the system what was freed and malloc still keeps, and what was read of files mapped into memory, such as
    libraries, and weights that were packed since. For once an engine is made; what is needed again is read again.

    The first only glibc can, the second only Linux from 5.4 on; elsewhere nothing happens.
    """
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    if hasattr(libc, "madvise"):
        for begin, size in _mapped_files():
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), _MADV_PAGEOUT)


def _mapped_files() -> Iterator[tuple[int, int]]:
    """Address and size of each file in memory, or of each part of it; devices are left out."""
    try:
        mappings = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    for mapping in mappings:
        addresses, *_, path = mapping.split(maxsplit=5)
        if path.startswith("/") and not path.startswith("/dev/"):
            begin, end = (int(address, 16) for address in addresses.split("-"))
            yield begin, end - begin


def _status(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)
