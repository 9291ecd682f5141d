"""The ids that tracks of one camera have had: none is given twice while the node lives."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable

MAX_ID = 2**64 - 1
MAX_MASK_ID = 2**16 - 1
"""A mask's id is the value of its pixels in a mono16 image."""

FIRST_MASK_ID = 2**15
"""From here to `MAX_MASK_ID` the node gives ids to masks only, so that points and boxes, however many, leave some."""


class IdLedger:
    """A set of used ids that only grows.

    Kept as runs of consecutive numbers, so its memory follows the gaps between ids, not their count.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        """Run i holds starts[i] to ends[i] - 1; runs are sorted and never touch."""

    @property
    def runs(self) -> list[tuple[int, int]]:
        """First and last id of each run of used ones."""
        return [(start, end - 1) for start, end in zip(self._starts, self._ends, strict=True)]

    @staticmethod
    def of_runs(runs: Iterable[tuple[int, int]]) -> IdLedger:
        """A ledger with the `runs` of another one."""
        ledger = IdLedger()
        for first, last in runs:
            ledger._starts.append(first)
            ledger._ends.append(last + 1)
        return ledger

    def __contains__(self, id: int) -> bool:
        run = bisect_right(self._starts, id) - 1
        return run >= 0 and id < self._ends[run]

    def add(self, id: int) -> None:
        """Marks an id as used."""
        after = bisect_right(self._starts, id)
        if after and id < self._ends[after - 1]:
            return
        joins_before = after > 0 and self._ends[after - 1] == id
        joins_after = after < len(self._starts) and self._starts[after] == id + 1
        if joins_before and joins_after:
            self._ends[after - 1] = self._ends.pop(after)
            self._starts.pop(after)
        elif joins_before:
            self._ends[after - 1] = id + 1
        elif joins_after:
            self._starts[after] = id
        else:
            self._starts.insert(after, id)
            self._ends.insert(after, id + 1)

    def unused(self, *, for_mask: bool, taken: Collection[int]) -> int | None:
        """The lowest id that the node may give and that is neither used nor in `taken`; None if there is none left."""
        ranges = [(FIRST_MASK_ID, MAX_MASK_ID)] if for_mask else [(1, FIRST_MASK_ID - 1), (MAX_MASK_ID + 1, MAX_ID)]
        for first, last in ranges:
            id = self._next_unused(first)
            while id in taken:
                id = self._next_unused(id + 1)
            if id <= last:
                return id
        return None

    def _next_unused(self, id: int) -> int:
        run = bisect_right(self._starts, id) - 1
        return self._ends[run] if run >= 0 and id < self._ends[run] else id
