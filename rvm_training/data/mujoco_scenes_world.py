"""The bodies of MuJoCo's scenes and how they move: textured primitive shapes in a textured room.

T frames, O objects. World: metres, z up, the floor at 0. Object i, from 0, is body i + 1 of the model; body 0 is the
room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rvm_training.data.mujoco_scenes_config import MujocoSceneConfig
from rvm_training.data.textures import make_palette, make_texture

try:
    import mujoco
except ImportError as error:
    raise ImportError(
        "these scenes need mujoco, which is not installed: pip install 'rvm_perception[scenes]'"
    ) from error

SHAPES = ("sphere", "box", "cylinder", "capsule", "ellipsoid")
CAMERA = "camera"
"""Name of the one camera of the model."""
_TIME_STEP = 0.004
"""Of the physics at most, seconds."""
_SETTLING = 2.0
"""Objects fall and come to rest for so long before the video begins, seconds."""
_FACE, _WALL, _FLOOR = 96, 512, 768
"""Sides of the textures of objects' faces, walls and floor, pixels."""
_MAX_ROUNDS = 200

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Body:
    """An object: a convex primitive shape about its middle."""

    shape: str
    """One of `SHAPES`."""
    size: Float64Array
    """As MuJoCo has it, metres: sphere (radius), box and ellipsoid (half the sides), cylinder and capsule (radius, half
    the length of the straight part)."""
    radius: float
    """Of the sphere around it, metres."""
    moving: bool
    """Whether it is thrown in."""


@dataclass(frozen=True)
class World:
    """A simulated scene."""

    model: mujoco.MjModel
    bodies: list[Body]
    motion: Float64Array
    """(T, nq): MuJoCo's positions of everything in each frame."""


def make_world(rng: np.random.Generator, config: MujocoSceneConfig) -> World:
    """A random scene, simulated from its first frame to its last."""
    bodies = _make_bodies(rng, config)
    model = _make_spec(rng, config, bodies).compile()
    return World(model, bodies, _simulate(rng, config, bodies, model))


# Shapes


def _make_bodies(rng: np.random.Generator, config: MujocoSceneConfig) -> list[Body]:
    static = int(rng.integers(config.static_objects[0], config.static_objects[1] + 1))
    moving = int(rng.integers(config.moving_objects[0], config.moving_objects[1] + 1))
    bodies = []
    for index in range(static + moving):
        shape, radius = SHAPES[rng.integers(len(SHAPES))], float(rng.uniform(*config.object_radius))
        bodies.append(Body(shape, _random_size(rng, shape, radius), radius, index >= static))
    return bodies


def _random_size(rng: np.random.Generator, shape: str, radius: float) -> Float64Array:
    """Of a shape that just fits into a sphere of that radius."""
    sides = rng.uniform(0.4, 1.0, 3)
    angle = rng.uniform(0.35, 1.2)
    thickness = rng.uniform(0.3, 0.6)
    sizes: dict[str, Sequence[float] | Float64Array] = {
        "sphere": [radius],
        "box": radius * sides / np.linalg.norm(sides),
        "cylinder": [radius * np.cos(angle), radius * np.sin(angle)],
        "capsule": [radius * thickness, radius * (1 - thickness)],
        "ellipsoid": radius * sides / sides.max(),
    }
    return np.asarray(sizes[shape], np.float64)


def outline_points(body: Body) -> Float64Array:
    """Points (n, 3) about the middle of a body whose convex hull is its shape, up to 0.2% of round ones."""
    if body.shape == "box":
        signs = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3), axis=-1).reshape(-1, 3)
        return signs * body.size
    turns = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    if body.shape == "cylinder":
        circle = np.stack([np.cos(turns), np.sin(turns), np.zeros(64)], axis=1) * body.size[0]
        return np.concatenate([circle + (0, 0, body.size[1]), circle - (0, 0, body.size[1])])
    # Even in number, so that none is on the equator, where a capsule's halves meet.
    heights = np.linspace(0, np.pi, 34)
    sine = np.sin(heights)[:, None]
    directions = np.stack([sine * np.cos(turns), sine * np.sin(turns), np.cos(heights)[:, None] + 0 * turns], axis=-1)
    points = directions.reshape(-1, 3)
    if body.shape == "capsule":
        return points * body.size[0] + np.sign(points[:, 2:]) * (0, 0, body.size[1])
    return points * body.size


