"""Clips that cost nothing, for tests of readouts: places are written into the picture, and features tell them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rvm_training.evaluation.benchmark import DatasetError
from rvm_training.readouts.clips import Clip, Truth, UInt8Array

FRAMES, SIZE, WIDTH = 6, 64, 8
GRID = (SIZE // 16, SIZE // 16)


@dataclass(frozen=True)
class DotClips:
    """Two coloured dots that move straight over black; the second is hidden in some frames."""

    count: int
    first: int = 0
    bad: tuple[int, ...] = ()
    """Clips that cannot be read."""
    name = "dots"

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"source": "dots", "first": self.first}

    def __len__(self) -> int:
        return self.count

    def clip(self, index: int) -> Clip:
        if index in self.bad:
            raise DatasetError(f"clip {index} is damaged")
        rng = np.random.default_rng(self.first + index)
        start, step = rng.uniform(0.25, 0.6, (2, 2)), rng.uniform(-0.03, 0.05, (2, 2))
        places = (start + np.arange(FRAMES)[:, None, None] * step).astype(np.float32)
        visible = np.ones((FRAMES, 2), bool)
        visible[2:4, 1] = False
        video = np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)
        for t, dot in zip(*np.nonzero(visible), strict=True):
            x, y = (places[t, dot] * SIZE).astype(int)
            video[t, max(0, y - 9) : y + 10, max(0, x - 9) : x + 10, dot] = 255
        return Clip(video=video, truth=_truth(places, visible))


def _truth(places: Any, visible: Any) -> Truth:
    half = np.float32(9.5 / SIZE)
    boxes = np.concatenate([places - half, places + half], axis=-1)
    truth = {"points.positions": places, "boxes.positions": boxes}
    for kind in ("points", "boxes"):
        truth |= {f"{kind}.visible": visible, f"{kind}.valid": np.ones_like(visible), f"{kind}.startable": visible}
    return truth


class CellEncoder:
    """Features of a cell: how much of each colour is in it, and its place. Counts what it encodes."""

    width = WIDTH

    def __init__(self, version: int = 1) -> None:
        self.version = version
        self.clips = 0

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"cells": self.version}

    def encode(self, videos: UInt8Array) -> Tensor:
        self.clips += len(videos)
        batch, frames = videos.shape[:2]
        rows, columns = GRID
        cells = torch.from_numpy(videos).float().div(255).reshape(batch, frames, rows, 16, columns, 16, 3)
        colours = cells.mean(dim=(3, 5)).flatten(2, 3)
        place = torch.stack(torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij"))
        places = place.flatten(1).T.expand(batch, frames, -1, -1)
        filled = torch.cat([4 * colours, places, places.roll(1, 2), torch.ones_like(places[..., :1])], dim=-1)
        return torch.cat([filled.mean(dim=2, keepdim=True), filled], dim=2)
