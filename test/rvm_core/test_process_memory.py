"""What a process has of memory, and that freed memory goes back.

Each is measured in a process of its own: in one that has freed much before, a new block may cost nothing.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rvm_core.atomic import flush

ROOT = Path(__file__).parents[2]
COUNTING = 1_000_000
"""Bytes: the kernel adds up what its processors count at its leisure."""
HOLD = """
from rvm_core.process_memory import peak_bytes, resident_bytes
before = resident_bytes()
block = bytearray(b"x") * 64_000_000
held = resident_bytes()
del block
print(before, held, peak_bytes())
"""
# Small blocks come from the heap, whose end is kept in use by the last one, so that free alone gives nothing.
FREE = """
from rvm_core.process_memory import release_unused_memory, resident_bytes
blocks = [b"x" * (100_000 + number) for number in range(2000)]
full = resident_bytes()
del blocks[:-1]
freed = resident_bytes()
release_unused_memory()
print(full, freed, resident_bytes())
"""

MAP = """
import mmap, sys
from rvm_core.process_memory import release_unused_memory, resident_bytes
with open(sys.argv[1], "rb") as file:
    area = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
area[0] = 7
assert sum(area[::4096]) >= 7
full = resident_bytes()
release_unused_memory()
released = resident_bytes()
area.madvise(21)
print(full, released, resident_bytes(), area[0], area[-1])
"""


def measured(program: str, *arguments: str) -> list[int]:
    """The numbers of bytes that a new Python process prints, with malloc as it comes."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    environment["PYTHONPATH"] = str(ROOT)
    output = subprocess.check_output([sys.executable, "-c", program, *arguments], text=True, env=environment)
    return [int(number) for number in output.split()]


def test_peak_is_the_most_that_was_resident() -> None:
    before, held, peak = measured(HOLD)
    assert before + 50_000_000 < held < before + 100_000_000
    assert peak >= held - COUNTING


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back when asked")
def test_freed_memory_goes_back() -> None:
    full, freed, released = measured(FREE)
    assert freed > full - 20_000_000
    assert released < full - 150_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets go of mapped files when asked")
def test_mapped_files_are_let_go() -> None:
    # The folder for temporary files may be in memory, which has no other place to read from again.
    with tempfile.NamedTemporaryFile(dir=sys.prefix) as file:
        file.write(b"\x05" * 40_000_000)
        file.flush()
        flush(Path(file.name))
        full, released, asked, first, last = measured(MAP, file.name)
    if asked > full - 35_000_000:
        pytest.skip("this kernel or file system does not let go of mapped files")
    assert released < full - 35_000_000
    # What was written stays, and the rest is read again.
    assert (first, last) == (7, 5)
