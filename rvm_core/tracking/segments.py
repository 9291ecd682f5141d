"""Boxes and masks from propagated soft labels: where they are, and how sure that is.

Shapes: S segments, h rows and w columns of the grid. Coordinates are those of the grid, see `base`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from cv2 import connectedComponentsWithStats

Float32Array = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]
"""x_min, y_min, x_max, y_max."""

VISIBILITY = (3.0, 3.0, -2.0, -3.0)
"""Logistic coefficients of `Segment.evidence`, the constant last, for whether something of a segment is visible."""
CONFIDENCE = {"box": (3.0, 3.0, -2.0, -3.0), "mask": (3.0, 3.0, -2.0, -3.0)}
"""The same for whether the IoU with the truth is over 0.5. All come from rvm_training/calibrate_tracker.py."""
_RENEWAL = 0.1
"""By how much the expected mass follows what is seen."""
_FAR = 5.0
"""Larger changes of mass tell no more than this one."""
_ELSEWHERE = 0.2
"""Weight of a core far from where the segment was, beside 1 + this on it."""
_CORE = 0.5
"""Share of the largest value from which a cell belongs to the segment's core."""


def box_coverage(box: Box, grid: tuple[int, int]) -> Float32Array:
    """Share of each cell that a box (x_min, y_min, x_max, y_max) covers: float32 (h, w)."""
    x_min, y_min, x_max, y_max = box

    def along(low: float, high: float, cells: int) -> Float32Array:
        edges = np.clip([low, high], 0, cells)
        starts = np.arange(cells)
        return np.clip(np.minimum(edges[1], starts + 1) - np.maximum(edges[0], starts), 0, 1).astype(np.float32)

    return np.outer(along(y_min, y_max, grid[0]), along(x_min, x_max, grid[1]))


@dataclass(frozen=True)
class Core:
    """The part of a segment's soft labels that is surely the segment."""

    peak: float
    """Largest value."""
    mass: float
    """Sum of the values in the core, cells."""
    purity: float
    """Mean value in the core."""
    box: Box
    """Around the core."""


@dataclass(frozen=True)
class Segment:
    """What is known of one tracked box or mask."""

    id: int
    is_box: bool
    soft: Float32Array
    """(h, w): soft labels of the newest frame."""
    box: Box
    """Where it was seen last."""
    mass: float
    """How large its core is expected to be, in cells; follows slowly what is seen."""
    seen: bool
    evidence: tuple[float, float, float]
    """Peak and purity of the core, |log| of its mass over the expected one."""

    @classmethod
    def start(cls, id: int, soft: Float32Array, box: Box | None) -> Segment:
        """A segment in its first frame; `box` if it was given as one."""
        core = find_core(soft)
        return cls(id, box is not None, soft, box or core.box, core.mass, True, (1.0, 1.0, 0.0))

    @property
    def confidence(self) -> float:
        """Probability that the IoU with the truth is over 0.5."""
        return _logistic(self.evidence, CONFIDENCE["box" if self.is_box else "mask"])

    def step(self, soft: Float32Array) -> Segment:
        """The segment in the next frame, by its soft labels there."""
        core = find_core(soft, self.box if self.seen else None)
        change = min(_FAR, abs(math.log(max(core.mass, 1e-3) / max(self.mass, 1e-3))))
        evidence = (core.peak, core.purity, change)
        if _logistic(evidence, VISIBILITY) < 0.5:
            return replace(self, soft=soft, seen=False, evidence=evidence)
        mass = self.mass * (core.mass / self.mass) ** _RENEWAL
        return replace(self, soft=soft, box=core.box, mass=mass, seen=True, evidence=evidence)


def find_core(soft: Float32Array, around: Box | None = None) -> Core:
    """Reads soft labels (h, w). Of several cores the heaviest counts; those on the box `around` weigh more."""
    peak = float(soft.max(initial=0.0))
    if peak <= 0:
        return Core(0.0, 0.0, 0.0, (0.0, 0.0, 0.0, 0.0))
    core = soft >= _CORE * peak
    count, parts, _, _ = connectedComponentsWithStats(core.astype(np.uint8), connectivity=8)
    if count > 2:
        weight = soft if around is None else soft * (_ELSEWHERE + box_coverage(around, soft.shape))
        masses = np.bincount(parts.ravel(), weight.ravel(), minlength=count)
        core = parts == 1 + int(masses[1:].argmax())
    values = soft[core]
    return Core(peak, float(values.sum()), float(values.mean()), _edges(np.where(core, soft, 0.0)))


def _logistic(evidence: tuple[float, ...], coefficients: tuple[float, ...]) -> float:
    logit = math.fsum(a * b for a, b in zip((*evidence, 1.0), coefficients, strict=True))
    return 0.5 * (1 + math.tanh(logit / 2))


def _edges(core: Float32Array) -> Box:
    """Box around values (h, w) that are shares of cells: the rows and columns of its border count by their share."""
    x_min, x_max = _extent(core.max(axis=0))
    y_min, y_max = _extent(core.max(axis=1))
    return x_min, y_min, x_max, y_max


def _extent(profile: Float32Array) -> tuple[float, float]:
    inside = np.flatnonzero(profile > 0)
    first, last = int(inside[0]), int(inside[-1])
    top = float(profile.max())
    if first == last:
        half = min(1.0, float(profile[first])) / 2
        return first + 0.5 - half, first + 0.5 + half
    return first + 1 - min(1.0, float(profile[first]) / top), last + min(1.0, float(profile[last]) / top)
