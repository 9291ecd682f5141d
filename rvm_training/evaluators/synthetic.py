"""How well points, boxes and masks are followed through synthetic scenes.

T frames, P points, O objects, H W image. Each point is asked for in the first frame it is visible in, each object, as a
box and as a mask, in the first frame that shows most of it; what is measured are the frames after that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from rvm_core.engines.base import Engine
from rvm_core.preprocess import FrameMap, Preprocess
from rvm_core.tracking.base import (
    BoxTracks,
    MaskTracks,
    PointTracks,
    Query,
    Status,
    Tracker,
    Tracks,
)
from rvm_core.tracking.pixels import PixelTracks, box_query, label_image, mask_query, point_query, tracks_to_pixels
from rvm_training.baselines import colour_tokens, pixel_tokens
from rvm_training.data.ground_truth import GroundTruth
from rvm_training.data.scenes import Scene, SceneConfig, generate_scene
from rvm_training.evaluators.overlap import box_iou, label_iou, mean_after_start
from rvm_training.evaluators.tap_vid import RASTER, TapVidMetrics, evaluated_frames, first_queries, tap_vid_metrics
from rvm_training.optical_flow import FlowTracker

MOST = 0.6
"""Share of an object that the frame shows in which it is asked for; if none does, the frame that shows most of it."""
NEAR = 8.0
"""A point's confidence is right if it is visible and so near, pixels of a 256x256 image."""
OVERLAP = 0.5
"""A box's or mask's confidence is right if the object is seen and the IoU is over this."""

UInt8Array = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.intp]
BoolArray = npt.NDArray[np.bool_]
Float64Array = npt.NDArray[np.float64]
State = TypeVar("State")


class Follower(Protocol[State]):
    """What a tracker has to do here; what `step` takes is what the method's `encode` makes of a frame."""

    def init_state(self) -> State: ...

    def add(self, queries: Sequence[Query], state: State, *, age: int = 0) -> State: ...

    def step(self, tokens: Any, state: State) -> tuple[Tracks, State]: ...


@dataclass(frozen=True)
class Method:
    """A way to follow: features and a tracker of them."""

    name: str
    follower: Follower[Any]
    encode: Callable[[UInt8Array, Any], tuple[Any, Any]]
    """(frame (H, W, 3), state) -> (what the follower takes, state)."""
    init_state: Callable[[], Any]
    """State of `encode` before the first frame."""


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Confidences beside whether they were right."""

    confidence: Float64Array
    """(n,)."""
    truth: BoolArray
    """(n,)."""


@dataclass(frozen=True, kw_only=True)
class SceneScores:
    """How a method did in one scene."""

    points: TapVidMetrics
    box_iou: float
    """Mean over objects and frames after the first that show something of the object; boxes around what is seen."""
    mask_iou: float
    """The same for masks, and all frames: where nothing is seen, nothing should be found."""
    point_cases: Cases
    box_cases: Cases
    mask_cases: Cases
    encode_ms: Float64Array
    """(T,): time for features, milliseconds."""
    track_ms: Float64Array
    """(T,): time for tracking, milliseconds."""


@dataclass
class Evaluation:
    """What was measured. Grows while it is measured, so that an interrupted run has its part."""

    config: SceneConfig
    methods: list[str]
    seeds: list[int] = field(default_factory=list)
    scores: list[list[SceneScores]] = field(default_factory=list)
    """By scene, then by method."""
    shown: tuple[Scene, list[Followed]] | None = None
    """The first scene, and what each method made of it."""


@dataclass(frozen=True)
class Followed:
    """What a method said of a scene."""

    tracks: list[PixelTracks]
    """By frame."""
    labels: UInt8Array
    """(T, H, W): which object's segment each pixel is in, from 1; 0 is none."""
    encode_ms: Float64Array
    track_ms: Float64Array


def engine_method(name: str, engine: Engine, tracker: Tracker[Any]) -> Method:
    """RVM's features, by an engine for one stream, and a tracker of them."""

    def encode(frame: UInt8Array, state: Any) -> tuple[torch.Tensor, Any]:
        features, state = engine.step(frame[None], state)
        # To the CPU, which also waits for what a device still computes.
        return features[0].float().cpu(), state

    return Method(name, tracker, encode, engine.init_state)


def baseline_methods(tracker: Tracker[Any]) -> list[Method]:
    """The same tracker on raw pixels and on histograms of colours, and optical flow."""
    plain = (("raw pixels", pixel_tokens), ("colour histogram", colour_tokens))
    return [Method(name, tracker, _stateless(function), _nothing) for name, function in plain] + [
        Method("optical flow", FlowTracker(tracker.grid), _stateless(np.asarray), _nothing)
    ]


def _stateless(function: Callable[[UInt8Array], Any]) -> Callable[[UInt8Array, Any], tuple[Any, Any]]:
    return lambda frame, state: (function(frame), state)


def _nothing() -> None:
    return None


def evaluate(
    methods: Sequence[Method], evaluation: Evaluation, seeds: Sequence[int], progress: Callable[[str, int], None]
) -> None:
    """Adds the scores of all methods on the scenes of these seeds; a scene is added when all methods are done with it.

    progress: is told what is done, and how many frames were since the last call.
    """
    for seed in seeds:
        progress(f"scene {seed}", 0)
        scene = generate_scene(evaluation.config, seed)
        followed = []
        for method in methods:
            progress(method.name, 0)
            followed.append(follow(method, scene, lambda done, name=method.name: progress(name, done)))  # type: ignore[misc]
        scores = [score(result, scene) for result in followed]
        evaluation.shown = evaluation.shown or (scene, followed)
        evaluation.seeds.append(seed)
        evaluation.scores.append(scores)


