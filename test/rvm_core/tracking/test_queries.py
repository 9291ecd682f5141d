"""Queries that no tracker follows."""

import numpy as np
import pytest

from rvm_core.tracking.base import BoxQuery, MaskQuery, PointQuery, Query, QueryError
from rvm_core.tracking.queries import check_queries

ALL = (PointQuery, BoxQuery, MaskQuery)


def check(*queries: Query, kinds: tuple[type[Query], ...] = ALL, age: int = 0) -> None:
    check_queries(queries, kinds=kinds, grid=(3, 5), in_use=[7], age=age, remembered=4)


def box(x_min: float, y_min: float, x_max: float, y_max: float) -> BoxQuery:
    return BoxQuery(id=1, x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max)


def test_sound_queries_are_accepted() -> None:
    check(PointQuery(id=0, x=0, y=3), PointQuery(id=2**64 - 1, x=5, y=0), box(0, 0, 5, 3), age=3)
    check(MaskQuery(id=1, mask=np.eye(3, 5, dtype=np.float32)))
    check()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (PointQuery(id=7, x=1, y=1), "id 7 is in use"),
        (PointQuery(id=-1, x=1, y=1), "id -1 is not a number of 64 bits"),
        (PointQuery(id=2**64, x=1, y=1), "id 18446744073709551616 is not a number of 64 bits"),
        (PointQuery(id=1, x=5.1, y=1), r"point \(5.1, 1\) is outside of the grid of 5x3 cells"),
        (PointQuery(id=1, x=1, y=3.1), "outside of the grid"),
        (PointQuery(id=1, x=-0.1, y=1), "outside of the grid"),
        (PointQuery(id=1, x=float("nan"), y=1), "is not finite"),
        (box(1, 1, 1, 2), r"box \(1, 1, 1, 2\) is empty: expected x_min < x_max"),
        (box(1, 2, 2, 1), "is empty"),
        (box(1, 1, 2, float("inf")), "is not finite"),
        (box(1, 1, 6, 2), "outside of the grid"),
        (MaskQuery(id=1, mask=np.zeros((3, 5), np.float32)), "mask is empty"),
        (MaskQuery(id=1, mask=np.full((3, 5), np.nan, np.float32)), "not finite"),
        (MaskQuery(id=1, mask=np.ones((5, 3), np.float32)), r"a mask of 5x3 cells, got one of shape \(5, 3\)"),
    ],
)
def test_unsound_queries_are_refused(query: Query, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        check(query)


def test_kinds_and_ages_are_refused() -> None:
    with pytest.raises(QueryError, match="masks cannot be followed here, only points and boxes"):
        check(MaskQuery(id=1, mask=np.ones((3, 5), np.float32)), kinds=(PointQuery, BoxQuery))
    with pytest.raises(QueryError, match="4 frames ago is not remembered, only the newest 4 are"):
        check(PointQuery(id=1, x=1, y=1), age=4)
    with pytest.raises(QueryError, match="-1 frames ago"):
        check(PointQuery(id=1, x=1, y=1), age=-1)


def test_an_id_twice_is_refused() -> None:
    with pytest.raises(QueryError, match="id 3 is in use"):
        check(PointQuery(id=3, x=1, y=1), PointQuery(id=3, x=2, y=2))
