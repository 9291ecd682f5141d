"""The best matches of a frame's cells among those of other frames: the costly part of label propagation.

Shapes: N cells of a frame, D width, M cells of all context frames together, k matches.

Similarity is the dot product of L2-normalised features. Where the processor multiplies bfloat16 faster than float32,
candidates are found in bfloat16 and scored in float32; a bound on the rounding error proves for each cell that no match
was missed, and the cells without a proof are computed in float32 throughout. So the result is that of float32.

Features of one frame have much in common, and so do those of a video. What is common decides nothing but costs digits:
with the mean u of the query frame and v of a context frame, q.c = (q - u).(c - v) + u.(c - v) + q.v, and only the first
term is rounded. The others, a number for each column and one for each row, enter the product as two more columns each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_SCREEN_FROM = 1 << 22
"""Products N * M from which screening pays; below, float32 is as fast."""
_SPARE = 25
"""Candidates of the screening beyond k: the copies of a place in all frames of a still video, and some."""
_GROUP = 8
"""Columns whose maximum is looked at before themselves."""
_ROUNDING = 2.0**-8
"""Largest relative error of a number rounded to bfloat16, which has eight binary digits."""
_FLOAT32_ERROR = 2e-5
"""Of float32 sums over some thousand products of unit vectors, and of what two bfloat16 leave of a float32."""


class Matches(NamedTuple):
    """The k best matches of each cell, best first."""

    score: Tensor
    """float32 (N, k): similarities; -inf where fewer than k cells may be matched."""
    cell: Tensor
    """int64 (N, k): among the M cells of the context, frame after frame."""


@dataclass(frozen=True)
class Coarse:
    """What of a frame's keys is multiplied in bfloat16."""

    mean: Tensor
    """float32 (D,)."""
    factors: Tensor
    """bfloat16 (N, D + 4): keys without their mean, two columns that each `Context` writes anew, and two of ones."""
    norm: Tensor
    """float32 (N,): length of each centred key before it was rounded."""
    error: Tensor
    """float32 (N,): by how much rounding moved it."""

    @classmethod
    def of(cls, keys: Tensor) -> Coarse:
        mean = keys.mean(0)
        centred = keys - mean
        rounded = centred.bfloat16()
        factors = torch.cat([rounded, rounded.new_ones(len(rounded), 4)], dim=1)
        return cls(mean, factors, centred.norm(dim=-1), (centred - rounded.float()).norm(dim=-1))


@dataclass(frozen=True)
class FrameKeys:
    """The features of one frame, ready to be compared."""

    exact: Tensor
    """float32 (N, D), L2-normalised."""
    screen: bool
    """Whether candidates are found in bfloat16."""

    @cached_property
    def coarse(self) -> Coarse | None:
        """None where the screening does not pay. Made when first asked for: without tracks no frames are compared."""
        return Coarse.of(self.exact) if self.screen else None

    @classmethod
    def of(cls, features: Tensor, *, screen: bool | None = None) -> FrameKeys:
        """Keys of features (N, D). `screen`: find candidates in bfloat16; None: where the device is fast at that."""
        exact = F.normalize(features.float(), dim=-1)
        screen = has_fast_bfloat16(exact.device.type) if screen is None else screen
        return cls(exact, screen)


