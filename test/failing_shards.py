"""Ways to make a shard that fail; in a module of their own, as processes of a pool import them."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Collection
from pathlib import Path

from rvm_training.data.cut import MadeShard, Tick, make_shard
from rvm_training.data.shard_job import Job


def crashing_make(job: Job, out: Path, number: int, crashes: Collection[str], tick: Tick) -> MadeShard:
    """As a decoder that ends its process at one video."""
    for done, item in enumerate(job.shards[number]):
        tick(done, 0)
        if item == "c.mp4" and item not in crashes:
            os.kill(os.getpid(), signal.SIGSEGV)
    return make_shard(job, out, number, crashes, tick)


def failing_make(job: Job, out: Path, number: int, crashes: Collection[str], tick: Tick) -> MadeShard:
    """As a disk that is full at the second shard."""
    if number == 1:
        raise OSError(errno.ENOSPC, "No space left on device")
    return make_shard(job, out, number, crashes, tick)


def hopeless_make(job: Job, out: Path, number: int, crashes: Collection[str], tick: Tick) -> MadeShard:
    """As on a machine where every process crashes."""
    tick(len(crashes), 0)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError
