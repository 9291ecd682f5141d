"""Clips of points, boxes, depth and poses from scenes that MuJoCo simulates and draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rvm_training.data.mujoco_scenes import MujocoScene, generate_mujoco_scene
from rvm_training.data.mujoco_scenes_config import MujocoSceneConfig
from rvm_training.datasets.realestate import relative_pose
from rvm_training.readouts.clips import Clip, Task, Truth
from rvm_training.readouts.scene_clips import TRAINING_SEED, track_truth


@dataclass(frozen=True, kw_only=True)
class MujocoClips:
    """A `ClipSource` of rooms with things in them (`rvm_training.data.mujoco_scenes`)."""

    config: MujocoSceneConfig
    task: Task
    """Depth is known for this task only, as it takes much room."""
    count: int
    first_seed: int = TRAINING_SEED

    @property
    def name(self) -> str:
        """See `ClipSource.name`."""
        return "MuJoCo scenes"

    @property
    def identity(self) -> Mapping[str, Any]:
        """See `ClipSource.identity`."""
        kind = "depth" if self.task == "depth" else "tracks and poses"
        return {"source": "mujoco", "truth": kind, "config": asdict(self.config), "seed": self.first_seed}

    def __len__(self) -> int:
        return self.count

    def clip(self, index: int) -> Clip:
        """See `ClipSource.clip`. Raises what `generate_mujoco_scene` raises."""
        scene = generate_mujoco_scene(self.config, self.first_seed + index)
        if self.task == "depth":
            return Clip(video=scene.video, truth={"depth.metres": scene.depth.astype(np.float32)})
        return Clip(video=scene.video, truth=_padded(track_truth(scene), self.config) | _pose(scene))


def _padded(truth: Truth, config: MujocoSceneConfig) -> Truth:
    """Boxes of as many objects as a scene can have; those that there are not begin nowhere and do not count."""
    most = config.static_objects[1] + config.moving_objects[1]
    return {
        name: np.pad(values, [(0, 0), (0, most - values.shape[1])] + [(0, 0)] * (values.ndim - 2))
        if name.startswith("boxes.")
        else values
        for name, values in truth.items()
    }


def _pose(scene: MujocoScene) -> Truth:
    rotation, translation = relative_pose(scene.world_to_camera[0], scene.world_to_camera[-1])
    return {"pose.rotation": rotation.astype(np.float32), "pose.translation": translation.astype(np.float32)}
