"""Points followed by the similarity of features: positions finer than a cell, and whether a point is seen.

Shapes: P points, N = h * w cells, D width. Coordinates are those of the grid, see `base`.

A point is looked for with two templates: its feature in the frame it was given in, which never drifts, and its feature
where it was seen last, which knows its present look. The cells around its last place come first; the longer it has not
been seen, the larger that region.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rvm_core.tracking.base import PointTracks, Status
from rvm_core.tracking.matching import FrameKeys

_REACH = 3.0
"""Cells around the best match that its position is the mean of."""
_WINDOW = 0.8
"""Standard deviation of their weights around the position, cells."""
_SHIFTS = 8
"""Times the window is moved to the mean, so that the position does not depend on which cell matched best."""
_SHARPNESS = 0.2
"""Temperature of that mean, in relative similarity."""
_STRAY = 1.0
"""Standard deviation of a point's step from frame to frame, cells, as far as the search believes in it."""
_SPREAD = 0.5
"""By how much that grows with each frame in which the point is not seen, cells."""
_RENEWAL = 0.1
"""Share of the newest look in the second template."""
_FAR = 5.0
"""Larger forward-backward distances tell no more than this one, cells."""

VISIBILITY = (2.86, -0.16, -0.73)
"""Logistic coefficients of `Points.evidence`, the constant last, for whether a point is visible."""
CONFIDENCE = (4.87, -0.28, -4.21)
"""The same for whether it is visible and found to half a cell. Both come from rvm_training/calibrate_tracker.py."""


@dataclass(frozen=True)
class Points:
    """Every tracked point; entries i belong together."""

    ids: np.ndarray
    """uint64 (P,)."""
    starts: tuple[FrameKeys, ...]
    """The frame each was given in, the same object for those given in the same frame."""
    origin: Tensor
    """float32 (P, 2): where each was given."""
    shift: Tensor
    """float32 (P, 2): from where the search finds each in its first frame to where it was given."""
    first_look: Tensor
    """float32 (P, D), L2-normalised."""
    last_look: Tensor
    """float32 (P, D), L2-normalised."""
    xy: Tensor
    """float32 (P, 2): where each was seen last."""
    unseen: Tensor
    """float32 (P,): for how many frames each has not been seen."""
    evidence: Tensor
    """float32 (P, 2): how similar the best match is to the first look, 1 where equal and 0 where no more than the
    average cell is; how far from its origin it is found again in the first frame, cells."""

    @classmethod
    def none(cls) -> Points:
        """No points."""
        pairs, looks, numbers = torch.zeros(0, 2), torch.zeros(0, 0), torch.zeros(0)
        return cls(np.zeros(0, np.uint64), (), pairs, pairs, looks, looks, pairs, numbers, torch.zeros(0, 2))

    def joined(self, others: Points) -> Points:
        """These points and others."""
        if not len(self.ids) or not len(others.ids):
            return self if len(self.ids) else others
        return Points(
            np.concatenate([self.ids, others.ids]),
            self.starts + others.starts,
            *(torch.cat([getattr(self, name), getattr(others, name)]) for name in _TENSORS),
        )

    def without(self, ids: Collection[int]) -> Points:
        """The points with other ids."""
        kept = np.array([index for index, known in enumerate(self.ids.tolist()) if known not in ids], np.intp)
        index = torch.from_numpy(kept).to(self.xy.device)
        tensors = (getattr(self, name)[index] for name in _TENSORS)
        return Points(self.ids[kept], tuple(self.starts[i] for i in kept), *tensors)

    def tracks(self) -> PointTracks:
        """Where the points are in the newest frame."""
        seen = self.unseen == 0
        status = torch.where(seen, int(Status.VISIBLE), int(Status.OCCLUDED))
        return PointTracks(
            ids=self.ids,
            xy=self.xy.cpu().numpy(),
            status=status.to(torch.uint8).cpu().numpy(),
            confidence=_logistic(self.evidence, CONFIDENCE).cpu().numpy(),
        )


_TENSORS = tuple(field.name for field in fields(Points))[2:]
"""The fields that are tensors, in their order."""


