"""Memory of this process: how much it has, and giving back what it no longer needs."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path


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


def _status(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)
