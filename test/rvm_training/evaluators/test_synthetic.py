"""The evaluation on synthetic scenes: what the truth itself scores, what a still picture scores, and the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from rvm_core.preprocess import Preprocess
from rvm_core.tracking import FeatureTracker
from rvm_core.tracking.base import (
    BoxQuery,
    BoxTracks,
    MaskQuery,
    MaskTracks,
    PointQuery,
    PointTracks,
    Query,
    Status,
    Tracks,
)
from rvm_core.tracking.pixels import cell_coverage
from rvm_training.data.scenes import Scene, SceneConfig, generate_scene
from rvm_training.data.textures import make_palette, make_texture
from rvm_training.evaluators.synthetic import (
    Evaluation,
    Method,
    baseline_methods,
    engine_method,
    evaluate,
    follow,
    object_starts,
    point_starts,
    scene_queries,
    score,
)

SMALL = SceneConfig(height=96, width=128, num_frames=10, num_points=16, num_objects=2, object_size=0.25)
EASY = SceneConfig(
    num_frames=8, num_points=24, num_objects=2, object_size=0.25,
    speed=0.015, background_speed=0.01, rotation=0, zoom=0, light=0, noise=1,
)  # fmt: skip
"""Nothing but shifts, of four pixels at most a frame."""
FRAME_MAP = Preprocess(height=96, width=128, policy="stretch").map(96, 128)


class Truthful:
    """Says what is true; it is given the number of the frame."""

    def __init__(self, scene: Scene, *, still: bool = False) -> None:
        """still: what is true of the frame a track began in."""
        self._scene, self._still = scene, still
        self._points, self._objects = scene.points.shape[1], scene.boxes.shape[1]

    def init_state(self) -> dict[int, int]:
        return {}

    def add(self, queries: Sequence[Query], state: dict[int, int], *, age: int = 0) -> dict[int, int]:
        assert age == 0
        return {**state, **{query.id: state[-1] for query in queries}}

    def step(self, tokens: int, state: dict[int, int]) -> tuple[Tracks, dict[int, int]]:
        """The state has the frame of each id, and the newest one at -1."""
        ids = [id for id in state if id >= 0]
        frame_of = {id: state[id] if self._still else tokens for id in ids}
        # Nobody promises an order.
        ids.reverse()
        points = [id for id in ids if id < self._points]
        boxes = [id for id in ids if self._points <= id < self._points + self._objects]
        masks = [id for id in ids if id >= self._points + self._objects]
        tracks = Tracks(
            points=self._point_tracks(points, frame_of),
            boxes=self._box_tracks(boxes, frame_of),
            masks=self._mask_tracks(masks, frame_of),
        )
        return tracks, {**state, -1: tokens}

    def _point_tracks(self, ids: list[int], frame_of: dict[int, int]) -> PointTracks:
        xy = np.array([self._scene.points[frame_of[id], id] for id in ids], np.float32).reshape(-1, 2) / 16
        visible = np.array([self._scene.visible[frame_of[id], id] for id in ids], bool)
        return PointTracks(ids=np.array(ids, np.uint64), xy=xy, status=status(visible), confidence=share(visible))

    def _box_tracks(self, ids: list[int], frame_of: dict[int, int]) -> BoxTracks:
        xyxy = np.array([self._scene.boxes[frame_of[id], id - self._points] for id in ids], np.float32).reshape(-1, 4)
        seen = ~np.isnan(xyxy[:, 0])
        return BoxTracks(
            ids=np.array(ids, np.uint64), xyxy=np.nan_to_num(xyxy) / 16, status=status(seen), confidence=share(seen)
        )

    def _mask_tracks(self, ids: list[int], frame_of: dict[int, int]) -> MaskTracks:
        objects = [id - self._points - self._objects + 1 for id in ids]
        masks = [self._scene.labels[frame_of[id]] == label for id, label in zip(ids, objects, strict=True)]
        soft = np.array([cell_coverage(mask, FRAME_MAP) for mask in masks], np.float32).reshape(-1, 6, 8)
        seen = np.array([plane.any() for plane in soft], bool)
        return MaskTracks(ids=np.array(ids, np.uint64), soft=soft, status=status(seen), confidence=share(seen))


def status(visible: np.ndarray) -> np.ndarray:
    return np.where(visible, Status.VISIBLE, Status.OCCLUDED).astype(np.uint8)


def share(visible: np.ndarray) -> np.ndarray:
    return visible.astype(np.float32)


def method_of(scene: Scene, *, still: bool = False) -> Method:
    def count(frame: np.ndarray, number: int) -> tuple[int, int]:
        assert np.array_equal(frame, scene.video[number])
        return number, number + 1

    return Method("truth", Truthful(scene, still=still), count, lambda: 0)


@pytest.mark.parametrize("seed", range(3))
def test_the_truth_scores_full_marks(seed: int) -> None:
    scene = generate_scene(SMALL, seed)
    scores = score(follow(method_of(scene), scene), scene)
    assert scores.points.average_jaccard == scores.points.position_accuracy == scores.points.occlusion_accuracy == 1
    assert scores.box_iou == pytest.approx(1, abs=1e-6)
    # Cells of 16 pixels cannot hold a mask of 48 exactly.
    assert 0.5 < scores.mask_iou < 1
    for cases in (scores.point_cases, scores.box_cases):
        assert len(cases.truth) and np.array_equal(cases.confidence, cases.truth)
    assert len(scores.point_cases.truth) == sum(SMALL.num_frames - 1 - start for start in point_starts(scene))
    assert scores.encode_ms.shape == scores.track_ms.shape == (10,) and (scores.track_ms > 0).all()


def test_what_stands_still_scores_less() -> None:
    scene = generate_scene(SMALL, 1)
    moving, still = (score(follow(method_of(scene, still=value), scene), scene) for value in (False, True))
    assert still.points.average_jaccard < 0.7 and still.points.position_accuracy < 0.8
    assert still.box_iou < 0.9 and still.mask_iou < moving.mask_iou


def test_queries_are_what_is_seen_when_they_are_asked() -> None:
    scene = generate_scene(SMALL, 2)
    queries = scene_queries(scene, FRAME_MAP)
    assert sorted(query.id for frame in queries for query in frame) == list(range(16 + 2 + 2))
    for t, frame in enumerate(queries):
        for query in frame:
            if isinstance(query, PointQuery):
                assert t == point_starts(scene)[query.id] and scene.visible[t, query.id]
                np.testing.assert_allclose((query.x, query.y), scene.points[t, query.id] / 16, atol=1e-5)
            elif isinstance(query, BoxQuery):
                assert t == object_starts(scene)[query.id - 16]
                corners = (query.x_min, query.y_min, query.x_max, query.y_max)
                np.testing.assert_allclose(corners, scene.boxes[t, query.id - 16] / 16, atol=1e-5)
            else:
                assert isinstance(query, MaskQuery)
                area = (scene.labels[t] == query.id - 18 + 1).sum()
                assert query.mask.sum() * 256 == pytest.approx(area, rel=1e-4)


def test_an_object_that_is_never_seen_is_not_asked_for() -> None:
    scene = generate_scene(SMALL, 0)
    scene.seen_share[:, 1] = 0
    assert object_starts(scene)[1] == 10
    assert 17 not in [query.id for frame in scene_queries(scene, FRAME_MAP) for query in frame]
    scene.seen_share[:, 1] = [0.1, 0.3, 0.5, 0.4, 0, 0, 0, 0, 0, 0]
    assert object_starts(scene)[1] == 2
    scene.seen_share[5:, 1] = 0.7
    assert object_starts(scene)[1] == 5


def shifted_scene(seed: int, frames: int = 5) -> Scene:
    """A picture that moves to the right by one cell a frame, with a square of it as the object."""
    rng = np.random.default_rng(seed)
    picture = make_texture(rng, make_palette(rng), 128, 128 + 16 * frames)
    video = np.stack([picture[:, 16 * (frames - 1 - t) :][:, :128] for t in range(frames)])
    labels, boxes = np.zeros((frames, 128, 128), np.uint8), np.zeros((frames, 1, 4), np.float32)
    for t in range(frames):
        boxes[t, 0] = left, *_, bottom = 16 + 16 * t, 48, 48 + 16 * t, 80
        labels[t, 48:bottom, left : left + 32] = 1
    starts = rng.uniform((8, 8), (120 - 16 * frames, 120), (24, 2))
    points = starts + np.arange(frames)[:, None, None] * np.array([16, 0])
    return Scene(
        video=video,
        labels=labels,
        boxes=boxes,
        amodal_boxes=boxes,
        seen_share=np.ones((frames, 1), np.float32),
        points=points.astype(np.float32),
        visible=np.ones((frames, 24), bool),
        point_layers=np.zeros(24, np.intp),
        layer_to_image=np.zeros((frames, 2, 2, 3)),
    )


@pytest.mark.parametrize(
    ("name", "least_jaccard", "least_iou"),
    [("raw pixels", 0.4, 0.6), ("colour histogram", 0.4, 0.6), ("optical flow", 0.9, 0.65)],
)
def test_baselines_follow_a_picture_that_shifts_by_whole_cells(
    name: str, least_jaccard: float, least_iou: float
) -> None:
    method = next(method for method in baseline_methods(FeatureTracker(grid=(8, 8))) if method.name == name)
    scores = [score(follow(method, scene), scene) for scene in map(shifted_scene, range(3))]
    assert np.mean([s.points.average_jaccard for s in scores]) > least_jaccard
    assert np.mean([s.box_iou for s in scores]) > least_iou
    assert np.mean([s.mask_iou for s in scores]) > least_iou
    for cases in (scores[0].point_cases, scores[0].box_cases, scores[0].mask_cases):
        assert ((cases.confidence >= 0) & (cases.confidence <= 1)).all()


def test_optical_flow_follows_slow_shapes() -> None:
    method = baseline_methods(FeatureTracker(grid=(16, 16)))[2]
    scores = [score(follow(method, scene), scene) for scene in (generate_scene(EASY, seed) for seed in range(2))]
    assert np.mean([s.points.average_jaccard for s in scores]) > 0.85
    assert np.mean([s.box_iou for s in scores]) > 0.9 and np.mean([s.mask_iou for s in scores]) > 0.8


def test_an_interrupted_evaluation_has_whole_scenes() -> None:
    scene_frames: list[int] = []

    def progress(name: str, done: int) -> None:
        scene_frames.append(done)
        if sum(scene_frames) == SMALL.num_frames + 4:
            raise KeyboardInterrupt

    method = baseline_methods(FeatureTracker(grid=(6, 8)))[2]
    evaluation = Evaluation(SMALL, ["optical flow"])
    with pytest.raises(KeyboardInterrupt):
        evaluate([method], evaluation, range(7, 10), progress)
    assert evaluation.seeds == [7] and len(evaluation.scores) == 1
    assert evaluation.shown and len(evaluation.shown[1]) == 1


class StandInEngine:
    """Counts its steps in its state; the features are the count."""

    def init_state(self) -> int:
        return 0

    def step(self, frames: np.ndarray, state: int) -> tuple[torch.Tensor, int]:
        assert frames.shape == (1, 96, 128, 3)
        return torch.full((1, 49, 4), float(state), dtype=torch.bfloat16), state + 1


def test_features_of_an_engine_are_followed_in_order() -> None:
    engine: Any = StandInEngine()
    method = engine_method("stand-in", engine, FeatureTracker(grid=(6, 8)))
    frame = np.zeros((96, 128, 3), np.uint8)
    tokens, state = method.encode(frame, method.init_state())
    tokens, state = method.encode(frame, state)
    assert state == 2 and tokens.shape == (49, 4) and tokens.dtype == torch.float32 and (tokens == 1).all()
