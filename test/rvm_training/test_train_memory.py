"""Blocks that one step frees serve the next one, without the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = 2**26 // 4096
"""Of the block that is filled and freed; the kernel hands out large pages at once where it does so at all."""
COUNT = """
import numpy, resource
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(2**26, numpy.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
KEEP = "from rvm_training.train_memory import keep_freed_memory; keep_freed_memory()"
CHILD = f"import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', {COUNT!r}], text=True))"


def faults(program: str, platforms: str = "cpu") -> int:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": platforms, "NUMPY_MADVISE_HUGEPAGE": "0"}
    return int(subprocess.check_output([sys.executable, "-c", program], text=True, env=environment))


@pytest.mark.parametrize("program", [COUNT, CHILD], ids=["here", "in a process begun from here"])
def test_a_freed_block_is_used_again_when_the_cpu_trains(program: str) -> None:
    if faults(COUNT) < PAGES / 2:
        pytest.skip("this C library keeps freed memory by itself")
    assert faults(f"{KEEP}\n{program}") < PAGES / 50
    assert faults(f"{KEEP}\n{program}", platforms="cuda,cpu") > PAGES / 2
