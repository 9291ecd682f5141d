"""Scenes simulated and drawn by MuJoCo, with exact ground truth: shapes lie in a room, others are thrown among them.

After the MOVi-E scenes: 10 to 20 objects that rest, 1 to 3 that are thrown in, and a camera that moves straight. T
frames, H W image, O objects, P points. World: metres, z up. Camera: metres, x right, y down, z forward. Pixel
coordinates are (x, y): right, down, pixel centres at .5. Labels, depth and visibility come from rays through the
geometry, not from the picture, so they are exact and need no graphics library.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from rvm_training.data.ground_truth import seen_boxes, take_in_turns
from rvm_training.data.mujoco_scenes_camera import make_camera_path, make_intrinsics, project
from rvm_training.data.mujoco_scenes_config import MujocoSceneConfig
from rvm_training.data.mujoco_scenes_geometry import SceneGeometry, body_poses
from rvm_training.data.mujoco_scenes_render import open_renderer
from rvm_training.data.mujoco_scenes_world import World, make_world, outline_points

SALT = 0x30F1
"""Beside the seed, so that no other generator draws the same numbers."""
_MAX_ROUNDS = 20

UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class MujocoScene:
    """A video and everything that is true of it. Has what `ground_truth.GroundTruth` names, and more."""

    video: UInt8Array
    """(T, H, W, 3), RGB."""
    labels: UInt8Array
    """(T, H, W): which object is seen at the middle of the pixel, from 1; 0 is the room."""
    depth: Float32Array
    """(T, H, W): of what is seen at the middle of the pixel, metres along the camera's axis, as of depth cameras."""
    boxes: Float32Array
    """(T, O, 4): x_min, y_min, x_max, y_max around what is seen of each object, pixels; NaN where nothing is seen."""
    amodal_boxes: Float32Array
    """(T, O, 4): the same around all of the object that is in front of the camera, also where it is hidden or outside
    of the image; NaN if it is behind the camera."""
    seen_share: Float32Array
    """(T, O): visible area over the area of all that is in front of the camera, in [0, 1]."""
    points: Float32Array
    """(T, P, 2): x and y of each point, pixels, known also where it is hidden or outside of the image; NaN behind the
    camera."""
    visible: BoolArray
    """(T, P): whether the point is in the image and nothing is in front of it."""
    point_layers: IntArray
    """(P,): what each point is on: 0 the room, otherwise the object's label."""
    world_points: Float64Array
    """(T, P, 3): the points in the world, metres."""
    object_to_world: Float64Array
    """(T, O, 3, 4): [R | t] of each object, metres."""
    world_to_camera: Float64Array
    """(T, 3, 4): [R | t] of the camera, metres."""
    intrinsics: Float64Array
    """(3, 3): (x, y, 1) * depth = K @ point of the camera."""
    moving: BoolArray
    """(O,): whether the object is thrown in; the others rest in the first frame."""
    shapes: tuple[str, ...]
    """Of the O objects."""

    @property
    def occluded(self) -> BoolArray:
        """(T, P): not visible, as the benchmarks name it."""
        return ~self.visible


def generate_mujoco_scene(config: MujocoSceneConfig, seed: int) -> MujocoScene:
    """The scene of a seed: the same on every call (the picture: on the same graphics library).

    Takes about 4 seconds at 24 frames of 256x256 without a GPU. Raises `mujoco_scenes_render.RenderError` where nothing
    can be drawn, with what to install.
    """
    rng = np.random.default_rng([seed, SALT])
    world = make_world(rng, config)
    poses, radii = body_poses(world.model, world.motion), np.array([body.radius for body in world.bodies])
    path = make_camera_path(rng, config, poses[:, 1:, :, 3], radii)
    geometry = SceneGeometry(world.model, world.motion, path, make_intrinsics(config))
    labels, depth = _cast_pixels(config, geometry)
    video = _draw(rng, config, world, geometry)
    points, visible, point_layers, world_points = _track_points(rng, config, geometry, labels)
    amodal_boxes, whole = _whole_objects(world, geometry)
    count = len(world.bodies)
    seen = np.stack([np.bincount(frame.ravel(), minlength=count + 1) for frame in labels])[:, 1:]
    return MujocoScene(
        video=video,
        labels=labels,
        depth=depth,
        boxes=seen_boxes(labels, count),
        amodal_boxes=amodal_boxes,
        seen_share=np.minimum(seen / np.maximum(whole, 1e-6), 1).astype(np.float32),
        points=points,
        visible=visible,
        point_layers=point_layers,
        world_points=world_points,
        object_to_world=geometry.layer_to_world[:, 1:],
        world_to_camera=path,
        intrinsics=geometry.intrinsics,
        moving=np.array([body.moving for body in world.bodies], np.bool_),
        shapes=tuple(body.shape for body in world.bodies),
    )


def _cast_pixels(config: MujocoSceneConfig, geometry: SceneGeometry) -> tuple[UInt8Array, Float32Array]:
    """Labels and depth, both (T, H, W)."""
    labels = np.empty((config.num_frames, config.height, config.width), np.uint8)
    depth = np.empty(labels.shape, np.float32)
    ys, xs = np.mgrid[: config.height, : config.width] + 0.5
    pixels = np.stack([xs.ravel(), ys.ravel()], axis=1)
    for t in range(config.num_frames):
        layers, depths, _ = geometry.cast(t, pixels)
        labels[t], depth[t] = layers.reshape(xs.shape), depths.reshape(xs.shape)
    return labels, depth


