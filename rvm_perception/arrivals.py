"""What is known of a camera's images that never arrived. Plain Python."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from statistics import median

NO_SEQUENCE = 2**64 - 1
"""What a middleware without sequence numbers gives."""

POOR_SHARE, POOR_IMAGES = 0.1, 3
"""Delivery is poor if this share of the images, and so many, got lost since it was last asked."""

_PERIODS, _GAP_PERIODS = 16, 1.5


class Arrivals:
    """Counts gaps between the images of one camera. Used by the thread that receives them."""

    def __init__(self) -> None:
        self.lost = 0
        """Images that were published but did not arrive, by gaps of the publisher's sequence numbers."""
        self.lost_events = 0
        """Images that the middleware says it has lost."""
        self.stamp_gaps = 0
        """How often two stamps were much further apart than usual: images are missing, whoever lost them."""
        self._arrived = 0
        self._sequence: int | None = None
        self._stamp_ns: int | None = None
        self._steps: deque[int] = deque(maxlen=_PERIODS)
        self._told = (0, 0, 0)

    def restart(self) -> None:
        """A new subscription: what came before it says nothing about what comes."""
        self._sequence = self._stamp_ns = None

    def add(self, sequence: int, stamp_ns: int, *, is_one_publisher: Callable[[], bool] = lambda: True) -> None:
        """Counts an image.

        sequence: of its publisher. is_one_publisher: whether all images are of the same one, as otherwise the numbers
        say nothing; asked at gaps only.
        """
        self._arrived += 1
        if sequence != NO_SEQUENCE:
            if self._sequence is not None and sequence > self._sequence + 1 and is_one_publisher():
                self.lost += sequence - self._sequence - 1
            self._sequence = sequence
        if self._stamp_ns is not None and stamp_ns > self._stamp_ns:
            step = stamp_ns - self._stamp_ns
            if len(self._steps) == _PERIODS and step > _GAP_PERIODS * median(self._steps):
                self.stamp_gaps += 1
            self._steps.append(step)
        self._stamp_ns = stamp_ns

    def poor_delivery(self) -> tuple[int, int, int] | None:
        """What became of the images since the last call, if delivery was poor in that time.

        How many got lost on the way, how many came but were replaced by newer ones before they were taken, and how many
        arrived.
        """
        counts = (self.lost_events, max(0, self.lost - self.lost_events), self._arrived)
        on_the_way, replaced, arrived = (now - told for now, told in zip(counts, self._told, strict=True))
        self._told = counts
        lost = on_the_way + replaced
        if lost < POOR_IMAGES or lost < POOR_SHARE * (lost + arrived):
            return None
        return on_the_way, replaced, arrived
