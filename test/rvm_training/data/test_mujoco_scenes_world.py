"""Objects of MuJoCo's scenes: they fit their sizes, do not overlap and stay in the room."""

from __future__ import annotations

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco", reason="the extra `scenes` is not installed")

from rvm_training.data.mujoco_scenes_config import MujocoSceneConfig  # noqa: E402
from rvm_training.data.mujoco_scenes_world import SHAPES, Body, World, make_world, outline_points  # noqa: E402

CONFIG = MujocoSceneConfig(height=32, width=32, num_frames=24)
SUNK = 0.12
"""Contacts are soft: two bodies that hit each other overlap by some centimetres for a moment, metres."""


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    return [make_world(np.random.default_rng(seed), CONFIG) for seed in range(2)]


def test_all_shapes_occur_in_their_sizes(worlds: list[World]) -> None:
    bodies = [body for world in worlds for body in world.bodies]
    assert {body.shape for body in bodies} == set(SHAPES)
    for body in bodies:
        reach = np.linalg.norm(outline_points(body), axis=1).max()
        assert reach == pytest.approx(body.radius, rel=2e-3)
        assert CONFIG.object_radius[0] <= body.radius <= CONFIG.object_radius[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_are_the_shapes_of_mujoco(shape: str) -> None:
    """Rays from afar towards each point of the outline meet the shape there."""
    sizes = {"sphere": [0.5], "box": [0.3, 0.2, 0.4], "cylinder": [0.3, 0.4], "capsule": [0.2, 0.3]}
    size = np.array(sizes.get(shape, [0.5, 0.3, 0.2]))
    outline = outline_points(Body(shape, size, 0.5, False))
    model = mujoco.MjModel.from_xml_string(
        f"<mujoco><worldbody><geom type='{shape}' size='{' '.join(map(str, size))}'/></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    geom = np.empty(1, np.int32)
    for point in outline[:: max(len(outline) // 40, 1)]:
        # A little towards the axis, so that no ray only touches an edge.
        aim = point * (0.99, 0.99, 1)
        direction = -aim / np.linalg.norm(aim)
        distance = mujoco.mj_ray(model, data, aim - direction, direction, None, 1, -1, geom)
        assert distance == pytest.approx(1, abs=6e-3)


def test_objects_begin_apart_and_stay_in_the_room(worlds: list[World]) -> None:
    for world in worlds:
        data = mujoco.MjData(world.model)
        for positions in world.motion:
            data.qpos[:] = positions
            mujoco.mj_forward(world.model, data)
            assert all(contact.dist > -SUNK for contact in data.contact)
        places = world.motion.reshape(CONFIG.num_frames, -1, 7)[:, :, :3]
        assert (np.abs(places[..., :2]) < CONFIG.room_size).all()
        assert ((places[..., 2] > 0) & (places[..., 2] < CONFIG.room_size)).all()


def test_thrown_objects_fall_freely_until_they_hit(worlds: list[World]) -> None:
    """Second differences of the height are gravity times the square of the time between two frames."""
    for world in worlds:
        heights = world.motion.reshape(CONFIG.num_frames, -1, 7)[:3, :, 2]
        moving = np.array([body.moving for body in world.bodies])
        drops = np.diff(heights, 2, axis=0)[0, moving] * CONFIG.frame_rate**2
        assert np.median(drops) == pytest.approx(-9.81, rel=0.02)
