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
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_SCREEN_FROM = 1 << 22
"""Products N * M from which screening pays; below, float32 is as fast."""
_SPARE = 25
"""Candidates of the screening beyond k: the copies of a place in all frames of a still video, and some."""
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
    centred: Tensor
    """bfloat16 (N, D): keys without their mean."""
    norm: Tensor
    """float32 (N,): length of each centred key before it was rounded."""
    error: Tensor
    """float32 (N,): by how much rounding moved it."""

    @classmethod
    def of(cls, keys: Tensor) -> Coarse:
        mean = keys.mean(0)
        centred = keys - mean
        rounded = centred.bfloat16()
        return cls(mean, rounded, centred.norm(dim=-1), (centred - rounded.float()).norm(dim=-1))


@dataclass(frozen=True)
class FrameKeys:
    """The features of one frame, ready to be compared."""

    exact: Tensor
    """float32 (N, D), L2-normalised."""
    coarse: Coarse | None
    """None where the screening does not pay."""

    @classmethod
    def of(cls, features: Tensor, *, screen: bool | None = None) -> FrameKeys:
        """Keys of features (N, D). `screen`: find candidates in bfloat16; None: where the device is fast at that."""
        exact = F.normalize(features.float(), dim=-1)
        screen = has_fast_bfloat16(exact.device.type) if screen is None else screen
        return cls(exact, Coarse.of(exact) if screen else None)


@cache
def has_fast_bfloat16(device: str) -> bool:
    """Whether products in bfloat16 are clearly faster than in float32 on a kind of device."""
    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


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
        workspace: Workspace | None = None,
    ) -> None:
        """`frames` are best given newest first: the search is faster if good matches come early.

        `near`, bool (N, N): which cells of every context frame each cell may be matched with; None: all.

        With a `workspace` the context is good until the next one is made in it.
        """
        self._query = query
        self._frames = tuple(frames)
        self._near = near
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
            for block in blocks:
                block.masked_fill_(~near, -torch.inf)

    def best(self, k: int, *, newest: int | None = None) -> Matches:
        """The best matches in the `newest` context frames, the first ones given; None: in all."""
        frames = self._frames[:newest]
        scores = self._scores[:, : len(frames) * self._cells]
        k = min(k, scores.shape[1])
        if not self._screened:
            return Matches(*scores.topk(k))
        found = scores.topk(min(k + _SPARE, scores.shape[1]))
        coarse = found.values.float()
        margin = self._margin(frames)
        # A cell whose score, even if it was rounded down, is below the k-th best, even if that was rounded up, is out.
        possible = _rounded_up(coarse) + margin >= _rounded_down(coarse[:, k - 1 : k]) - margin
        possible &= coarse.isfinite()
        best = self._rescore(found.indices, possible, frames).topk(k)
        matches = Matches(best.values, found.indices.gather(1, best.indices))
        if found.values.shape[1] < scores.shape[1]:
            last = coarse[:, -1:]
            missed = (_rounded_up(last) + margin + self._row_offset > matches.score[:, -1:]) & last.isfinite()
            self._complete(matches, missed.nonzero()[:, 0], frames)
        return matches

    def _screen(self, blocks: Sequence[Tensor]) -> None:
        query = self._query.coarse
        assert query is not None
        rows = torch.stack([self._query.exact @ frame.coarse.mean for frame in self._frames if frame.coarse])
        self._row_offset = rows.amax(0)[:, None]
        """float32 (N, 1): left out of all scores of a row, so that those that count are small and rounded finely."""
        ones = torch.ones_like(query.centred[:, :2])
        for row, frame, block in zip(rows - rows.amax(0), self._frames, blocks, strict=True):
            assert frame.coarse is not None
            column = (frame.exact - frame.coarse.mean) @ query.mean
            queries = torch.cat([query.centred, ones, _in_two(row)], dim=1)
            torch.mm(queries, torch.cat([frame.coarse.centred, _in_two(column), ones], dim=1).T, out=block)

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
        keys = torch.cat([f.exact.index_select(0, c) for f, c in zip(frames, cells.split(parts), strict=True)])
        products = torch.bmm(keys[:, None], self._query.exact.index_select(0, rows)[:, :, None])
        scores[rows, places] = products[:, 0, 0]
        return scores

    def _complete(self, matches: Matches, rows: Tensor, frames: Sequence[FrameKeys]) -> None:
        if not len(rows):
            return
        scores = torch.cat([self._query.exact[rows] @ frame.exact.T for frame in frames], dim=1)
        if self._near is not None:
            scores.masked_fill_(~self._near[rows].repeat(1, len(frames)), -torch.inf)
        matches.score[rows], matches.cell[rows] = scores.topk(matches.score.shape[1])


def _rounded_up(score: Tensor) -> Tensor:
    """The largest number that is rounded to this one in bfloat16; -inf stays."""
    return score * (1 + score.sign() * _ROUNDING * (1 + 2 * _ROUNDING))


def _rounded_down(score: Tensor) -> Tensor:
    return -_rounded_up(-score)


def _in_two(values: Tensor) -> Tensor:
    """float32 (N,) as the sum of two bfloat16 (N, 2)."""
    high = values.bfloat16()
    return torch.stack([high, (values - high.float()).bfloat16()], dim=1)
