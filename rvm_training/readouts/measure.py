"""What a trained readout is worth on held-out clips, by the evaluators of `rvm eval`, as the node would use it.

T frames, Q tracks, C coordinates. Points and boxes are followed by the tracker that `create_tracker` makes of the file,
each from the first frame it may begin in; what counts are the frames after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rvm_core.readout_checkpoint import load_readout
from rvm_core.tracking.base import BoxQuery, PointQuery, Query, Status, Tracker
from rvm_core.tracking.create import create_tracker
from rvm_training.evaluators.classification import top_1
from rvm_training.evaluators.depth import abs_rel
from rvm_training.evaluators.overlap import box_iou, mean_after_start
from rvm_training.evaluators.pose import end_point_error
from rvm_training.evaluators.tap_vid import TapVidMetrics, mean_metrics, tap_vid_metrics
from rvm_training.feature_cache import FeatureStore
from rvm_training.readouts.clips import Task
from rvm_training.readouts.tasks import own_truth

Metrics = dict[str, float]
Advance = Callable[[int], object]
"""Is told how many more clips are measured."""

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

LESS_IS_BETTER = ("abs_rel", "end_point_error")


def measure(
    task: Task,
    head: Path | None,
    held_out: FeatureStore,
    grid: tuple[int, int],
    *,
    limit: int | None = None,
    advance: Advance = lambda done: None,
) -> Metrics:
    """Figures of a file on the held-out clips, or on the first `limit` of them.

    head: None: the tracker without training, for points and boxes. Figures are shares, and for poses in the unit of the
    cameras; NaN where nothing counts.
    """
    clips = _clips(held_out, task, limit, advance)
    if task in ("points", "boxes"):
        return _tracks(task, head, clips, grid)
    if head is None:
        raise ValueError(f"there is nothing to measure of {task} without a readout")
    readout = load_readout(head)
    with torch.no_grad():
        found = [(_numpy(readout(features)), truth) for features, truth in clips]
    if task == "class":
        return {
            "top_1": top_1(np.stack([logits[0] for logits, _ in found]), [int(truth["label"]) for _, truth in found])
        }
    if task == "depth":
        errors = [abs_rel(np.exp(depth[0, ..., 0]), truth["metres"]) for depth, truth in found]
        return {"abs_rel": float(np.nanmean(errors))}
    poses = [
        end_point_error(rotation, translation, truth["rotation"][None], truth["translation"][None])
        for (rotation, translation), truth in found
    ]
    return {"end_point_error": float(np.mean(poses))}


def _clips(
    held_out: FeatureStore, task: Task, limit: int | None, advance: Advance
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    for index in held_out.usable[:limit].tolist():
        examples = own_truth(held_out.batch([index]), task)
        yield examples.features, {name: values[0].numpy() for name, values in examples.truth.items()}
        advance(1)


def _numpy(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(part.double().cpu().numpy() for part in output)
    return output.double().cpu().numpy()


def _tracks(
    task: Task, head: Path | None, clips: Iterator[tuple[Tensor, dict[str, Any]]], grid: tuple[int, int]
) -> Metrics:
    points: list[TapVidMetrics] = []
    overlaps: list[float] = []
    for features, truth in clips:
        tracker = create_tracker(
            grid,
            features.shape[-1],
            point_head=head if task == "points" else None,
            box_head=head if task == "boxes" else None,
        )
        startable = truth["startable"].copy()
        startable[-1] = False
        asked = startable.any(axis=0)
        if not asked.any():
            continue
        starts = startable[:, asked].argmax(axis=0)
        positions, visible = truth["positions"][:, asked], truth["visible"][:, asked] & truth["valid"][:, asked]
        found, said = follow(tracker, features[0], starts, positions)
        if task == "points":
            points.append(
                tap_vid_metrics(
                    query_frames=starts,
                    points=positions,
                    occluded=~visible,
                    predicted_points=found,
                    predicted_occluded=~said,
                    image_size=(1, 1),
                )
            )
        else:
            iou = box_iou(found, np.where(visible[..., None], positions, np.nan))
            overlaps.append(mean_after_start(iou, starts))
    if overlaps:
        return {"box_iou": float(np.nanmean(overlaps))}
    if not points:
        return {}
    mean = mean_metrics(points)
    return {
        "average_jaccard": mean.average_jaccard,
        "position_accuracy": mean.position_accuracy,
        "occlusion_accuracy": mean.occlusion_accuracy,
    }


@torch.no_grad()
def follow(
    tracker: Tracker[Any], features: Tensor, starts: npt.NDArray[np.intp], positions: FloatArray
) -> tuple[FloatArray, BoolArray]:
    """Has a tracker follow points or boxes through features (T, N+1, D).

    starts (Q,): frame of each query; positions (T, Q, C) in shares, looked at only there. Returns positions (T, Q, C)
    in shares and whether they are said to be visible (T, Q), which mean something after the query only.
    """
    rows, columns = tracker.grid
    coordinates = positions.shape[-1]
    scale = np.array([columns, rows] * (coordinates // 2), np.float64)
    found = np.zeros(positions.shape)
    said = np.zeros(positions.shape[:2], bool)
    state = tracker.init_state()
    for t, tokens in enumerate(features):
        tracks, state = tracker.step(tokens, state)
        part = tracks.points if coordinates == 2 else tracks.boxes
        index = part.ids.astype(np.intp)
        places = tracks.points.xy if coordinates == 2 else tracks.boxes.xyxy
        found[t, index] = places / scale
        said[t, index] = part.status == Status.VISIBLE
        queries = [_query(id, positions[t, id] * scale) for id in np.flatnonzero(starts == t).tolist()]
        state = tracker.add(queries, state) if queries else state
    return found, said


def _query(id: int, place: FloatArray) -> Query:
    numbers = [float(value) for value in place]
    if len(numbers) == 2:
        return PointQuery(id=id, x=numbers[0], y=numbers[1])
    return BoxQuery(id=id, x_min=numbers[0], y_min=numbers[1], x_max=numbers[2], y_max=numbers[3])