def _draw(rng: np.random.Generator, config: MujocoSceneConfig, world: World, geometry: SceneGeometry) -> UInt8Array:
    """The video (T, H, W, 3)."""
    video = np.empty((config.num_frames, config.height, config.width, 3), np.uint8)
    with open_renderer(world.model, config.height, config.width) as renderer:
        for t in range(config.num_frames):
            image = renderer.draw(geometry.set_frame(t)).astype(np.float32)
            if config.noise:
                image += config.noise * rng.standard_normal(image.shape, dtype=np.float32)
            video[t] = np.clip(np.rint(image), 0, 255)
    return video


def _track_points(
    rng: np.random.Generator, config: MujocoSceneConfig, geometry: SceneGeometry, labels: UInt8Array
) -> tuple[Float32Array, BoolArray, IntArray, Float64Array]:
    """Points (T, P, 2), whether they are visible (T, P), their layers (P,), and in the world (T, P, 3).

    Each begins at a random place of the picture, is in its object from then on, and is visible in two frames or more.
    """
    needed = min(2, len(labels))
    found: list[tuple[Float32Array, BoolArray, IntArray, Float64Array]] = []
    for _ in range(_MAX_ROUNDS):
        layers, places = _draw_surface_points(rng, geometry, labels, 2 * config.num_points)
        tracks = _follow(geometry, layers, places, labels.shape[1:])
        good = tracks[1].sum(axis=0) >= needed
        found.append((tracks[0][:, good], tracks[1][:, good], layers[good], tracks[2][:, good]))
        if sum(len(item[2]) for item in found) >= config.num_points:
            break
    else:
        count = sum(len(item[2]) for item in found)
        raise ValueError(f"expected room for {config.num_points} points, found {count} visible ones")
    owners = np.concatenate([item[2] for item in found])
    chosen = take_in_turns(owners, config.num_points)
    points, visible, world_points = (np.concatenate([item[i] for item in found], axis=1)[:, chosen] for i in (0, 1, 3))
    return points, visible, owners[chosen], world_points


def _draw_surface_points(
    rng: np.random.Generator, geometry: SceneGeometry, labels: UInt8Array, count: int
) -> tuple[IntArray, Float64Array]:
    """Layers (n,) and places in them (n, 3) of random places of the pictures, `count` for each layer that is seen."""
    flat = labels.ravel()
    order = np.argsort(flat, kind="stable")
    ends = np.cumsum(np.bincount(flat, minlength=geometry.layer_to_world.shape[1]))
    picks = [
        order[rng.integers(low, high, count)] for low, high in zip([0, *ends[:-1]], ends, strict=True) if high > low
    ]
    ts, ys, xs = np.unravel_index(np.concatenate(picks), labels.shape)
    pixels = np.stack([xs, ys], axis=1) + rng.random((len(ts), 2))
    layers, places = np.empty(len(ts), np.intp), np.empty((len(ts), 3))
    for t in np.unique(ts):
        here = ts == t
        layers[here], _, world = geometry.cast(int(t), pixels[here])
        layer_to_world = geometry.layer_to_world[t, layers[here]]
        # The inverse of a rotation is its transpose.
        places[here] = np.einsum("nij,ni->nj", layer_to_world[:, :, :3], world - layer_to_world[:, :, 3])
    return layers, places


def _follow(
    geometry: SceneGeometry, layers: IntArray, places: Float64Array, image_size: tuple[int, ...]
) -> tuple[Float32Array, BoolArray, Float64Array]:
    """Pixels (T, n, 2), visibility (T, n) and world places (T, n, 3) of places (n, 3) in layers (n,)."""
    height, width = image_size
    maps = geometry.layer_to_world[:, layers]
    world = np.einsum("tnij,nj->tni", maps[..., :3], places) + maps[..., 3]
    points = np.empty((len(maps), len(layers), 2), np.float32)
    visible = np.zeros((len(maps), len(layers)), np.bool_)
    for t in range(len(maps)):
        points[t], _ = project(world[t], geometry.world_to_camera[t], geometry.intrinsics)
        # Of NaN this is false.
        inside = ((points[t] >= 0) & (points[t] < (width, height))).all(axis=1)
        visible[t, inside] = geometry.sees(t, world[t, inside], layers[inside])
    return points, visible, world


def _whole_objects(world: World, geometry: SceneGeometry) -> tuple[Float32Array, Float64Array]:
    """Boxes (T, O, 4) around whole objects in the picture, and their areas (T, O), square pixels."""
    frames, count = len(world.motion), len(world.bodies)
    boxes, areas = np.full((frames, count, 4), np.nan, np.float32), np.zeros((frames, count))
    for index, body in enumerate(world.bodies):
        outline = outline_points(body)
        for t in range(frames):
            to_world = geometry.layer_to_world[t, index + 1]
            places = outline @ to_world[:, :3].T + to_world[:, 3]
            pixels, _ = project(places, geometry.world_to_camera[t], geometry.intrinsics)
            pixels = pixels[~np.isnan(pixels[:, 0])]
            if len(pixels):
                boxes[t, index] = [*pixels.min(axis=0), *pixels.max(axis=0)]
                # All shapes are convex, and so are their pictures.
                areas[t, index] = cv2.contourArea(cv2.convexHull(pixels.astype(np.float32)))
    return boxes, areas
