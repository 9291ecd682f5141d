"""Rays from the camera, compared with a sphere, a box and a plane worked out on paper."""

from __future__ import annotations

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco", reason="the extra `scenes` is not installed")

from rvm_training.data.mujoco_scenes_camera import camera_places, look_at, pixel_rays, project  # noqa: E402
from rvm_training.data.mujoco_scenes_geometry import SceneGeometry  # noqa: E402

MODEL = """
<mujoco>
  <worldbody>
    <camera name="camera"/>
    <geom type="plane" size="50 50 1"/>
    <geom type="sphere" size="90"/>
    <body pos="0 0 0"><freejoint/><geom type="sphere" size="0.5"/></body>
    <body pos="0 0 0"><freejoint/><geom type="box" size="0.5 0.25 0.1"/></body>
  </worldbody>
</mujoco>
"""
K = np.array([[120.0, 0, 80], [0, 120.0, 60], [0, 0, 1]])
CAMERA = look_at(np.array([[0.3, -4.0, 2.0]]), np.array([[0.1, 0.2, 0.4]]))
SPHERE, BOX = np.array([0.0, 0.0, 0.7]), np.array([1.2, -0.5, 1.0])
TOLERANCE = 1e-9
"""Metres: double precision."""


@pytest.fixture
def geometry() -> SceneGeometry:
    model = mujoco.MjModel.from_xml_string(MODEL)
    motion = np.concatenate([SPHERE, [1, 0, 0, 0], BOX, [1, 0, 0, 0]])[None]
    return SceneGeometry(model, motion, CAMERA, K)


def all_pixels() -> np.ndarray:
    ys, xs = np.mgrid[:120, :160] + 0.5
    return np.stack([xs.ravel(), ys.ravel()], axis=1)


def test_depth_of_a_sphere_and_a_plane(geometry: SceneGeometry) -> None:
    layers, depths, places = geometry.cast(0, all_pixels())
    eye = camera_places(CAMERA)[0]
    rays = pixel_rays(all_pixels(), CAMERA[0], K)
    # |eye + s ray - centre| = radius.
    a, b, c = (rays**2).sum(1), rays @ (eye - SPHERE), (eye - SPHERE) @ (eye - SPHERE) - 0.25
    root = b**2 - a * c
    on_sphere = layers == 1
    assert on_sphere.sum() > 200
    nearer_box = layers == 2
    assert ((root > 0) == on_sphere)[~nearer_box].all()
    expected = (-b - np.sqrt(np.maximum(root, 0))) / a
    np.testing.assert_allclose(depths[on_sphere], expected[on_sphere], atol=TOLERANCE)
    floor = (layers == 0) & (np.abs(places[:, 2]) < 1e-6)
    assert floor.sum() > 2000
    np.testing.assert_allclose(depths[floor], (-eye[2] / rays[:, 2])[floor], atol=1e-7)


def test_places_are_on_surfaces_and_project_back(geometry: SceneGeometry) -> None:
    layers, depths, places = geometry.cast(0, all_pixels())
    on_box = np.abs(places[layers == 2] - BOX) / (0.5, 0.25, 0.1)
    np.testing.assert_allclose(on_box.max(axis=1), 1, atol=1e-7)
    pixels, projected = project(places, CAMERA[0], K)
    np.testing.assert_allclose(pixels, all_pixels(), atol=1e-7)
    np.testing.assert_allclose(projected, depths, atol=1e-7)


def test_what_is_behind_something_is_hidden(geometry: SceneGeometry) -> None:
    eye = camera_places(CAMERA)[0]
    front = SPHERE + 0.5 * (eye - SPHERE) / np.linalg.norm(eye - SPHERE)
    back = 2 * SPHERE - front
    # In the shadow that the sphere would throw if the camera were a lamp.
    shadow = eye + (SPHERE - eye) * eye[2] / (eye[2] - SPHERE[2])
    clear = np.array([-1.5, 0.5, 0.0])
    places, layers = np.stack([front, back, shadow, clear, front]), np.array([1, 1, 0, 0, 2])
    assert geometry.sees(0, places, layers).tolist() == [True, False, False, True, False]


def test_projection_of_known_points() -> None:
    """A level camera at (0, -5, 1) that looks north: x is east, y is down."""
    camera = look_at(np.array([[0.0, -5.0, 1.0]]), np.array([[0.0, 3.0, 1.0]]))
    assert camera_places(camera)[0] == pytest.approx([0, -5, 1])
    world = np.array([[0, 0, 1], [1, 0, 1], [0, 0, 2], [0, 5, 0], [0, -6, 1], [0, -4.95, 1]], float)
    pixels, depths = project(world, camera[0], K)
    assert depths == pytest.approx([5, 5, 5, 10, -1, 0.05])
    np.testing.assert_allclose(pixels[:4], [[80, 60], [104, 60], [80, 36], [80, 72]], atol=TOLERANCE)
    # Behind the camera, or too near.
    assert np.isnan(pixels[4:]).all()


def test_poses_are_rotations(geometry: SceneGeometry) -> None:
    rotation = CAMERA[0, :, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=TOLERANCE)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_array_equal(geometry.layer_to_world[0, 0], np.eye(3, 4))
    np.testing.assert_allclose(geometry.layer_to_world[0, 1:, :, 3], [SPHERE, BOX])


def test_a_camera_outside_of_the_room_is_refused() -> None:
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><camera/><geom type='plane' size='1 1 1'/></worldbody></mujoco>"
    )
    geometry = SceneGeometry(model, np.zeros((1, 0)), CAMERA, K)
    with pytest.raises(ValueError, match="left it"):
        geometry.cast(0, all_pixels())