def point_starts(scene: GroundTruth) -> IntArray:
    """(P,): the frame each point is asked for in."""
    return first_queries(scene.visible)[0]


def object_starts(scene: GroundTruth) -> IntArray:
    """(O,): the frame each object is asked for in; T if it is never seen."""
    enough = scene.seen_share >= MOST
    starts = np.where(enough.any(axis=0), enough.argmax(axis=0), scene.seen_share.argmax(axis=0))
    return np.where(scene.seen_share.any(axis=0), starts, len(scene.seen_share))


def scene_queries(scene: GroundTruth, frame_map: FrameMap) -> list[list[Query]]:
    """By frame, what is asked for. Ids: points 0 to P - 1, boxes P to P + O - 1, masks P + O to P + 2 O - 1."""
    queries: list[list[Query]] = [[] for _ in scene.video]
    count, objects = scene.points.shape[1], scene.boxes.shape[1]
    for id, t in enumerate(point_starts(scene)):
        x, y = map(float, scene.points[t, id])
        queries[t].append(point_query(id, x, y, frame_map))
    for index, t in enumerate(object_starts(scene)):
        if t < len(queries):
            x_min, y_min, x_max, y_max = map(float, scene.boxes[t, index])
            queries[t].append(box_query(count + index, x_min, y_min, x_max, y_max, frame_map))
            queries[t].append(mask_query(count + objects + index, scene.labels[t] == index + 1, frame_map))
    return queries


def follow(method: Method, scene: GroundTruth, advance: Callable[[int], None] = lambda done: None) -> Followed:
    """Has a method follow everything in a scene, whose sides must be multiples of the patch size.

    advance: is told after each frame that one more is done.
    """
    frames, height, width = scene.labels.shape
    frame_map = _frame_map(height, width)
    queries = scene_queries(scene, frame_map)
    first_mask = scene.points.shape[1] + scene.boxes.shape[1]
    tracks, labels, times = [], [], []
    encoding, state = method.init_state(), method.follower.init_state()
    for t, frame in enumerate(scene.video):
        start = time.perf_counter()
        encoded, encoding = method.encode(frame, encoding)
        middle = time.perf_counter()
        found, state = method.follower.step(encoded, state)
        times.append((middle - start, time.perf_counter() - middle))
        tracks.append(tracks_to_pixels(found, frame_map))
        values = [int(id) - first_mask + 1 for id in found.masks.ids]
        labels.append(label_image(found.masks, frame_map, values).astype(np.uint8))
        if queries[t]:
            state = method.follower.add(queries[t], state)
        advance(1)
    encode_ms, track_ms = 1e3 * np.array(times).T
    return Followed(tracks, np.stack(labels), encode_ms, track_ms)


def _frame_map(height: int, width: int) -> FrameMap:
    return Preprocess(height=height, width=width, policy="stretch").map(height, width)


def score(followed: Followed, scene: GroundTruth) -> SceneScores:
    """Compares what a method said with the truth."""
    count, objects = scene.points.shape[1], scene.boxes.shape[1]
    size = scene.labels.shape[1:]
    starts, object_start = point_starts(scene), object_starts(scene)
    xy, point_status, point_confidence = _by_id([t.points for t in followed.tracks], "xy", range(count))
    xyxy, _, box_confidence = _by_id([t.boxes for t in followed.tracks], "xyxy", range(count, count + objects))
    masks = [t.masks for t in followed.tracks]
    _, _, mask_confidence = _by_id(masks, None, range(count + objects, count + 2 * objects))
    boxes = box_iou(xyxy, scene.boxes)
    segments = label_iou(followed.labels, scene.labels, objects)
    asked = np.arange(len(scene.video))[:, None] > object_start[None]
    seen = ~np.isnan(scene.boxes[..., 0])
    offsets = (xy - scene.points) * (RASTER / size[1], RASTER / size[0])
    near = scene.visible & (np.linalg.norm(offsets, axis=2) < NEAR)
    counted = evaluated_frames(starts, len(scene.video), "first")
    return SceneScores(
        points=tap_vid_metrics(
            query_frames=starts,
            points=scene.points,
            occluded=scene.occluded,
            predicted_points=xy,
            predicted_occluded=point_status != Status.VISIBLE,
            image_size=size,
        ),
        box_iou=mean_after_start(boxes, object_start),
        mask_iou=mean_after_start(segments, object_start),
        point_cases=Cases(confidence=point_confidence[counted], truth=near[counted]),
        box_cases=Cases(confidence=box_confidence[asked], truth=(boxes > OVERLAP)[asked]),
        mask_cases=Cases(confidence=mask_confidence[asked], truth=(seen & (segments > OVERLAP))[asked]),
        encode_ms=followed.encode_ms,
        track_ms=followed.track_ms,
    )


def _by_id(
    frames: Sequence[PointTracks | BoxTracks | MaskTracks], position: str | None, ids: range
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Positions (T, n, 2 or 4), status and confidence (T, n) of these ids; 0 where a frame has none of them."""
    width = {"xy": 2, "xyxy": 4, None: 0}[position]
    places = np.zeros((len(frames), len(ids), width))
    status, confidence = np.zeros((2, len(frames), len(ids)))
    for t, tracks in enumerate(frames):
        index = tracks.ids.astype(np.intp) - ids.start
        status[t, index], confidence[t, index] = tracks.status, tracks.confidence
        if position:
            places[t, index] = getattr(tracks, position)
    return places, status, confidence
