"""The film of a replayed camera: its features as colours over its images, and the tracks on top."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.draw_tracks import TrackTails, draw_tracks
from rvm_core.tracking.base import BoxTracks, PointTracks, Status
from rvm_core.tracking.pixels import PixelTracks
from rvm_core.visualize import PCAColors, overlay
from rvm_perception.conversions import image_to_labels
from rvm_perception.feature_map import feature_map_to_numpy
from rvm_perception.replay_outputs import TRACK_FIELDS, FrameMessages, stamp_of
from rvm_perception.video import write_video

UInt8Array = npt.NDArray[np.uint8]

_MOST_FILM_PIXELS = 1280 * 720
_LONGEST_STEP_MS = 2000


def write_film(
    path: Path,
    frames: Iterator[FrameMessages],
    images: Callable[[int], UInt8Array],
    colors: PCAColors,
    *,
    rate: float,
    alpha: float,
) -> None:
    """Writes the features as colours over the images, and the tracks on top.

    images: gives the source image (H, W, 3) RGB of the frame at a time, asked for in order. All pictures have the size
    of the first, at most `_MOST_FILM_PIXELS`. rate: nominal, frames per second.
    """
    write_video(path, _pictures(frames, images, colors, rate, alpha), rate=rate)


def _pictures(
    frames: Iterator[FrameMessages],
    images: Callable[[int], UInt8Array],
    colors: PCAColors,
    rate: float,
    alpha: float,
) -> Iterator[tuple[int, UInt8Array]]:
    tails = TrackTails(max(2, round(rate)))
    size: tuple[int, int] | None = None
    milliseconds, last_stamp = 0.0, None
    for frame in frames:
        message = frame.features
        image = images(frame.time_ns)
        shown = overlay(
            image,
            colors.color(feature_map_to_numpy(message)),
            np.asarray(message.grid_to_image, np.float64).reshape(2, 3),
            alpha,
        )
        tracks, labels = pixel_tracks(frame)
        tails.update(tracks, int(message.epoch))
        mask = frame.messages.get("mask")
        segments = image_to_labels(mask) if mask is not None and "mask_tracks" in frame.messages else None
        shown = draw_tracks(shown, tracks, tails=tails, labels=labels, segments=segments)
        stamp = stamp_of(message)
        if last_stamp is not None:
            step = (stamp - last_stamp) / 1e6
            # A clock that was set and a long pause are not shown as such.
            milliseconds += step if 1 <= step <= _LONGEST_STEP_MS else 1000 / rate
        last_stamp = stamp
        size = size or _film_size(image)
        yield round(milliseconds), _fitted(shown, size)


def _film_size(image: UInt8Array) -> tuple[int, int]:
    height, width = image.shape[:2]
    scale = min(1.0, (_MOST_FILM_PIXELS / (height * width)) ** 0.5)
    return max(2, round(height * scale)), max(2, round(width * scale))


def _fitted(image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """The image within a picture of this size, with black around it where its shape is another."""
    if image.shape[:2] == size:
        return image
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (
        max(1, min(limit, round(length * scale))) for length, limit in zip(image.shape, size, strict=False)
    )
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    picture[top : top + height, left : left + width] = cv2.resize(image, (width, height), interpolation=method)
    return picture


def pixel_tracks(frame: FrameMessages) -> tuple[PixelTracks, dict[int, str]]:
    """The tracks of a frame, without those lost, and their labels by id."""
    points, boxes = frame.messages.get("point_tracks"), frame.messages.get("box_tracks")
    labels: dict[int, str] = {}
    for name in TRACK_FIELDS:
        if (message := frame.messages.get(name)) is not None:
            labels |= {id: label for id, label in zip(message.ids.tolist(), message.labels, strict=True) if label}
    return PixelTracks(
        points=PointTracks(**_arrays(points, ("x", "y"), "xy")) if points is not None else PointTracks(),
        boxes=(
            BoxTracks(**_arrays(boxes, ("x_min", "y_min", "x_max", "y_max"), "xyxy"))
            if boxes is not None
            else BoxTracks()
        ),
    ), labels


def _arrays(message: Any, fields: Sequence[str], name: str) -> dict[str, Any]:
    kept = message.status != Status.LOST
    return {
        "ids": message.ids[kept],
        "status": message.status[kept],
        "confidence": message.confidence[kept],
        name: np.stack([getattr(message, field)[kept] for field in fields], axis=-1),
    }
