"""An engine that fails when a picture tells it to, for tests of what a node does about it: raises, NaN, hangs, is slow.

The order is a colour in the middle of the frame, so whoever plays the camera decides which frame fails and how, also
when the engine runs in another process and whatever the size of the frame. No camera sees that colour by chance for
long: it is one of 16 million.
"""

from __future__ import annotations

import threading
import time
from enum import IntEnum
from typing import Any

import numpy as np
import torch

from rvm_core.engines import Engine

_RED, _GREEN = 0xE5, 0xA0
_TICK_S = 0.02
_FOREVER = 255
LONGEST_S = _TICK_S * (_FOREVER - 1)
"""Of a fault that ends."""


class Fault(IntEnum):
    """What a frame may order."""

    RAISE = 1
    """RuntimeError."""
    MEMORY = 2
    """MemoryError, as of a processor that has none left; a GPU's error is a RuntimeError."""
    NAN = 3
    """One feature, and the state, are not a number."""
    INFINITE = 4
    """One feature, and the state, are infinite."""
    SLOW = 5
    """The step takes some time longer, and is right."""
    HANG = 6
    """The step never ends."""


def order(image: np.ndarray, fault: Fault, *, seconds: float = 0.0) -> np.ndarray:
    """A copy of an image, uint8 (H, W, 3) RGB, whose middle half orders a fault; `seconds` is the time of a SLOW one.

    Raises `ValueError` for a time that is longer than `LONGEST_S`.
    """
    if not 0 <= seconds <= LONGEST_S:
        raise ValueError(f"a fault lasts 0 to {LONGEST_S} s, got {seconds}")
    marked = image.copy()
    height, width = image.shape[:2]
    ticks = _FOREVER if fault == Fault.HANG else round(seconds / _TICK_S)
    marked[height // 4 : height - height // 4, width // 4 : width - width // 4] = (_RED, _GREEN + fault, ticks)
    return marked


def ordered(frame: np.ndarray) -> tuple[Fault, int] | None:
    """The fault that a frame, uint8 (h, w, 3) RGB, orders and its time in ticks; None: none."""
    red, green, ticks = (int(value) for value in frame[frame.shape[0] // 2, frame.shape[1] // 2])
    if red != _RED or green - _GREEN not in set(Fault):
        return None
    return Fault(green - _GREEN), ticks


class FaultyEngine:
    """Another engine, and the faults that its frames order. See `rvm_core.engines.base.Engine` for the contract."""

    def __init__(self, engine: Engine) -> None:
        self.spec = engine.spec
        self._engine = engine

    def init_state(self) -> Any:
        return self._engine.init_state()

    def step(self, frames: np.ndarray, state: Any) -> tuple[torch.Tensor, Any]:
        orders = [ordered(frame) for frame in frames]
        for given in orders:
            if given is not None:
                _act(*given)
        features, state = self._engine.step(frames, state)
        for row, given in enumerate(orders):
            if given is not None and given[0] in (Fault.NAN, Fault.INFINITE):
                value = float("nan" if given[0] == Fault.NAN else "inf")
                features, state = _spoiled(features, row, value), _spoiled(state, row, value)
        return features, state


def _act(fault: Fault, ticks: int) -> None:
    if fault == Fault.RAISE:
        raise RuntimeError("the engine was told to fail")
    if fault == Fault.MEMORY:
        raise MemoryError("the engine was told to run out of memory")
    if fault == Fault.HANG:
        threading.Event().wait()
    if fault == Fault.SLOW:
        time.sleep(ticks * _TICK_S)


def _spoiled(values: Any, row: int, value: float) -> Any:
    """A copy in which one number of a row is `value`; of a tuple, in each of its tensors."""
    if isinstance(values, tuple):
        return tuple(_spoiled(part, row, value) for part in values)
    values = values.clone()
    values[row].view(-1)[-1] = value
    return values
