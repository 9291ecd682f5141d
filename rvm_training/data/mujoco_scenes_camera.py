"""A pinhole camera: its way through a scene, and what it makes of points.

T frames. World: metres, z up. Camera: metres, x right, y down, z forward. Pixel coordinates are (x, y): right, down,
pixel centres at .5.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rvm_training.data.mujoco_scenes_config import MujocoSceneConfig

NEAREST = 0.1
"""Nearer things are not drawn, and points nearer than that along the camera's axis are not projected; metres."""
_LOWEST = 0.7
"""Height of the camera over the floor at least, metres."""
_CLEARANCE = 0.6
"""Distance of the camera from any object at least, metres, where there is such a way."""
_MAX_ROUNDS = 100

Float64Array = npt.NDArray[np.float64]


def make_intrinsics(config: MujocoSceneConfig) -> Float64Array:
    """(3, 3): pixels from points of the camera, (x, y, 1) * depth = K @ point. Pixels are square."""
    focal = config.width / 2 / np.tan(np.deg2rad(config.field_of_view) / 2)
    return np.array([[focal, 0, config.width / 2], [0, focal, config.height / 2], [0, 0, 1]])


def make_camera_path(
    rng: np.random.Generator, config: MujocoSceneConfig, centres: Float64Array, radii: Float64Array
) -> Float64Array:
    """[R | t] (T, 3, 4) from the world to the camera.

    The camera and the place it looks at move straight and evenly. centres: (T, O, 3), radii: (O,) of the spheres around
    objects; of random ways the first that keeps clear of all of them is taken, and the clearest if none does.
    """
    best, best_clearance = np.empty((0, 3, 4)), -np.inf
    for _ in range(_MAX_ROUNDS):
        places, targets = _straight_ways(rng, config)
        gaps = np.linalg.norm(centres - places[:, None], axis=2) - radii
        clearance = float(gaps.min(initial=np.inf))
        if clearance > best_clearance:
            best, best_clearance = look_at(places, targets), clearance
        if clearance >= _CLEARANCE:
            break
    return best


def _straight_ways(rng: np.random.Generator, config: MujocoSceneConfig) -> tuple[Float64Array, Float64Array]:
    """Places of the camera and what it looks at, both (T, 3)."""
    share = np.linspace(0, 1, config.num_frames)[:, None]
    first = _random_place(rng, config)
    last = _random_place(rng, config)
    length = float(np.linalg.norm(last - first))
    # All of the way is in the room and over the floor, as both of its ends are.
    last = first + (last - first) * min(1.0, config.camera_travel * rng.uniform(0.2, 1.0) / max(length, 1e-9))
    targets = rng.uniform(-1, 1, (2, 3)) * config.look_at_spread / np.sqrt(3) + (0, 0, 0.5)
    return first + (last - first) * share, targets[0] + (targets[1] - targets[0]) * share


def _random_place(rng: np.random.Generator, config: MujocoSceneConfig) -> Float64Array:
    """Over the floor, evenly in the half of a sphere's shell."""
    while True:
        direction = rng.standard_normal(3)
        direction[2] = abs(direction[2])
        place = direction / max(float(np.linalg.norm(direction)), 1e-9) * rng.uniform(*config.camera_distance)
        # From right above, a level picture has no direction that is up.
        if place[2] >= _LOWEST and np.hypot(place[0], place[1]) > 0.2 * place[2]:
            return np.asarray(place, np.float64)


def look_at(places: Float64Array, targets: Float64Array) -> Float64Array:
    """[R | t] (..., 3, 4) of level cameras at `places` that look at `targets`, both (..., 3)."""
    forward = targets - places
    forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross(forward, np.array([0.0, 0.0, 1.0]))
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    rotation = np.stack([right, np.cross(forward, right), forward], axis=-2)
    return np.concatenate([rotation, -rotation @ places[..., None]], axis=-1)


def camera_places(world_to_camera: Float64Array) -> Float64Array:
    """Where cameras [R | t] (..., 3, 4) are, (..., 3)."""
    rotation, translation = world_to_camera[..., :3], world_to_camera[..., 3:]
    return -(rotation.swapaxes(-1, -2) @ translation)[..., 0]


def project(
    world_points: Float64Array, world_to_camera: Float64Array, intrinsics: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Pixels (n, 2) and depths (n,), metres along the axis, of points (n, 3). NaN pixels if nearer than `NEAREST`."""
    seen = world_points @ world_to_camera[:, :3].T + world_to_camera[:, 3]
    depth = seen[:, 2]
    in_front = depth >= NEAREST
    scaled = seen @ intrinsics.T
    pixels = scaled[:, :2] / np.where(in_front, depth, 1)[:, None]
    return np.where(in_front[:, None], pixels, np.nan), depth


def pixel_rays(pixels: Float64Array, world_to_camera: Float64Array, intrinsics: Float64Array) -> Float64Array:
    """Directions (n, 3) in the world of pixels (n, 2), of such length that their depth along the axis is 1."""
    homogeneous = np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1)
    return homogeneous @ np.linalg.inv(intrinsics).T @ world_to_camera[:, :3]
