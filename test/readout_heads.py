"""Tiny heads that say what they are told to, and a tracker that knows how everything moves, for tests of benchmarks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from readout_folders import SPEED
from rvm_core.readout_checkpoint import Readout, save_readout
from rvm_core.tracking.base import BoxQuery, BoxTracks, PointQuery, PointTracks, Query, Status, Tracks
from rvm_training.converters.tapvid import convert_tapvid

WIDTH = 64
"""Of the tiny model's features."""
SMALL: dict[str, Any] = {"features": WIDTH, "channels": 8, "num_heads": 2}
TRACKS: dict[str, Any] = SMALL | {"fourier_bases": 2, "query_hidden": 8, "query_width": 8}


def head_file(path: Path, head: Readout, *, output: Sequence[float] | None = None) -> Path:
    """Saves a head; `output`: what it is to say, whatever it sees."""
    if output is not None:
        for module in head.modules():
            if hasattr(module, "output"):
                with torch.no_grad():
                    module.output.weight.zero_()
                    module.output.bias.copy_(torch.tensor(output))
    save_readout(head, path)
    return path


def converted(folder: Path, source: Path, name: str | None = None) -> Path:
    convert_tapvid(source, folder, name, lambda text, done, total: None)
    return folder


class CountingEncoder:
    """Features that hold nothing but how far the picture has moved, which `MovingTracker` needs."""

    name, random, width = "counting", True, 1

    def identity(self, image_size: tuple[int, int]) -> dict[str, Any]:
        return {}

    def encode(self, frames: Iterable[np.ndarray], image_size: tuple[int, int], **options: Any) -> Iterator[Tensor]:
        for frame in frames:
            yield torch.full((1, 1), float(frame[0, 0, 0]))


class MovingTracker:
    """Knows that everything moves by `SPEED` of 16 columns for each number that the picture tells, in either way."""

    name = "moving"
    grid = (16, 16)

    def init_state(self) -> tuple[float, tuple[tuple[Query, float], ...]]:
        return 0.0, ()

    def remembered(self, state: Any) -> int:
        return 1

    def add(self, queries: Sequence[Query], state: Any, *, age: int = 0) -> Any:
        return state[0], state[1] + tuple((query, state[0]) for query in queries)

    def remove(self, ids: Collection[int], state: Any) -> Any:
        return state

    def step(self, tokens: Tensor, state: Any) -> tuple[Tracks, Any]:
        now, asked = float(tokens[0, 0]), state[1]
        status = {"ids": np.array([query.id for query, _ in asked], np.uint64)}
        status |= {"status": np.full(len(asked), Status.VISIBLE, np.uint8)}
        status |= {"confidence": np.ones(len(asked), np.float32)}
        moved = [(query, (now - start) * SPEED * 16) for query, start in asked]
        if any(isinstance(query, BoxQuery) for query, _ in moved):
            corners = [(q.x_min + x, q.y_min, q.x_max + x, q.y_max) for q, x in moved if isinstance(q, BoxQuery)]
            return Tracks(boxes=BoxTracks(xyxy=np.array(corners, np.float32), **status)), (now, asked)
        places = [(q.x + x, q.y) for q, x in moved if isinstance(q, PointQuery)]
        return Tracks(points=PointTracks(xy=np.array(places, np.float32).reshape(-1, 2), **status)), (now, asked)
