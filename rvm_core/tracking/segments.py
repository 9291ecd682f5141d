"""Boxes and masks from propagated soft labels: where they are, and how sure that is.

Shapes: S segments, h rows and w columns of the grid. Coordinates are those of the grid, see `base`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from cv2 import connectedComponents

Float32Array = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]
"""x_min, y_min, x_max, y_max."""

VISIBILITY = (4.56, 0.04, -1.59)
"""Logistic coefficients of `Segment.evidence`, the constant last, for whether something of a segment is visible."""
CONFIDENCE = {"box": (8.69, -2.21, -6.56), "mask": (6.84, -2.75, -4.99)}
"""The same for whether the IoU with the truth is over 0.5. All come from rvm_training/calibrate_tracker.py."""
_RENEWAL = 0.1
"""By how much the expected mass follows what is seen."""
_FAR = 5.0
"""Larger changes of mass tell no more than this one."""
_ELSEWHERE = 0.2
"""Weight of a core far from where the segment was, beside 1 + this on it."""
_CORE = 0.5
"""Share of the largest value from which a cell belongs to the segment's core."""


def box_coverage(box: npt.ArrayLike, grid: tuple[int, int]) -> Float32Array:
    """Share of each cell that a box, x_min, y_min, x_max, y_max, covers: (..., 4) to float32 (..., h, w)."""
    sides = np.asarray(box, np.float64)

    def along(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64], cells: int) -> Float32Array:
        starts = np.arange(cells)
        overlap = np.minimum(high[..., None], starts + 1) - np.maximum(low[..., None], starts)
        return np.clip(overlap, 0, 1).astype(np.float32)

    rows = along(sides[..., 1], sides[..., 3], grid[0])
    columns = along(sides[..., 0], sides[..., 2], grid[1])
    return rows[..., :, None] * columns[..., None, :]


@dataclass(frozen=True)
class Core:
    """The part of a segment's soft labels that is surely the segment."""

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
    evidence: tuple[float, float]
    """Purity of the core, and |log| of its mass over the expected one."""

    @classmethod
    def start(cls, id: int, soft: Float32Array, box: Box | None) -> Segment:
        """A segment in its first frame; `box` if it was given as one."""
        core = find_core(soft)
        return cls(id, box is not None, soft, box or core.box, core.mass, True, (1.0, 0.0))

    @property
    def confidence(self) -> float:
        """Probability that the IoU with the truth is over 0.5."""
        return _logistic(self.evidence, CONFIDENCE["box" if self.is_box else "mask"])

    def step(self, soft: Float32Array, core: Core | None = None) -> Segment:
        """The segment in the next frame, by its soft labels there, and their core where that is known."""
        core = core or find_core(soft, self.box if self.seen else None)
        change = min(_FAR, abs(math.log(max(core.mass, 1e-3) / max(self.mass, 1e-3))))
        evidence = (core.purity, change)
        if _logistic(evidence, VISIBILITY) < 0.5:
            return replace(self, soft=soft, seen=False, evidence=evidence)
        mass = self.mass * (core.mass / self.mass) ** _RENEWAL
        return replace(self, soft=soft, box=core.box, mass=mass, seen=True, evidence=evidence)


def step_segments(segments: Sequence[Segment], soft: Float32Array) -> tuple[Segment, ...]:
    """The segments in the next frame, by their soft labels (S, h, w) there."""
    cores = find_cores(soft, [segment.box if segment.seen else None for segment in segments])
    return tuple(segment.step(plane, core) for segment, plane, core in zip(segments, soft, cores, strict=True))


def find_core(soft: Float32Array, around: Box | None = None) -> Core:
    """`find_cores` for one segment, (h, w)."""
    return find_cores(soft[None], [around])[0]


def find_cores(soft: Float32Array, around: Sequence[Box | None]) -> list[Core]:
    """Reads soft labels (S, h, w). Of several cores the heaviest counts; those on the box `around` weigh more."""
    count, height, width = soft.shape
    # OpenCV crashes on an empty image.
    if not count:
        return []
    core = (soft > 0) & (soft >= _CORE * soft.max(axis=(1, 2), initial=0.0, keepdims=True))
    # All planes one below the other, an empty row between them, so that one call finds the parts of all.
    image = np.zeros((count, height + 1, width), np.uint8)
    image[:, :height] = core
    number, labels = connectedComponents(image.reshape(-1, width), connectivity=8)
    parts = labels.reshape(image.shape)[:, :height]
    core &= parts == _heaviest(parts, number, _weigh(soft, around))[:, None, None]
    values = np.where(core, soft, 0.0)
    mass, cells = values.sum(axis=(1, 2)), np.count_nonzero(core, axis=(1, 2))
    (x_min, x_max), (y_min, y_max) = _extents(values.max(axis=1)), _extents(values.max(axis=2))
    purity, boxes = mass / np.maximum(cells, 1), np.stack([x_min, y_min, x_max, y_max], axis=1)
    return [Core(m, p, tuple(b)) for m, p, b in zip(mass.tolist(), purity.tolist(), boxes.tolist(), strict=True)]


def _weigh(soft: Float32Array, around: Sequence[Box | None]) -> Float32Array:
    """Soft labels (S, h, w), those on the boxes `around` weighing more."""
    known = {index: box for index, box in enumerate(around) if box is not None}
    weights = soft.copy()
    if known:
        weights[list(known)] *= _ELSEWHERE + box_coverage(list(known.values()), soft.shape[1:])
    return weights


def _heaviest(parts: npt.NDArray[Any], number: int, weights: Float32Array) -> npt.NDArray[np.intp]:
    """Of each plane of labels (S, h, w) below `number` the one of the largest weight, (S,); label 0 is no part."""
    planes = np.zeros(number, np.intp)
    planes[parts] = np.arange(len(parts))[:, None, None]
    masses = np.bincount(parts.ravel(), weights.ravel(), minlength=number)
    # From the lightest to the heaviest, the last of equals first: what is written last stays.
    order = 1 + np.argsort(-masses[1:], kind="stable")[::-1]
    heaviest = np.zeros(len(parts), np.intp)
    heaviest[planes[order]] = order
    return heaviest


def _logistic(evidence: tuple[float, ...], coefficients: tuple[float, ...]) -> float:
    logit = math.fsum(a * b for a, b in zip((*evidence, 1.0), coefficients, strict=True))
    return 0.5 * (1 + math.tanh(logit / 2))


def _extents(profiles: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Where (S, n) shares of cells begin and end, (S,): cells at the ends count by their share; 0 if there is none."""
    shown, top = profiles > 0, profiles.max(axis=1)
    first, last = shown.argmax(axis=1), profiles.shape[1] - 1 - shown[:, ::-1].argmax(axis=1)
    at_first, at_last = (np.take_along_axis(profiles, end[:, None], axis=1)[:, 0] for end in (first, last))
    scale, half = np.where(top > 0, top, 1.0), np.minimum(1.0, at_first) / 2
    single = first == last
    low = np.where(single, first + 0.5 - half, first + 1 - at_first / scale)
    high = np.where(single, first + 0.5 + half, last + at_last / scale)
    return np.where(top > 0, low, 0.0), np.where(top > 0, high, 0.0)