class PointMatcher:
    """Finds points in the next frame. Holds no state."""

    def __init__(self, grid: tuple[int, int]) -> None:
        self._height, self._width = grid
        steps = torch.arange(-int(_REACH), int(_REACH) + 1)
        offsets = torch.cartesian_prod(steps, steps)
        self._offsets = offsets[offsets.square().sum(1) <= _REACH**2]
        """int64 (O, 2): columns and rows from a cell to those within reach of it."""

    def add(self, ids: Sequence[int], xy: np.ndarray, keys: FrameKeys) -> Points:
        """Points that are given at xy (P, 2) in the frame of `keys`."""
        origin = torch.as_tensor(xy, dtype=torch.float32, device=keys.exact.device).reshape(-1, 2)
        look = self._look(keys, origin)
        # As `step` searches: of places that look alike the nearest.
        found, _ = self._refine(_relative(look @ keys.exact.T), origin, torch.full_like(origin[:, 0], _STRAY))
        unseen = torch.zeros(len(origin), device=origin.device)
        starts = (keys,) * len(origin)
        evidence = torch.tensor([1.0, 0.0], device=origin.device).expand(len(origin), 2)
        return Points(np.array(ids, np.uint64), starts, origin, origin - found, look, look, origin, unseen, evidence)

    def step(self, points: Points, keys: FrameKeys) -> Points:
        """The points in the next frame."""
        if not len(points.ids):
            return points
        cells, mean = keys.exact, keys.exact.mean(0)
        first = _scaled(points.first_look, mean)
        # The mean of two similarities is one product with the mean of the templates.
        template = torch.lerp(first, _scaled(points.last_look, mean), 0.5)
        similarity = torch.addmm(-(template @ mean)[:, None], template, cells.T)
        found, best = self._refine(similarity, points.xy, _STRAY + _SPREAD * points.unseen)
        found = self._inside(found + points.shift)
        look = self._look(keys, found)
        likeness = (first * (cells[best[:, 0]] - mean)).sum(1)
        evidence = torch.stack([likeness, self._return_distance(points, look)], dim=1)
        seen = _logistic(evidence, VISIBILITY) >= 0.5
        renewed = F.normalize(torch.lerp(points.last_look, look, _RENEWAL), dim=-1)
        return replace(
            points,
            xy=torch.where(seen[:, None], found, points.xy),
            last_look=torch.where(seen[:, None], renewed, points.last_look),
            unseen=torch.where(seen, 0.0, points.unseen + 1),
            evidence=evidence,
        )

    def _return_distance(self, points: Points, look: Tensor) -> Tensor:
        """How far from its origin what was found is found again in the first frame, in cells, (P,)."""
        groups: dict[int, list[int]] = {}
        for index, start in enumerate(points.starts):
            groups.setdefault(id(start), []).append(index)
        order = torch.tensor([index for group in groups.values() for index in group], device=look.device)
        looks = look[order].split([len(group) for group in groups.values()])
        firsts = (points.starts[group[0]].exact for group in groups.values())
        similarity = torch.cat([part @ first.T for part, first in zip(looks, firsts, strict=True)])
        origin = points.origin[order]
        back, _ = self._refine(_relative(similarity), origin, None)
        distance = (back + points.shift[order] - origin).norm(dim=-1).clamp(max=_FAR)
        return torch.empty_like(distance).index_copy_(0, order, distance)

    def _refine(self, similarity: Tensor, around: Tensor, stray: Tensor | None) -> tuple[Tensor, Tensor]:
        """Position (P, 2) of the best match, by similarities (P, N), and its cell (P, 1).

        `stray` (P,): standard deviation, in cells, of the places to expect around `around` (P, 2); None: any place.
        """
        expected = similarity
        if stray is not None:
            expected = similarity - _SHARPNESS / 2 * self._square_distance(around).div_(stray.square()[:, None])
        best = expected.argmax(dim=1, keepdim=True)
        offsets = self._offsets = self._offsets.to(similarity.device)
        columns, rows = best % self._width + offsets[:, 0], best // self._width + offsets[:, 1]
        inside = (columns >= 0) & (columns < self._width) & (rows >= 0) & (rows < self._height)
        near = similarity.gather(1, torch.where(inside, rows * self._width + columns, 0))
        weight = (near / _SHARPNESS).masked_fill(~inside, -torch.inf)
        centres = torch.stack([columns, rows], dim=2) + 0.5
        xy = torch.cat([best % self._width, best // self._width], dim=1) + 0.5
        for _ in range(_SHIFTS):
            distance = (centres - xy[:, None]).square().sum(2)
            xy = ((weight - distance / (2 * _WINDOW**2)).softmax(dim=1)[:, :, None] * centres).sum(1)
        return xy, best

    def _square_distance(self, xy: Tensor) -> Tensor:
        """Of the centres of all cells from places (P, 2): (P, N)."""
        across = xy[:, :1] - torch.arange(0.5, self._width, device=xy.device)
        down = xy[:, 1:] - torch.arange(0.5, self._height, device=xy.device)
        return (down.square()[:, :, None] + across.square()[:, None]).flatten(1)

    def _look(self, keys: FrameKeys, xy: Tensor) -> Tensor:
        """Features (P, D) at xy (P, 2), between the centres of cells bilinear, L2-normalised."""
        place = (xy - 0.5).clamp(min=0)
        column, row = place[:, 0].clamp(max=self._width - 1), place[:, 1].clamp(max=self._height - 1)
        left, top = column.floor().long(), row.floor().long()
        right, bottom = (left + 1).clamp(max=self._width - 1), (top + 1).clamp(max=self._height - 1)
        across, down = column - left, row - top
        top, bottom = top * self._width, bottom * self._width
        corners = torch.stack([top + left, top + right, bottom + left, bottom + right], dim=1)
        upper = 1 - down
        shares = torch.stack([upper * (1 - across), upper * across, down * (1 - across), down * across], dim=1)
        return F.normalize(F.embedding_bag(corners, keys.exact, per_sample_weights=shares, mode="sum"), dim=-1)

    def _inside(self, xy: Tensor) -> Tensor:
        return torch.stack([xy[:, 0].clamp(0, self._width), xy[:, 1].clamp(0, self._height)], dim=1)


def _logistic(evidence: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    weights = torch.tensor(coefficients, device=evidence.device)
    return (evidence @ weights[:-1] + weights[-1]).sigmoid()


def _relative(similarity: Tensor) -> Tensor:
    """Similarities (P, N) on a scale on which a frame's mean is 0 and equality is 1, whatever all cells share."""
    mean = similarity.mean(dim=1, keepdim=True)
    return (similarity - mean) / (1 - mean).clamp(min=1e-6)


def _scaled(look: Tensor, mean: Tensor) -> Tensor:
    """Templates (P, D): their products with the cells of a frame less the `mean` (D,) are `_relative` similarities."""
    return look / (1 - look @ mean).clamp(min=1e-6)[:, None]
