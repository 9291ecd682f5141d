"""Clips of points and boxes from synthetic scenes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rvm_training.data.ground_truth import GroundTruth
from rvm_training.data.scenes import SceneConfig, generate_scene
from rvm_training.readouts.clips import Clip, Truth

TRAINING_SEED = 1_000_000
"""Of the first scene. Those of the evaluation (`rvm eval synthetic`) are far below."""
HELD_OUT_SEED = 2_000_000
BORDER = 0.02
"""Queries of points begin so far from the image's border, in shares: nearer, the next frame has often lost them."""
MOST = 0.5
"""Share of an object that a frame must show for its box to be asked for there; as far as any frame shows so much."""
SMALLEST = 0.002
"""Share of the image that a box must cover to be asked for."""


@dataclass(frozen=True, kw_only=True)
class SceneClips:
    """A `ClipSource` of flat shapes that move over each other (`rvm_training.data.scenes`)."""

    config: SceneConfig
    count: int
    first_seed: int = TRAINING_SEED

    @property
    def name(self) -> str:
        """See `ClipSource.name`."""
        return "synthetic scenes"

    @property
    def identity(self) -> Mapping[str, Any]:
        """See `ClipSource.identity`."""
        return {"source": "scenes", "config": asdict(self.config), "seed": self.first_seed}

    def __len__(self) -> int:
        return self.count

    def clip(self, index: int) -> Clip:
        """See `ClipSource.clip`."""
        scene = generate_scene(self.config, self.first_seed + index)
        return Clip(video=scene.video, truth=track_truth(scene))


def track_truth(scene: GroundTruth) -> Truth:
    """Of points and boxes, by the names of `readouts.clips`."""
    parts = {"points": point_truth(scene), "boxes": box_truth(scene)}
    return {f"{kind}.{name}": values for kind, truth in parts.items() for name, values in truth.items()}


def point_truth(scene: GroundTruth) -> Truth:
    """Of the scene's points."""
    height, width = scene.video.shape[1:3]
    # A point behind the camera is nowhere.
    positions = np.nan_to_num(scene.points / np.array([width, height], np.float32))
    inner = np.all((positions > BORDER) & (positions < 1 - BORDER), axis=-1)
    return {
        "positions": positions.astype(np.float32),
        "visible": scene.visible,
        "valid": np.ones_like(scene.visible),
        "startable": scene.visible & inner,
    }


def box_truth(scene: GroundTruth) -> Truth:
    """Of the boxes around what is seen of the scene's objects."""
    height, width = scene.video.shape[1:3]
    boxes = scene.boxes / np.array([width, height, width, height], np.float32)
    visible = np.asarray(np.isfinite(boxes).all(axis=-1), bool)
    boxes = np.where(visible[..., None], boxes, 0).astype(np.float32)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)
    enough = np.minimum(MOST, scene.seen_share.max(axis=0, keepdims=True))
    return {
        "positions": boxes,
        "visible": visible,
        "valid": np.ones_like(visible),
        "startable": visible & (areas > SMALLEST) & (scene.seen_share >= enough),
    }