# The model


def _make_spec(rng: np.random.Generator, config: MujocoSceneConfig, bodies: list[Body]) -> mujoco.MjSpec:
    spec = mujoco.MjSpec()
    steps = int(np.ceil(1 / (config.frame_rate * _TIME_STEP)))
    spec.option.timestep = 1 / config.frame_rate / steps
    visual = spec.visual
    visual.global_.offwidth, visual.global_.offheight = config.width, config.height
    visual.quality.shadowsize, visual.quality.numslices, visual.quality.numstacks = 2048, 64, 48
    spec.stat.extent, spec.stat.center = 2 * config.room_size, (0, 0, config.room_size / 2)
    ambient = rng.uniform(0.25, 0.4)
    visual.headlight.ambient, visual.headlight.diffuse = [ambient] * 3, [rng.uniform(0.1, 0.25)] * 3
    visual.headlight.specular = [0, 0, 0]
    _add_room(rng, spec, config.room_size)
    _add_lamp(rng, spec, config.room_size)
    for index, body in enumerate(bodies):
        _add_body(rng, spec, index, body)
    spec.worldbody.add_camera(name=CAMERA)
    return spec


def _add_room(rng: np.random.Generator, spec: mujoco.MjSpec, size: float) -> None:
    """Floor, ceiling and four walls. Planes are seen from the inside only, and overlap outside of the room."""
    upright = size / 2
    sides = {
        "floor": ((0, 0, 0), (0, 0, 1)),
        "ceiling": ((0, 0, size), (0, 0, -1)),
        "east": ((size, 0, upright), (-1, 0, 0)),
        "west": ((-size, 0, upright), (1, 0, 0)),
        "north": ((0, size, upright), (0, -1, 0)),
        "south": ((0, -size, upright), (0, 1, 0)),
    }
    wall_palette = make_palette(rng)
    for name, (place, normal) in sides.items():
        palette, side = (make_palette(rng), _FLOOR) if name == "floor" else (wall_palette, _WALL)
        _add_material(spec, name, mujoco.mjtTexture.mjTEXTURE_2D, make_texture(rng, palette, side, side), 0.0)
        quaternion = np.empty(4)
        mujoco.mju_quatZ2Vec(quaternion, np.array(normal, np.float64))
        spec.worldbody.add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_PLANE,
            pos=place,
            quat=quaternion,
            size=[1.5 * size, 1.5 * size, 1],
            material=name,
            castshadow=False,
        )


def _add_lamp(rng: np.random.Generator, spec: mujoco.MjSpec, size: float) -> None:
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.9)
    direction = np.array([slope * np.cos(angle), slope * np.sin(angle), -1])
    colour = rng.uniform(0.55, 0.8) * rng.uniform(0.9, 1.1, 3)
    spec.worldbody.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=-direction * 0.9 * size,
        dir=direction,
        diffuse=colour,
        specular=0.3 * colour,
        castshadow=True,
    )


def _add_body(rng: np.random.Generator, spec: mujoco.MjSpec, index: int, body: Body) -> None:
    name, palette = f"object{index}", make_palette(rng)
    faces = np.concatenate([make_texture(rng, palette, _FACE, _FACE) for _ in range(6)])
    _add_material(spec, name, mujoco.mjtTexture.mjTEXTURE_CUBE, faces, rng.uniform(0, 0.6))
    added = spec.worldbody.add_body(name=name)
    added.add_freejoint()
    size = np.zeros(3)
    size[: len(body.size)] = body.size
    added.add_geom(
        name=name,
        type=getattr(mujoco.mjtGeom, f"mjGEOM_{body.shape.upper()}"),
        size=size,
        material=name,
        density=rng.uniform(200, 1500),
        # Rolling friction, so that round ones come to rest.
        condim=6,
        friction=[rng.uniform(0.5, 1.0), 0.02, 0.01],
    )


