"""A contact sheet of tracks: the truth and what each method made of it, a row each, time from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.atomic import atomic_file
from rvm_core.draw_tracks import draw_tracks
from rvm_core.tracking.base import BoxTracks, PointTracks, Status
from rvm_core.tracking.pixels import PixelTracks
from rvm_training.data.scenes import Scene
from rvm_training.evaluators.synthetic import Followed

FRAMES = 5
_TITLE_HEIGHT = 22
_LEAST_SIDE = 400
"""Smaller frames are enlarged, so that the tracks on them can be told apart, pixels."""

UInt8Array = npt.NDArray[np.uint8]


def write_picture(scene: Scene, names: Sequence[str], followed: Sequence[Followed], path: Path) -> None:
    """Writes a PNG of one scene: discs for points, hollow where they are said to be occluded, boxes and segments."""
    picture = make_picture(scene, names, followed)
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.tobytes())


def make_picture(scene: Scene, names: Sequence[str], followed: Sequence[Followed]) -> UInt8Array:
    """The contact sheet, (rows, columns, 3) RGB."""
    chosen = np.unique(np.linspace(1, len(scene.video) - 1, FRAMES).round().astype(int))
    first_mask = scene.points.shape[1] + scene.boxes.shape[1]
    strips = [_strip("truth", scene, chosen, [true_tracks(scene, t) for t in chosen], scene.labels, first_mask)]
    for name, result in zip(names, followed, strict=True):
        strips.append(_strip(name, scene, chosen, [result.tracks[t] for t in chosen], result.labels, first_mask))
    return np.concatenate(strips)


def true_tracks(scene: Scene, t: int) -> PixelTracks:
    """The truth of a frame as a tracker would say it, with the ids of `scene_queries`."""
    count = scene.points.shape[1]
    seen = np.flatnonzero(~np.isnan(scene.boxes[t, :, 0]))
    return PixelTracks(
        points=PointTracks(
            ids=np.arange(count, dtype=np.uint64),
            xy=scene.points[t],
            status=np.where(scene.visible[t], Status.VISIBLE, Status.OCCLUDED).astype(np.uint8),
            confidence=np.ones(count, np.float32),
        ),
        boxes=BoxTracks(
            ids=(count + seen).astype(np.uint64),
            xyxy=scene.boxes[t, seen],
            status=np.full(len(seen), Status.VISIBLE, np.uint8),
            confidence=np.ones(len(seen), np.float32),
        ),
    )


def _strip(
    name: str,
    scene: Scene,
    chosen: npt.NDArray[np.intp],
    tracks: Sequence[PixelTracks],
    labels: UInt8Array,
    first_mask: int,
) -> UInt8Array:
    factor = -(-_LEAST_SIDE // min(labels.shape[1:]))
    first_box = first_mask - scene.boxes.shape[1]
    frames = []
    for t, found in zip(chosen, tracks, strict=True):
        # Segments get the ids of the boxes, so that the colours of one object agree.
        segments = np.where(labels[t] > 0, labels[t].astype(np.uint16) + np.uint16(first_box - 1), np.uint16(0))
        frame, segments = _enlarged(scene.video[t], factor), _enlarged(segments, factor)
        frames.append(draw_tracks(frame, _scaled(found, factor), segments=segments))
    strip = np.concatenate(frames, axis=1)
    title = np.zeros((_TITLE_HEIGHT, strip.shape[1], 3), np.uint8)
    cv2.putText(title, name, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([title, strip])


def _enlarged(image: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _scaled(tracks: PixelTracks, factor: int) -> PixelTracks:
    return replace(
        tracks,
        points=replace(tracks.points, xy=tracks.points.xy * factor),
        boxes=replace(tracks.boxes, xyxy=tracks.boxes.xyxy * factor),
    )
