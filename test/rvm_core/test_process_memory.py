"""What a process has of memory, and that freed memory goes back."""

from __future__ import annotations

import platform

import pytest

from rvm_core.process_memory import peak_bytes, release_freed_memory, resident_bytes

COUNTING = 1_000_000
"""Bytes: the kernel adds up what its processors count at its leisure."""


def test_peak_is_the_most_that_was_resident() -> None:
    before = resident_bytes()
    block = bytearray(b"x") * 64_000_000
    held = resident_bytes()
    del block
    assert held > before + 50_000_000
    assert peak_bytes() >= held - COUNTING


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back when asked")
def test_freed_memory_goes_back() -> None:
    """Small blocks come from the heap, whose end is kept in use by the last one, so that free alone gives nothing."""
    blocks = [b"x" * (100_000 + number) for number in range(2000)]
    full = resident_bytes()
    del blocks[:-1]
    release_freed_memory()
    assert resident_bytes() < full - 150_000_000
