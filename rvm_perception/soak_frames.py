"""The camera of a soak test: pictures in a row, into which faults are mixed at random. Plain Python, from a seed.

The same seed gives the same frames, so a run that found something can be repeated.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rvm_perception.faulty_engine import Fault, order

PERIOD_NS = 40_000_000
"""Between two stamps."""

INPUT_FAULTS = (
    "drop", "gap", "duplicate", "late", "backward", "resolution", "frame_id", "encoding", "wrong_size", "empty",
    "corrupt",
)  # fmt: skip
"""Of the camera and the transport."""
ENGINE_FAULTS = {"raise": Fault.RAISE, "memory": Fault.MEMORY, "nan": Fault.NAN, "infinite": Fault.INFINITE}
ACTIONS = ("slow", "burst", "reset", "queries", "pause", "lifecycle")
"""What else happens while a frame is due: a slow step, frames faster than they can be processed, a call of `~/reset`,
queries that make no sense, the process stopped for a while, a deactivation and activation."""

FAULTS = (*INPUT_FAULTS, *ENGINE_FAULTS, *ACTIONS)

_UNANSWERED = {"duplicate", "late", "encoding", "wrong_size", "empty", "corrupt", *ENGINE_FAULTS}
_RARE = {"lifecycle": 0.15, "pause": 0.1, "reset": 0.3, "slow": 0.3}
"""How often, measured by the others: these take time."""
_SIZES = ((48, 64), (72, 96))
_PICTURES = 32


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A frame as it is sent."""

    number: int
    fault: str
    """One of the faults or actions above; empty: none."""
    stamp_ns: int
    frame_id: str
    image: np.ndarray
    """uint8 (H, W, 3) RGB."""

    @property
    def answered(self) -> bool:
        """Whether a node that is idle publishes features of it."""
        return self.fault not in _UNANSWERED


class SoakCamera:
    """Makes shots without end.

    Args:
        seed: of everything random.
        start_ns: the first stamp.
        rate: share of frames with a fault, 0 to 1.
    """

    def __init__(self, *, seed: int, start_ns: int, rate: float) -> None:
        self._random = random.Random(seed)
        self._stamp_ns, self._rate = start_ns, rate
        self._size, self._frame, self._number = 0, 0, 0
        pixels = np.random.default_rng(seed)
        self._pictures = [[_picture(pixels, size) for _ in range(_PICTURES)] for size in _SIZES]
        self._weights = [_RARE.get(name, 1.0) for name in FAULTS]

    def shots(self, count: int, *, without: tuple[str, ...] = ()) -> Iterator[Shot]:
        """So many of them; without: faults that are left out."""
        for _ in range(count):
            fault = ""
            if self._random.random() < self._rate:
                fault = self._random.choices(FAULTS, self._weights)[0]
            yield self._shot("" if fault in without else fault)

    def sound_shot(self, *, stamp_ns: int | None = None) -> Shot:
        """One without a fault; stamp_ns: where the clock is to stand now."""
        if stamp_ns is not None:
            self._stamp_ns = stamp_ns - PERIOD_NS
        return self._shot("")

    def _shot(self, fault: str) -> Shot:
        stamp_ns = self._next_stamp(fault)
        if fault == "resolution":
            self._size = 1 - self._size
        if fault == "frame_id":
            self._frame += 1
        image = self._pictures[self._size][self._random.randrange(_PICTURES)]
        if fault in ENGINE_FAULTS:
            image = order(image, ENGINE_FAULTS[fault])
        if fault == "slow":
            image = order(image, Fault.SLOW, seconds=0.04)
        self._number += 1
        return Shot(
            number=self._number - 1, fault=fault, stamp_ns=stamp_ns, frame_id=f"optical_{self._frame}", image=image
        )

    def _next_stamp(self, fault: str) -> int:
        """The stamp of this frame; the clock goes on from it, except from a late frame."""
        if fault == "duplicate":
            return self._stamp_ns
        if fault == "late":
            return self._stamp_ns - self._random.randrange(1, 10) * PERIOD_NS
        steps = {"drop": self._random.randrange(2, 10), "gap": 100, "backward": -self._random.randrange(50, 500)}
        self._stamp_ns += steps.get(fault, 1) * PERIOD_NS
        return self._stamp_ns


def _picture(pixels: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Blocks of random colours: unlike each other, and small as a PNG."""
    coarse = pixels.integers(0, 200, (size[0] // 8, size[1] // 8, 3), np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, axis=0).repeat(8, axis=1))
