"""Exact tracks of points in a video of MOVi: pixels lifted by their depth and moved with the rigid body they are on.

T frames, P points, O objects. Conventions as in `datasets.movi`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rvm_training.datasets.movi import MoviVideo

DEPTH_TOLERANCE = 0.05
"""A point is seen where the pixel shows its object at its depth, up to this share: depth is of pixel centres, and
slanted surfaces change within a pixel."""

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def point_tracks(video: MoviVideo, count: int, rng: np.random.Generator) -> tuple[Float64Array, BoolArray]:
    """Positions (T, P, 2) in shares of the image and whether each is visible (T, P).

    Points are drawn from random frames, evenly over the objects that are seen there and the background.
    """
    frames, height, width = video.labels.shape
    tracks, seen = np.empty((frames, count, 2)), np.empty((frames, count), bool)
    for index in range(count):
        start = int(rng.integers(frames))
        label = int(rng.choice(np.unique(video.labels[start])))
        rows, columns = np.nonzero(video.labels[start] == label)
        chosen = int(rng.integers(len(rows)))
        tracks[:, index], seen[:, index] = follow_pixel(video, start, int(rows[chosen]), int(columns[chosen]))
    return tracks / (width, height), seen


def follow_pixel(video: MoviVideo, start: int, row: int, column: int) -> tuple[Float64Array, BoolArray]:
    """Where the middle of a pixel of frame `start` is in each frame, (T, 2) in pixels, and whether it is seen, (T,)."""
    frames, height, width = video.labels.shape
    label = int(video.labels[start, row, column])
    ray = np.linalg.solve(video.intrinsics, np.array([column + 0.5, row + 0.5, 1.0]))
    camera = video.world_to_camera[start]
    world = camera[:, :3].T @ (ray * float(video.depth[start, row, column]) - camera[:, 3])
    if label:
        poses = video.object_to_world[:, label - 1]
        own = poses[start, :, :3].T @ (world - poses[start, :, 3])
        places = poses[:, :, :3] @ own + poses[:, :, 3]
    else:
        places = np.broadcast_to(world, (frames, 3))
    in_camera = np.einsum("tij,tj->ti", video.world_to_camera[:, :, :3], places) + video.world_to_camera[:, :, 3]
    depth = in_camera[:, 2]
    front = depth > 1e-6
    image = in_camera @ video.intrinsics.T
    track = image[:, :2] / np.where(front, depth, 1.0)[:, None]
    inside = front & np.all((track >= 0) & (track < (width, height)), axis=1)
    x, y = np.where(inside[:, None], track, 0).astype(np.intp).T
    at = np.arange(frames), y, x
    near = np.abs(video.depth[at] - depth) < DEPTH_TOLERANCE * np.maximum(depth, 1e-6)
    return np.where(front[:, None], track, 0.0), inside & (video.labels[at] == label) & near
