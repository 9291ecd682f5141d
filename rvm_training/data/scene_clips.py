"""Clips of synthetic scenes to pretrain on: one scene a seed, each with its own number of objects and their speed."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from rvm_training.data.scenes import SceneConfig, generate_scene

UInt8Array = npt.NDArray[np.uint8]

FIRST_SEED = 1_000_000
"""Scenes for evaluation and calibration have smaller seeds."""


def scene_video(kind: Literal["scenes", "mujoco"], seed: int, *, size: int, num_frames: int) -> UInt8Array:
    """The frames (T, size, size, 3) of the scene of a seed, RGB."""
    if kind == "mujoco":
        from rvm_training.data.mujoco_scenes import MujocoSceneConfig, generate_mujoco_scene

        config = MujocoSceneConfig(height=size, width=size, num_frames=num_frames, num_points=0)
        return np.asarray(generate_mujoco_scene(config, seed).video, np.uint8)
    return generate_scene(scene_config(seed, size=size, num_frames=num_frames), seed).video


def scene_config(seed: int, *, size: int, num_frames: int) -> SceneConfig:
    """What the scene of a seed looks like."""
    random = np.random.default_rng([seed, 0xC11B5])
    return SceneConfig(
        height=size,
        width=size,
        num_frames=num_frames,
        num_objects=int(random.integers(2, 9)),
        num_points=0,
        object_size=float(random.uniform(0.08, 0.24)),
        speed=float(random.uniform(0.004, 0.022)),
        background_speed=float(random.uniform(0.0, 0.01)),
        rotation=float(random.uniform(0.0, 0.06)),
        zoom=float(random.uniform(0.0, 0.4)),
        light=float(random.uniform(0.0, 0.4)),
        noise=float(random.uniform(0.0, 4.0)),
        shared_colours=float(random.uniform(0.0, 0.6)),
    )
