"""The ground truth of synthetic scenes, compared with their pixels."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import fields

import cv2
import numpy as np
import pytest

from rvm_training.data.scenes import Scene, SceneConfig, generate_scene

SMALL = SceneConfig(height=96, width=128, num_frames=12, num_objects=3, num_points=24)
PLAIN = SceneConfig(height=128, width=160, num_frames=16, num_points=40, light=0.0, noise=0.0)
PATCH = 9
SEEDS = range(6)
SAME_PATCH = 0.98
"""Correlation of a patch with itself in another frame: both are interpolated, so the finest structure is softer."""


@pytest.fixture(scope="module", params=SEEDS)
def scene(request: pytest.FixtureRequest) -> Scene:
    return generate_scene(PLAIN, request.param)


def test_the_same_seed_gives_the_same_scene() -> None:
    first, again, other = (generate_scene(SMALL, seed) for seed in (5, 5, 6))
    for field in fields(Scene):
        assert np.array_equal(getattr(first, field.name), getattr(again, field.name), equal_nan=True), field.name
    assert not np.array_equal(first.video, other.video)
    assert not np.array_equal(first.points, other.points)


def test_shapes_and_types() -> None:
    scene = generate_scene(SMALL, 0)
    expected = {
        "video": ((12, 96, 128, 3), np.uint8),
        "labels": ((12, 96, 128), np.uint8),
        "boxes": ((12, 3, 4), np.float32),
        "amodal_boxes": ((12, 3, 4), np.float32),
        "seen_share": ((12, 3), np.float32),
        "points": ((12, 24, 2), np.float32),
        "visible": ((12, 24), np.bool_),
        "point_layers": ((24,), np.intp),
        "layer_to_image": ((12, 4, 2, 3), np.float64),
    }
    assert {f.name: (getattr(scene, f.name).shape, getattr(scene, f.name).dtype) for f in fields(Scene)} == expected
    assert np.array_equal(scene.occluded, ~scene.visible)
    # In turns over the background and three objects.
    assert np.bincount(scene.point_layers).tolist() == [6, 6, 6, 6]


def test_visible_points_show_the_same_patch_in_all_frames(scene: Scene) -> None:
    right, beside = [], []
    for t, point, backwards in patches_seen_whole(scene):
        reference = patch_at(scene.video[0], scene.points[0, point], np.eye(2))
        # The patch of frame t, drawn in the scale and direction of frame 0.
        right.append(correlation(reference, patch_at(scene.video[t], scene.points[t, point], backwards)))
        beside.append(correlation(reference, patch_at(scene.video[t], scene.points[t, point] + 5, backwards)))
    assert len(right) > 100
    assert np.median(right) > SAME_PATCH and np.quantile(right, 0.02) > 0.9
    # The textures are not so smooth that any patch would do.
    assert np.median(beside) < 0.8


def patches_seen_whole(scene: Scene) -> Iterator[tuple[int, int, np.ndarray]]:
    """(frame, point, linear map from frame 0 to that frame) where all around a point its layer is seen in both."""
    frames, height, width = scene.labels.shape
    for point in np.flatnonzero(scene.visible[0]):
        layer = scene.point_layers[point]
        for t in range(1, frames):
            places = scene.points[[0, t], point]
            near_border = (places < PATCH).any() or (places > (width - PATCH, height - PATCH)).any()
            if near_border or not scene.visible[t, point]:
                continue
            around = [patch_at(scene.labels[i], scene.points[i, point], np.eye(2), nearest=True) for i in (0, t)]
            if (np.array(around) == layer).all():
                first, now = scene.layer_to_image[[0, t], layer, :, :2]
                yield t, int(point), now @ np.linalg.inv(first)


def patch_at(image: np.ndarray, centre: np.ndarray, linear: np.ndarray, *, nearest: bool = False) -> np.ndarray:
    """PATCH x PATCH values of an image: patch position p about the centre is read at centre + linear @ p."""
    offsets = np.indices((PATCH, PATCH))[::-1] - PATCH // 2
    xs, ys = np.tensordot(linear, offsets, 1) + np.asarray(centre)[:, None, None] - 0.5
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return cv2.remap(image, xs.astype(np.float32), ys.astype(np.float32), how)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first.ravel().astype(float), second.ravel().astype(float))[0, 1])


def test_points_move_with_their_layer(scene: Scene) -> None:
    maps = scene.layer_to_image[:, scene.point_layers]
    linear, offset = maps[..., :2], maps[..., 2]
    places = np.linalg.solve(linear, (scene.points - offset)[..., None])[..., 0]
    # One place of the texture in all frames. The points are rounded to float32.
    np.testing.assert_allclose(places, np.broadcast_to(places[:1], places.shape), atol=1e-3)


def test_points_are_hidden_exactly_where_another_layer_is_seen(scene: Scene) -> None:
    frames, height, width = scene.labels.shape
    inside = np.all((scene.points >= 0) & (scene.points < (width, height)), axis=2)
    cells = np.where(inside[..., None], scene.points, 0).astype(int)
    label = scene.labels[np.arange(frames)[:, None], cells[..., 1], cells[..., 0]]
    hidden = inside & (label != scene.point_layers)
    assert np.array_equal(scene.occluded, ~inside | hidden)
    # What hides a point lies in front of it.
    assert (label > scene.point_layers)[hidden].all()
    assert (scene.visible.sum(axis=0) >= 2).all()


def test_boxes_fit_what_is_seen(scene: Scene) -> None:
    for t in range(len(scene.labels)):
        for index, box in enumerate(scene.boxes[t]):
            ys, xs = np.nonzero(scene.labels[t] == index + 1)
            if not len(xs):
                assert np.isnan(box).all() and scene.seen_share[t, index] == 0
                continue
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            whole = scene.amodal_boxes[t, index]
            # A pixel counts from half of it on.
            assert (box[:2] >= whole[:2] - 1).all() and (box[2:] <= whole[2:] + 1).all()


def test_an_object_alone_is_seen_whole() -> None:
    config = SceneConfig(num_objects=1, num_points=4, object_size=0.1, num_frames=24)
    scene = generate_scene(config, 3)
    inside = ((scene.amodal_boxes[..., :2] >= 0) & (scene.amodal_boxes[..., 2:] <= 256)).all(axis=2)
    assert inside.any()
    np.testing.assert_allclose(scene.seen_share[inside], 1, atol=0.04)
    np.testing.assert_allclose(scene.boxes[inside], scene.amodal_boxes[inside], atol=1.5)
    gap = scene.amodal_boxes[inside, 2:] - scene.amodal_boxes[inside, :2]
    assert gap.max() / gap.min() > 1.05, "objects change their size or turn"


def test_scenes_have_every_difficulty() -> None:
    scenes = [generate_scene(SMALL, seed) for seed in range(20)]
    returned = sum(comes_back(scene.visible) for scene in scenes)
    outside = sum((~((s.points >= 0) & (s.points < (128, 96))).all(axis=2)).any() for s in scenes)
    changed = [
        np.sqrt(np.linalg.det(s.layer_to_image[-1, 1:, :, :2]) / np.linalg.det(s.layer_to_image[0, 1:, :, :2]))
        for s in scenes
    ]
    assert returned >= 5 and outside >= 5
    assert np.max(changed) > 1.1 and np.min(changed) < 0.9
    brightness = np.array([[frame.mean() for frame in scene.video] for scene in scenes])
    assert (brightness.max(axis=1) / brightness.min(axis=1)).max() > 1.1


def comes_back(visible: np.ndarray) -> bool:
    """Whether some point is seen, then not, then seen again."""
    appears = (visible[1:] & ~visible[:-1]).sum(axis=0)
    return bool((appears + visible[0] >= 2).any())


def test_no_objects_and_no_points() -> None:
    scene = generate_scene(SceneConfig(height=64, width=64, num_frames=3, num_objects=0, num_points=0), 0)
    assert scene.boxes.shape == (3, 0, 4) and scene.points.shape == (3, 0, 2)
    assert not scene.labels.any()
    still = SceneConfig(
        height=64, width=64, num_frames=3, speed=0, background_speed=0, rotation=0, zoom=0, light=0, noise=0
    )
    video = generate_scene(still, 0).video
    assert np.array_equal(video[0], video[2])


def test_scenes_are_cheap() -> None:
    generate_scene(SMALL, 0)
    seconds = []
    for seed in range(3):
        start = time.process_time()
        generate_scene(SceneConfig(num_frames=24), seed)
        seconds.append(time.process_time() - start)
    # Takes about 0.15 s; processor time, so that what else the machine does counts little.
    assert min(seconds) < 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 16}, "expected height of 32 or more, got 16"),
        ({"num_frames": 0}, "expected num_frames of 1 or more, got 0"),
        ({"num_objects": 255}, "at most 254 objects, got 255"),
        ({"object_size": 0.0}, "expected object_size in"),
        ({"speed": -1.0}, "expected speed of 0 or more"),
        ({"noise": float("nan")}, "expected noise of 0 or more, got nan"),
    ],
)
def test_configurations_that_cannot_be(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SceneConfig(**change)  # type: ignore[arg-type]
