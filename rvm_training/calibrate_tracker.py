"""Fits the constants that turn the evidence of training-free tracking into visibility and confidence.

    python -m rvm_training.calibrate_tracker --scenes 40 [--weights rvm_s16]

prints VISIBILITY and CONFIDENCE of rvm_core/tracking/points.py and segments.py, with the calibration error that they
have on as many other scenes. The cases are those of synthetic scenes, followed with several kinds of features, so that
the constants depend on no weights. As the tracker acts on visibility, the fit is repeated with what it gave.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from rvm_core.checkpoint import load_encoder
from rvm_core.preprocess import FrameMap, Preprocess
from rvm_core.tracking import FeatureTracker, points, segments
from rvm_core.tracking.feature_tracker import FeatureState
from rvm_core.tracking.pixels import label_image, tracks_to_pixels
from rvm_core.weights import find_weights
from rvm_training.baselines import colour_tokens, pixel_tokens
from rvm_training.data.scenes import Scene, SceneConfig, generate_scene
from rvm_training.evaluators.calibration import apply_logistic, fit_logistic, reliability
from rvm_training.evaluators.overlap import box_iou, label_iou
from rvm_training.evaluators.synthetic import NEAR, OVERLAP, UInt8Array, scene_queries
from rvm_training.evaluators.tap_vid import RASTER

SCENES = SceneConfig(num_frames=32, num_objects=8, object_size=0.14, speed=0.03)
"""Busier than usual, so that a fifth of the objects is hidden."""
ROUNDS = 2
SHOWN = 0.1
"""Share of an object from which it counts as visible."""

Cases = dict[str, list[tuple[npt.NDArray[np.float64], bool]]]
"""Evidence and truth, by the name of what they decide."""
Encode = Callable[[UInt8Array], torch.Tensor]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40, help="how many to fit with, and as many to check with")
    parser.add_argument("--weights", help="also follow with RVM's features by these weights: a name or a file")
    args = parser.parse_args(argv)
    for round_ in range(1, ROUNDS + 1):
        fitted = _fit(_collect(args.weights, range(args.scenes), f"round {round_}"))
        _apply(fitted)
    checked = _collect(args.weights, range(args.scenes, 2 * args.scenes), "check")
    for name, weights in fitted.items():
        evidence, truth = _arrays(checked[name])
        error = reliability(apply_logistic(evidence, weights), truth).expected_calibration_error
        print(f"{name}: {tuple(weights.round(2).tolist())}, calibration error {error:.3f}, {truth.mean():.2f} are true")
    return 0


def _apply(fitted: dict[str, npt.NDArray[np.float64]]) -> None:
    constants = {name: tuple(weights.round(2).tolist()) for name, weights in fitted.items()}
    points.VISIBILITY, points.CONFIDENCE = constants["point visible"], constants["point right"]
    segments.VISIBILITY = constants["segment visible"]
    segments.CONFIDENCE = {"box": constants["box right"], "mask": constants["mask right"]}


def _fit(cases: Cases) -> dict[str, npt.NDArray[np.float64]]:
    return {name: fit_logistic(*_arrays(found)) for name, found in cases.items()}


def _arrays(cases: list[tuple[npt.NDArray[np.float64], bool]]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    return np.stack([evidence for evidence, _ in cases]), np.array([truth for _, truth in cases])


def _collect(weights: str | None, seeds: range, text: str) -> Cases:
    height, width = SCENES.height, SCENES.width
    frame_map = Preprocess(height=height, width=width, policy="stretch").map(height, width)
    tracker = FeatureTracker((frame_map.rows, frame_map.cols))
    cases: Cases = {}
    for seed in tqdm(seeds, desc=text, file=sys.stderr):
        scene = generate_scene(SCENES, seed)
        for tokens in _all_features(scene, weights):
            for name, evidence, truth in _follow(scene, tokens, tracker, frame_map):
                cases.setdefault(name, []).append((evidence, truth))
    return cases


def _all_features(scene: Scene, weights: str | None) -> Iterator[list[torch.Tensor]]:
    """The tokens of all frames, for one kind of features after the other."""
    for encode in (pixel_tokens, colour_tokens):
        yield [encode(frame) for frame in scene.video]
    if weights:
        model = load_encoder(find_weights(weights))
        height, width = scene.video.shape[1:3]
        state, tokens = model.init_state(1, height, width), []
        with torch.no_grad():
            for frame in scene.video:
                features, state = model(torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255, state)
                tokens.append(features[0])
        yield tokens


def _follow(
    scene: Scene, tokens: list[torch.Tensor], tracker: FeatureTracker, frame_map: FrameMap
) -> Iterator[tuple[str, npt.NDArray[np.float64], bool]]:
    queries = scene_queries(scene, frame_map)
    count, objects = scene.points.shape[1], scene.boxes.shape[1]
    scale = np.array([RASTER / frame_map.source_width, RASTER / frame_map.source_height])
    state: FeatureState = tracker.init_state()
    for t, features in enumerate(tokens):
        tracks, state = tracker.step(features, state)
        in_pixels = tracks_to_pixels(tracks, frame_map)
        evidence = state.points.evidence.double().numpy()
        for number, (id_, xy) in enumerate(zip(in_pixels.points.ids, in_pixels.points.xy, strict=True)):
            visible = bool(scene.visible[t, id_])
            near = np.linalg.norm((xy - scene.points[t, id_]) * scale) < NEAR
            yield "point visible", evidence[number], visible
            yield "point right", evidence[number], visible and bool(near)
        labels = label_image(tracks.masks, frame_map, [int(id_) - count - objects + 1 for id_ in tracks.masks.ids])
        overlap = label_iou(labels[None].astype(np.uint8), scene.labels[t : t + 1], objects)[0]
        boxes = np.full((1, objects, 4), 0.0)
        boxes[0, in_pixels.boxes.ids.astype(int) - count] = in_pixels.boxes.xyxy
        box_overlap = box_iou(boxes, scene.boxes[t : t + 1])[0]
        for segment in (segment for group in state.groups for segment in group.segments):
            number = (segment.id - count) % objects
            shown = scene.seen_share[t, number] > 0
            kind = "box" if segment.is_box else "mask"
            right = shown and (box_overlap if segment.is_box else overlap)[number] > OVERLAP
            yield "segment visible", np.array(segment.evidence), bool(scene.seen_share[t, number] >= SHOWN)
            yield f"{kind} right", np.array(segment.evidence), bool(right)
        if queries[t]:
            state = tracker.add(queries[t], state)


if __name__ == "__main__":
    sys.exit(main())
