"""Stand-ins for tests of tracking: queries without ROS, and a tracker whose tracks move as it was told."""

from __future__ import annotations

import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rvm_core.tracking.base import (
    BoxQuery,
    BoxTracks,
    MaskQuery,
    MaskTracks,
    PointQuery,
    PointTracks,
    Query,
    QueryError,
    Status,
    Tracks,
)

SPEED = 0.25
"""Columns to the right per frame, which every track of `ScriptedTracker` moves."""


def query_message(*, stamp_ns: int = 0, frame_id: str = "", **given: Any) -> Any:
    """What a TrackQueries message looks like to its reader; what is not given is empty, as in a new message."""
    stamp = SimpleNamespace(sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000)
    defaults: dict[str, Any] = {
        "header": SimpleNamespace(stamp=stamp, frame_id=frame_id),
        "camera": "",
        "request_id": "",
        "clear": False,
        "mask": mask_message(),
    }
    for name in ("remove", "point", "box", "mask"):
        defaults[f"{name}_ids"] = array.array("Q")
    for name in ("point_x", "point_y", "box_x_min", "box_y_min", "box_x_max", "box_y_max"):
        defaults[name] = array.array("f")
    defaults["mask_values"] = array.array("H")
    for name in ("point", "box", "mask"):
        defaults[f"{name}_labels"] = []
    unknown = given.keys() - defaults.keys()
    assert not unknown, unknown
    return SimpleNamespace(**{**defaults, **given})


def mask_message(labels: np.ndarray | None = None, *, big: bool = False, padding: int = 0) -> Any:
    """A label image (H, W) of uint8 or uint16 as the fields of a sensor_msgs/Image."""
    if labels is None:
        return SimpleNamespace(height=0, width=0, encoding="", is_bigendian=0, step=0, data=array.array("B"))
    rows = labels.astype(labels.dtype.newbyteorder(">" if big else "<")).view(np.uint8).reshape(len(labels), -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=255)
    return SimpleNamespace(
        height=labels.shape[0],
        width=labels.shape[1],
        encoding="mono8" if labels.dtype == np.uint8 else "mono16",
        is_bigendian=int(big),
        step=padded.shape[1],
        data=array.array("B", padded.tobytes()),
    )


def assert_identical(one: Any, other: Any) -> None:
    """That two values, of whatever dataclasses, containers, arrays and tensors, are the same to the last bit."""
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif is_dataclass(one):
        for part in fields(one):
            assert_identical(getattr(one, part.name), getattr(other, part.name))
    elif isinstance(one, Mapping):
        assert list(one) == list(other)
        assert_identical(tuple(one.values()), tuple(other.values()))
    elif isinstance(one, (tuple, list)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_identical(left, right)
    else:
        assert one == other


@dataclass(frozen=True, kw_only=True)
class ScriptedState:
    """Frames seen, and each query with the number of the frame that it was added at."""

    frames: int = 0
    tracks: tuple[tuple[Query, int], ...] = ()


@dataclass(kw_only=True)
class ScriptedTracker:
    """A tracker that does not look: every track moves right by `SPEED`. It refuses and fails as it is told."""

    grid: tuple[int, int] = (4, 8)
    memory: int = 4
    refused: set[int] = field(default_factory=set)
    """Ids that `add` refuses."""
    breaks: bool = False
    """Whether every call raises."""
    not_finite: bool = False
    name: str = "scripted"
    added: list[tuple[int, ...]] = field(default_factory=list)
    """Ids of each call of `add` that went well."""

    def init_state(self) -> ScriptedState:
        return ScriptedState()

    def remembered(self, state: ScriptedState) -> int:
        return min(self.memory, state.frames)

    def add(self, queries: Sequence[Query], state: ScriptedState, *, age: int = 0) -> ScriptedState:
        self._check()
        for query in queries:
            if query.id in self.refused:
                raise QueryError(f"the tracker does not want {query.id}")
        if age >= self.remembered(state):
            raise QueryError(f"{age} frames ago is not remembered")
        self.added.append(tuple(query.id for query in queries))
        return replace(state, tracks=(*state.tracks, *((query, state.frames - age) for query in queries)))

    def remove(self, ids: Collection[int], state: ScriptedState) -> ScriptedState:
        self._check()
        return replace(state, tracks=tuple(track for track in state.tracks if track[0].id not in ids))

    def step(self, tokens: Tensor, state: ScriptedState) -> tuple[Tracks, ScriptedState]:
        self._check()
        state = replace(state, frames=state.frames + 1)
        return self._tracks(state), state

    def _check(self) -> None:
        if self.breaks:
            raise RuntimeError("the tracker is broken")

    def _tracks(self, state: ScriptedState) -> Tracks:
        moved = [(query, SPEED * (state.frames - start)) for query, start in state.tracks]
        points = [(q.id, q.x + by, q.y) for q, by in moved if isinstance(q, PointQuery)]
        boxes = [(q.id, q.x_min + by, q.y_min, q.x_max + by, q.y_max) for q, by in moved if isinstance(q, BoxQuery)]
        masks = [q for q, _ in moved if isinstance(q, MaskQuery)]
        xy = np.array([point[1:] for point in points], np.float32).reshape(-1, 2)
        if self.not_finite:
            xy = xy + np.float32(np.nan)
        return Tracks(
            points=PointTracks(ids=_ids(p[0] for p in points), xy=xy, **_seen(len(points))),
            boxes=BoxTracks(
                ids=_ids(b[0] for b in boxes),
                xyxy=np.array([box[1:] for box in boxes], np.float32).reshape(-1, 4),
                **_seen(len(boxes)),
            ),
            masks=MaskTracks(
                ids=_ids(q.id for q in masks),
                soft=np.array([q.mask for q in masks], np.float32).reshape(-1, *self.grid),
                **_seen(len(masks)),
            ),
        )


def _ids(ids: Any) -> np.ndarray:
    return np.array(list(ids), np.uint64)


def _seen(count: int) -> dict[str, np.ndarray]:
    return {"status": np.full(count, Status.VISIBLE, np.uint8), "confidence": np.full(count, 0.75, np.float32)}