def _add_material(
    spec: mujoco.MjSpec, name: str, kind: mujoco.mjtTexture, image: npt.NDArray[np.uint8], specular: float
) -> None:
    height, width = image.shape[:2]
    texture = spec.add_texture(name=name, type=kind, height=height, width=width, nchannel=3)
    texture.data = image.tobytes()
    material = spec.add_material(name=name, specular=specular, shininess=0.5, reflectance=0.0)
    names = [""] * len(material.textures)
    names[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
    material.textures = names


# Motion


def _simulate(
    rng: np.random.Generator, config: MujocoSceneConfig, bodies: list[Body], model: mujoco.MjModel
) -> Float64Array:
    """(T, nq): after the static objects have come to rest, the others are thrown in."""
    data = mujoco.MjData(model)
    pose, speed = data.qpos.reshape(-1, 7), data.qvel.reshape(-1, 6)
    moving = np.array([body.moving for body in bodies], bool)
    radii = np.array([body.radius for body in bodies])
    for index in range(len(bodies)):
        pose[index, 3:] = _random_turn(rng)
    for index in np.flatnonzero(~moving).tolist():
        pose[index, :3] = _free_place(rng, config, pose[:index, :3], radii[: index + 1], lowest=radii[index])
    # Those that are not there yet touch nothing.
    _set_solid(model, moving, False)
    for _ in range(int(_SETTLING / model.opt.timestep)):
        mujoco.mj_step(model, data)
    _set_solid(model, moving, True)
    for index in np.flatnonzero(moving).tolist():
        pose[index, :3] = _free_place(rng, config, pose[:index, :3], radii[: index + 1], lowest=1.0 + radii[index])
        pose[index, 3:] = _random_turn(rng)
    speed[:] = 0
    for index in np.flatnonzero(moving).tolist():
        speed[index] = _throw(rng, config, pose[index, :3])
    data.qacc_warmstart[:] = 0
    motion = [data.qpos.copy()]
    steps = round(1 / (config.frame_rate * model.opt.timestep))
    for _ in range(config.num_frames - 1):
        mujoco.mj_step(model, data, steps)
        motion.append(data.qpos.copy())
    return np.stack(motion)


def _set_solid(model: mujoco.MjModel, moving: npt.NDArray[np.bool_], solid: bool) -> None:
    geoms = np.isin(model.geom_bodyid, np.flatnonzero(moving) + 1)
    model.geom_contype[geoms] = model.geom_conaffinity[geoms] = int(solid)


def _free_place(
    rng: np.random.Generator, config: MujocoSceneConfig, others: Float64Array, radii: Float64Array, *, lowest: float
) -> Float64Array:
    """A place for the last of the objects whose radii these are, clear of the others; higher up if it gets crowded."""
    reach = config.spread
    place = np.zeros(3)
    for attempt in range(_MAX_ROUNDS):
        highest = lowest + 2.5 + 0.02 * attempt * radii[-1]
        place = np.array([*rng.uniform(-reach, reach, 2), rng.uniform(lowest, highest)])
        if (np.linalg.norm(others - place, axis=1) > radii[:-1] + radii[-1]).all():
            break
    return place


def _random_turn(rng: np.random.Generator) -> Float64Array:
    quaternion = rng.standard_normal(4)
    return np.asarray(quaternion / np.linalg.norm(quaternion), np.float64)


def _throw(rng: np.random.Generator, config: MujocoSceneConfig, place: Float64Array) -> Float64Array:
    """Velocity and rate of turning (6,) of an object thrown from there towards the middle."""
    way = rng.uniform(-0.4, 0.4, 2) * config.spread - place[:2]
    level = way / max(float(np.linalg.norm(way)), 1e-6) * rng.uniform(*config.throw_speed)
    return np.array([*level, rng.uniform(-1, 2), *rng.uniform(-3, 3, 3)])
