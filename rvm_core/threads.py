"""How many threads the runtimes of this process may use."""

from __future__ import annotations

import os

import cv2
import torch

_limit: int | None = None


def limit_threads(count: int) -> None:
    """Holds torch, OpenCV and the engines made from now on to so many threads.

    The order in which products are summed up, and with it the last bits of a result, may depend on the number.
    """
    global _limit
    _limit = count
    os.environ["OMP_NUM_THREADS"] = str(count)  # for libraries that are loaded later
    torch.set_num_threads(count)
    cv2.setNumThreads(count)


def thread_limit() -> int | None:
    """What `limit_threads` was called with; None if it was not."""
    return _limit
