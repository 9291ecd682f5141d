"""The ground truth of MuJoCo's scenes, compared with geometry worked out by other means and with the pictures."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="the extra `scenes` is not installed")

from rvm_core.preprocess import Preprocess  # noqa: E402
from rvm_training.data.ground_truth import GroundTruth  # noqa: E402
from rvm_training.data.mujoco_scenes import SALT, MujocoScene, generate_mujoco_scene  # noqa: E402
from rvm_training.data.mujoco_scenes_camera import camera_places, project  # noqa: E402
from rvm_training.data.mujoco_scenes_config import MujocoSceneConfig  # noqa: E402
from rvm_training.data.mujoco_scenes_geometry import SceneGeometry  # noqa: E402
from rvm_training.data.mujoco_scenes_render import RenderError, find_backend, open_renderer  # noqa: E402
from rvm_training.data.mujoco_scenes_world import make_world  # noqa: E402
from rvm_training.evaluators.synthetic import object_starts, scene_queries  # noqa: E402

SMALL = MujocoSceneConfig(height=96, width=128, num_frames=6, num_points=48, noise=0.5)
SEEDS = (0, 1)
HALF_PIXEL = 0.6
"""Boxes around pixels count those whose middle is covered; the outlines of whole objects have 64 corners."""
DRAWN_SHARE = 0.995
"""Of pixels whose label the picture shows too: round shapes are drawn with 64 flat sides."""


@pytest.fixture(scope="module")
def backend() -> str:
    try:
        return find_backend()
    except RenderError as error:
        pytest.skip(f"nothing can be drawn here: {error}")


@pytest.fixture(scope="module", params=SEEDS)
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def scene(seed: int, backend: str) -> MujocoScene:
    return generate_mujoco_scene(SMALL, seed)


def test_shapes_and_types(scene: MujocoScene) -> None:
    count = len(scene.shapes)
    assert 11 <= count <= 23 and 1 <= scene.moving.sum() <= 3
    expected = {
        "video": ((6, 96, 128, 3), np.uint8),
        "labels": ((6, 96, 128), np.uint8),
        "depth": ((6, 96, 128), np.float32),
        "boxes": ((6, count, 4), np.float32),
        "amodal_boxes": ((6, count, 4), np.float32),
        "seen_share": ((6, count), np.float32),
        "points": ((6, 48, 2), np.float32),
        "visible": ((6, 48), np.bool_),
        "point_layers": ((48,), np.intp),
        "world_points": ((6, 48, 3), np.float64),
        "object_to_world": ((6, count, 3, 4), np.float64),
        "world_to_camera": ((6, 3, 4), np.float64),
        "intrinsics": ((3, 3), np.float64),
        "moving": ((count,), np.bool_),
    }
    arrays = [f.name for f in fields(MujocoScene) if f.name != "shapes"]
    assert {name: (getattr(scene, name).shape, getattr(scene, name).dtype) for name in arrays} == expected
    assert np.array_equal(scene.occluded, ~scene.visible)


def test_the_same_seed_gives_the_same_scene(scene: MujocoScene, seed: int) -> None:
    again = generate_mujoco_scene(SMALL, seed)
    for field in fields(MujocoScene):
        if field.name != "shapes":
            assert np.array_equal(getattr(scene, field.name), getattr(again, field.name), equal_nan=True), field.name
    assert scene.shapes == again.shapes
    other = make_world(np.random.default_rng([seed + 1, SALT]), SMALL)
    assert other.motion.shape != (6, 7 * len(scene.shapes)) or not np.allclose(
        other.motion.reshape(6, -1, 7)[:, :, :3], scene.object_to_world[..., 3]
    )


def test_points_are_projections_of_places_that_move_with_their_objects(scene: MujocoScene) -> None:
    for t in range(len(scene.video)):
        pixels, depths = project(scene.world_points[t], scene.world_to_camera[t], scene.intrinsics)
        np.testing.assert_allclose(scene.points[t], pixels, rtol=1e-5, atol=1e-4)
        assert (depths[scene.visible[t]] > 0).all()
    room = np.broadcast_to(np.eye(3, 4), (len(scene.video), 1, 3, 4))
    maps = np.concatenate([room, scene.object_to_world], axis=1)[:, scene.point_layers]
    own = np.einsum("tnij,tni->tnj", maps[..., :3], scene.world_points - maps[..., 3])
    np.testing.assert_allclose(own, np.broadcast_to(own[:1], own.shape), atol=1e-9)


def test_visible_points_agree_with_depth_and_labels(scene: MujocoScene) -> None:
    """Within half a pixel of the middle of a pixel nothing is exact, so the places around decide with it."""
    _, height, width = scene.labels.shape
    for t, point in np.argwhere(scene.visible):
        x, y = scene.points[t, point]
        assert 0 <= x < width and 0 <= y < height
        rows = slice(max(int(y) - 1, 0), int(y) + 2)
        cols = slice(max(int(x) - 1, 0), int(x) + 2)
        assert (scene.labels[t, rows, cols] == scene.point_layers[point]).any()
        depth = depth_of(scene, t, point)
        around = scene.depth[t, rows, cols][scene.labels[t, rows, cols] == scene.point_layers[point]]
        assert around.min() * 0.97 < depth < around.max() * 1.03


def test_hidden_points_have_something_in_front_or_are_outside(scene: MujocoScene) -> None:
    _, height, width = scene.labels.shape
    hidden = 0
    for t, point in np.argwhere(scene.occluded):
        x, y = scene.points[t, point]
        if not (0 <= x < width and 0 <= y < height):
            continue
        rows = slice(max(int(y) - 1, 0), int(y) + 2)
        cols = slice(max(int(x) - 1, 0), int(x) + 2)
        # The far side of an object itself counts too.
        assert scene.depth[t, rows, cols].min() < depth_of(scene, t, point)
        hidden += 1
    assert hidden


def depth_of(scene: MujocoScene, t: int, point: int) -> float:
    camera = scene.world_to_camera[t]
    return float(camera[2, :3] @ scene.world_points[t, point] + camera[2, 3])


def test_points_are_spread_over_what_is_seen(scene: MujocoScene) -> None:
    counts = np.bincount(scene.point_layers, minlength=len(scene.shapes) + 1)
    seen_twice = np.flatnonzero((scene.seen_share > 0.2).sum(axis=0) > 1) + 1
    assert counts[0] > 0 and (counts[seen_twice] > 0).all()
    assert (scene.visible.sum(axis=0) >= 2).all()


def test_boxes_fit_labels(scene: MujocoScene) -> None:
    for t in range(len(scene.labels)):
        for index, (box, whole) in enumerate(zip(scene.boxes[t], scene.amodal_boxes[t], strict=True)):
            ys, xs = np.nonzero(scene.labels[t] == index + 1)
            if not len(xs):
                assert np.isnan(box).all() and scene.seen_share[t, index] == 0
                continue
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            # What is seen is a part of the whole.
            assert (whole[:2] - HALF_PIXEL <= box[:2]).all() and (box[2:] <= whole[2:] + HALF_PIXEL).all()
            assert 0 < scene.seen_share[t, index] <= 1


def test_whole_boxes_are_tight_where_all_of_an_object_is_seen(scene: MujocoScene) -> None:
    _, height, width = scene.labels.shape
    inside = (scene.amodal_boxes[..., :2] > 0).all(axis=2) & (scene.amodal_boxes[..., 2:] < (width, height)).all(axis=2)
    whole = inside & (scene.seen_share > 0.97)
    assert whole.sum() > 5
    np.testing.assert_allclose(scene.boxes[whole], scene.amodal_boxes[whole], atol=1.0)


def test_some_objects_rest_and_some_fly(scene: MujocoScene) -> None:
    steps = np.linalg.norm(np.diff(scene.object_to_world[..., 3], axis=0), axis=2)
    assert (steps[0, scene.moving] > 0.05).all()
    assert np.median(steps[0, ~scene.moving]) < 0.02
    # Nothing sinks into the floor.
    assert (scene.object_to_world[..., 2, 3] > 0).all()
    assert np.linalg.norm(np.diff(camera_places(scene.world_to_camera), axis=0), axis=1).min() > 1e-3


def test_the_picture_shows_the_labels(scene: MujocoScene, seed: int) -> None:
    """Labels as the graphics library draws them are those of the rays, so both look through the same camera."""
    world = make_world(np.random.default_rng([seed, SALT]), SMALL)
    geometry = SceneGeometry(world.model, world.motion, scene.world_to_camera, scene.intrinsics)
    with open_renderer(world.model, SMALL.height, SMALL.width) as renderer:
        for t, labels in enumerate(scene.labels):
            assert (renderer.draw_labels(geometry.set_frame(t)) == labels).mean() > DRAWN_SHARE


def test_the_picture_changes_where_labels_do(scene: MujocoScene) -> None:
    """Edges of the picture are stronger between two labels than elsewhere, so it is not shifted or mirrored."""
    grey = scene.video.astype(float).mean(axis=3)
    steps = np.abs(np.diff(grey, axis=2))
    borders = np.diff(scene.labels.astype(int), axis=2) != 0
    shifted = np.roll(borders, 4, axis=2)
    assert steps[borders].mean() > 1.3 * steps[shifted & ~borders].mean()


def test_evaluators_take_these_scenes(scene: MujocoScene) -> None:
    truth: GroundTruth = scene
    frame_map = Preprocess(height=96, width=128, policy="stretch").map(96, 128)
    queries = scene_queries(truth, frame_map)
    starts = object_starts(truth)
    seen = int((starts < len(scene.video)).sum())
    assert sum(map(len, queries)) == 48 + 2 * seen
    assert seen >= 5


def test_a_scene_of_the_room_alone(backend: str) -> None:
    config = replace(SMALL, static_objects=(0, 0), moving_objects=(0, 0), num_frames=1, num_points=5)
    scene = generate_mujoco_scene(config, 0)
    assert scene.boxes.shape == (1, 0, 4) and not scene.labels.any()
    assert scene.visible.all() and not scene.point_layers.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 0}, "num_frames of 1 or more"),
        ({"height": 8}, "height of 32 or more"),
        ({"static_objects": (5, 2)}, "the lower first"),
        ({"static_objects": (250, 250), "moving_objects": (5, 5)}, "at most 254 objects"),
        ({"object_radius": (0.0, 1.0)}, "0.01 m or more"),
        ({"frame_rate": 0.0}, "frame_rate over 0"),
        ({"noise": -1.0}, "noise of 0 or more"),
        ({"field_of_view": 170.0}, "field_of_view"),
        ({"camera_distance": (6.0, 13.0)}, "room_size over 13"),
    ],
)
def test_impossible_scenes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)  # type: ignore[arg-type]