@cache
def has_fast_bfloat16(device: str) -> bool:
    """Whether a kind of device multiplies bfloat16 clearly faster than float32, and adds the products up in float32.

    CUDA may add them up in bfloat16, so that the bound on the error would not hold.
    """
    return device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class Workspace:
    """Memory for the products of one step, kept from step to step because fresh memory costs more than a product."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def matrix(self, rows: int, columns: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """An uninitialised matrix on the device of `like`; the one given before is overwritten."""
        memory = self._memory
        if memory.numel() < rows * columns or memory.dtype != dtype or memory.device != like.device:
            self._memory = memory = torch.empty(rows * columns, dtype=dtype, device=like.device)
        return memory[: rows * columns].view(rows, columns)


class Context:
    """Similarities of one frame's cells with those of context frames. Each product is computed once."""

    def __init__(
        self,
        query: FrameKeys,
        frames: Sequence[FrameKeys],
        *,
        near: Tensor | None = None,
        anchors: Sequence[FrameKeys] = (),
        workspace: Workspace | None = None,
    ) -> None:
        """`frames` are best given newest first: the search is faster if good matches come early.

        `near`, bool (N, N): which cells of each of them each cell may be matched with; None: all. The `anchors` are
        further frames, after the others, of which all cells may be matched.

        With a `workspace` the context is good until the next one is made in it.
        """
        self._query = query
        self._frames = (*frames, *anchors)
        self._near = near
        self._limited = len(frames)
        self._cells = query.exact.shape[0]
        columns = self._cells * len(self._frames)
        self._screened = self._cells * columns >= _SCREEN_FROM and all(
            keys.coarse is not None for keys in (query, *self._frames)
        )
        dtype = torch.bfloat16 if self._screened else torch.float32
        self._scores = (workspace or Workspace()).matrix(self._cells, columns, query.exact, dtype)
        blocks = self._scores.split(self._cells, dim=1)
        if self._screened:
            self._screen(blocks)
        else:
            for frame, block in zip(self._frames, blocks, strict=True):
                torch.mm(query.exact, frame.exact.T, out=block)
        if near is not None:
            for block in blocks[: self._limited]:
                block.masked_fill_(~near, -torch.inf)

    def best(self, k: int, *, newest: int | None = None) -> Matches:
        """The best matches in the `newest` context frames, the first ones given; None: in all, anchors too."""
        return self._best(k, slice(0, newest))

    def best_in_anchor(self, k: int, number: int) -> Matches:
        """The best matches in one of the anchors."""
        place = self._limited + number
        return self._best(k, slice(place, place + 1))

    def _best(self, k: int, which: slice) -> Matches:
        frames = self._frames[which]
        first = which.start * self._cells
        scores = self._scores[:, first : first + len(frames) * self._cells]
        k = min(k, scores.shape[1])
        if not self._screened:
            return Matches(*scores.topk(k))
        values, cells = _top(scores, min(k + _SPARE, scores.shape[1]))
        coarse = values.float()
        margin = self._margin(frames)
        # A cell whose score, even if it was rounded down, is below the k-th best, even if that was rounded up, is out.
        possible = _rounded_up(coarse) + margin >= _rounded_down(coarse[:, k - 1 : k]) - margin
        possible &= coarse.isfinite()
        best = self._rescore(cells, possible, frames).topk(k)
        matches = Matches(best.values, cells.gather(1, best.indices))
        if cells.shape[1] < scores.shape[1]:
            last = coarse[:, -1:]
            missed = (_rounded_up(last) + margin + self._row_offset > matches.score[:, -1:]) & last.isfinite()
            self._complete(matches, missed.nonzero()[:, 0], which)
        return matches

    def _screen(self, blocks: Sequence[Tensor]) -> None:
        query = self._query.coarse
        assert query is not None
        means = torch.stack([frame.coarse.mean for frame in self._frames if frame.coarse])
        rows = means @ self._query.exact.T
        self._row_offset = rows.amax(0)[:, None]
        """float32 (N, 1): left out of all scores of a row, so that those that count are small and rounded finely."""
        queries = query.factors.clone()
        queries[:, -4:-2] = 1
        for row, frame, block in zip(rows - rows.amax(0), self._frames, blocks, strict=True):
            assert frame.coarse is not None
            column = frame.exact @ query.mean - frame.coarse.mean @ query.mean
            queries[:, -2:] = _in_two(row)
            frame.coarse.factors[:, -4:-2] = _in_two(column)
            torch.mm(queries, frame.coarse.factors.T, out=block)

    def _margin(self, frames: Sequence[FrameKeys]) -> Tensor:
        """float32 (N, 1): by how much the product of rounded vectors may differ from that of the vectors, at most."""
        query = self._query.coarse
        assert query is not None
        norm = torch.stack([frame.coarse.norm.max() for frame in frames if frame.coarse]).max()
        error = torch.stack([frame.coarse.error.max() for frame in frames if frame.coarse]).max()
        return (query.error * norm + (query.norm + query.error) * error + _FLOAT32_ERROR)[:, None]

    def _rescore(self, index: Tensor, chosen: Tensor, frames: Sequence[FrameKeys]) -> Tensor:
        """Similarities in float32, (N, m), of the cells `index` (N, m) that are `chosen`; -inf for the others."""
        scores = torch.full(index.shape, -torch.inf, device=index.device)
        rows, places = chosen.nonzero(as_tuple=True)
        cells = index[rows, places]
        # One frame at a time, as putting all frames into one tensor costs more than the products.
        order = cells.argsort()
        parts = torch.bincount(cells // self._cells, minlength=len(frames)).tolist()
        rows, places, cells = rows[order], places[order], cells[order] % self._cells
        products = [
            torch.bmm(frame.exact.index_select(0, part)[:, None], self._query.exact.index_select(0, of)[:, :, None])
            for frame, part, of in zip(frames, cells.split(parts), rows.split(parts), strict=True)
        ]
        scores[rows, places] = torch.cat(products)[:, 0, 0]
        return scores

    def _complete(self, matches: Matches, rows: Tensor, which: slice) -> None:
        if not len(rows):
            return
        places = range(len(self._frames))[which]
        scores = [self._query.exact[rows] @ self._frames[place].exact.T for place in places]
        if self._near is not None:
            for place, block in zip(places, scores, strict=True):
                if place < self._limited:
                    block.masked_fill_(~self._near[rows], -torch.inf)
        matches.score[rows], matches.cell[rows] = torch.cat(scores, dim=1).topk(matches.score.shape[1])


def _top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row of (N, M) and their columns, as topk gives them but in less time.

    The largest values are in the groups of columns with the largest maxima, as many groups as values.
    """
    groups = scores.shape[1] // _GROUP
    if groups <= count:
        top = scores.topk(count)
        return top.values, top.indices
    whole = groups * _GROUP
    grouped = scores[:, :whole].unflatten(1, (_GROUP, groups))
    chosen = grouped.amax(1).topk(count).indices[:, None].expand(-1, _GROUP, -1)
    first = torch.arange(0, whole, groups, device=scores.device)
    columns = (chosen + first[:, None]).flatten(1)
    rest = torch.arange(whole, scores.shape[1], device=scores.device).expand(len(scores), -1)
    values = torch.cat([grouped.gather(2, chosen).flatten(1), scores[:, whole:]], dim=1)
    top = values.topk(count)
    return top.values, torch.cat([columns, rest], dim=1).gather(1, top.indices)


def _rounded_up(score: Tensor) -> Tensor:
    """The largest number that is rounded to this one in bfloat16; -inf stays."""
    return score * (1 + score.sign() * _ROUNDING * (1 + 2 * _ROUNDING))


def _rounded_down(score: Tensor) -> Tensor:
    return -_rounded_up(-score)


def _in_two(values: Tensor) -> Tensor:
    """float32 (N,) as the sum of two bfloat16 (N, 2)."""
    high = values.bfloat16()
    return torch.stack([high, (values - high.float()).bfloat16()], dim=1)
