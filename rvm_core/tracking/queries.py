"""What every tracker asks of a query before it follows it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from rvm_core.tracking.base import BoxQuery, MaskQuery, PointQuery, Query, QueryError

_KIND_TEXT: dict[type[Query], str] = {PointQuery: "points", BoxQuery: "boxes", MaskQuery: "masks"}
_MAX_ID = 2**64 - 1


def check_queries(
    queries: Sequence[Query],
    *,
    kinds: Collection[type[Query]],
    grid: tuple[int, int],
    in_use: Collection[int],
    age: int,
    remembered: int,
) -> None:
    """Raises `QueryError` for the first query that cannot be followed, and for an age that is not remembered.

    kinds: what is followed; grid: (h, w) in cells; in_use: ids of the tracks there are.
    """
    if not 0 <= age < remembered:
        raise QueryError(f"the frame {age} frames ago is not remembered, only the newest {remembered} are")
    taken = set(in_use)
    for query in queries:
        if type(query) not in kinds:
            followed = " and ".join(_KIND_TEXT[kind] for kind in kinds)
            raise QueryError(f"{_KIND_TEXT[type(query)]} cannot be followed here, only {followed}")
        if not 0 <= query.id <= _MAX_ID:
            raise QueryError(f"id {query.id} is not a number of 64 bits without a sign")
        if query.id in taken:
            raise QueryError(f"id {query.id} is in use")
        taken.add(query.id)
        _check_place(query, grid)


def _check_place(query: Query, grid: tuple[int, int]) -> None:
    rows, columns = grid
    if isinstance(query, MaskQuery):
        if query.mask.shape != grid:
            raise QueryError(f"expected a mask of {columns}x{rows} cells, got one of shape {query.mask.shape}")
        if not np.isfinite(query.mask).all():
            raise QueryError("mask has values that are not finite")
        if not query.mask.any():
            raise QueryError("mask is empty")
        return
    if isinstance(query, PointQuery):
        text, places = "point", [query.x, query.y]
    else:
        text, places = "box", [query.x_min, query.y_min, query.x_max, query.y_max]
    text += f" ({', '.join(f'{place:g}' for place in places)})"
    if not np.isfinite(places).all():
        raise QueryError(f"{text} is not finite")
    xs, ys = places[0::2], places[1::2]
    if min(xs) < 0 or min(ys) < 0 or max(xs) > columns or max(ys) > rows:
        raise QueryError(f"{text} is outside of the grid of {columns}x{rows} cells")
    if isinstance(query, BoxQuery) and not (query.x_min < query.x_max and query.y_min < query.y_max):
        raise QueryError(f"{text} is empty: expected x_min < x_max and y_min < y_max")
