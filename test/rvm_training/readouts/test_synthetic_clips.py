"""Clips of synthetic scenes: their truth is the scenes', and motion, not looks, tells the class."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from rvm_training.data.scenes import SceneConfig, generate_scene
from rvm_training.readouts.motion_clips import CLASSES, MotionClips
from rvm_training.readouts.scene_clips import BORDER, MOST, SMALLEST, SceneClips

CONFIG = SceneConfig(height=64, width=96, num_frames=8, num_points=12, num_objects=3)
MOTION = MotionClips(height=96, width=96, frames=8, count=100, first_seed=5)


@pytest.fixture(scope="module")
def scene() -> Any:
    return generate_scene(CONFIG, 77)


@pytest.fixture(scope="module")
def truth() -> dict[str, Any]:
    return SceneClips(config=CONFIG, count=3, first_seed=75).clip(2).truth


def test_points_are_the_scenes(scene: Any, truth: dict[str, Any]) -> None:
    assert np.allclose(truth["points.positions"] * (96, 64), scene.points, atol=1e-4)
    assert np.array_equal(truth["points.visible"], scene.visible)
    begins = truth["points.positions"][truth["points.startable"]]
    assert begins.min() > BORDER and begins.max() < 1 - BORDER
    assert not (truth["points.startable"] & ~scene.visible).any()


def test_boxes_are_around_what_is_seen(scene: Any, truth: dict[str, Any]) -> None:
    visible = truth["boxes.visible"]
    assert np.array_equal(visible, scene.seen_share > 0)
    assert np.allclose((truth["boxes.positions"] * (96, 64, 96, 64))[visible], scene.boxes[visible], atol=1e-4)
    assert not truth["boxes.positions"][~visible].any()
    t, which = np.nonzero(truth["boxes.startable"])
    enough = np.minimum(MOST, scene.seen_share.max(axis=0))
    assert (scene.seen_share[t, which] >= enough[which]).all()
    sides = truth["boxes.positions"][..., 2:] - truth["boxes.positions"][..., :2]
    assert (sides[t, which].prod(axis=-1) > SMALLEST).all()


def test_clips_hide_things_and_differ(truth: dict[str, Any]) -> None:
    source = SceneClips(config=CONFIG, count=3)
    assert not truth["points.visible"].all()
    assert not np.array_equal(source.clip(0).video, source.clip(1).video)
    assert np.array_equal(source.clip(1).video, replace(source, first_seed=source.first_seed + 1).clip(0).video)


def test_every_class_comes_and_stays() -> None:
    labels = [int(MOTION.clip(index).truth["class.label"]) for index in range(40)]
    assert set(labels) == set(range(len(CLASSES)))
    assert labels == [int(MOTION.clip(index).truth["class.label"]) for index in range(40)]


def flow(clip: Any) -> Any:
    """Mean flow of what moves between two frames, with the places from the middle of what moves."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip.video[3:5]]
    flow = np.zeros((*grey[0].shape, 2), np.float32)
    field = cv2.calcOpticalFlowFarneback(*grey, flow, 0.5, 3, 11, 3, 5, 1.1, 0)
    return field[np.linalg.norm(field, axis=-1) > 0.5].mean(axis=0)


def test_things_move_as_their_class_says() -> None:
    ways = {0: (1, 0), 1: (-1, 0), 2: (0, 1), 3: (0, -1)}
    right = []
    for index in range(40):
        clip = MOTION.clip(index)
        label = int(clip.truth["class.label"])
        if label in ways:
            found = flow(clip)
            right.append(float(found @ ways[label]) > abs(float(found @ ways[label][::-1])))
    assert np.mean(right) > 0.8


def test_single_frames_do_not_tell_the_class() -> None:
    # Opposite ways seen backwards are each other: frame t of one is frame T - 1 - t of the other, but for the noise.
    clips = [MOTION.clip(index) for index in range(100)]
    for part in (0, 4, 7):
        means = [
            np.mean([clip.video[part].mean() for clip in clips if int(clip.truth["class.label"]) == label])
            for label in range(len(CLASSES))
        ]
        assert np.ptp(means) < 40


def test_a_clip_of_one_frame_has_no_motion() -> None:
    with pytest.raises(ValueError, match="2 frames or more"):
        replace(MOTION, frames=1)
