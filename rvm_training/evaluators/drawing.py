"""Pictures of what benchmarks measure: frames of a video beside each other, with what was found and what is true."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.draw_tracks import color_of
from rvm_core.visualize import side_by_side

UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
Float64Array = npt.NDArray[np.float64]

HEIGHT = 240
"""Of each frame in a sheet, pixels."""
_TRUTH = (255, 255, 255)
_MOST_POINTS = 64


def to_height(image: UInt8Array, height: int = HEIGHT) -> UInt8Array:
    """The image in another size and the same shape."""
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def point_picture(
    images: Sequence[UInt8Array], xy: Float64Array, visible: BoolArray, true_xy: Float64Array, true_visible: BoolArray
) -> UInt8Array:
    """Points found, (K, P, 2) as shares of the image, NaN for none; a line leads from each to where it is seen."""
    drawn = []
    for k, image in enumerate(images):
        canvas = np.ascontiguousarray(to_height(image))
        scale = np.array([canvas.shape[1], canvas.shape[0]])
        for p in np.flatnonzero(np.isfinite(xy[k]).all(axis=-1))[:_MOST_POINTS].tolist():
            at, colour = _pixel(xy[k, p] * scale), color_of(p)
            if true_visible[k, p]:
                cv2.line(canvas, at, _pixel(true_xy[k, p] * scale), _TRUTH, 1, cv2.LINE_AA)
            cv2.circle(canvas, at, 3, colour, -1 if visible[k, p] else 1, cv2.LINE_AA)
        drawn.append(canvas)
    return side_by_side(drawn)


def box_picture(images: Sequence[UInt8Array], found: Float64Array, truth: Float64Array) -> UInt8Array:
    """Boxes found and true, (K, B, 4) in pixels of the images, NaN where there is none; the true ones are white."""
    drawn = []
    for k, image in enumerate(images):
        canvas = np.ascontiguousarray(to_height(image))
        scale = canvas.shape[0] / image.shape[0]
        for boxes, thickness in ((truth[k], 1), (found[k], 2)):
            for b, box in enumerate(boxes):
                if np.isfinite(box).all():
                    colour = _TRUTH if thickness == 1 else color_of(b)
                    low, high = _pixel(box[:2] * scale), _pixel(box[2:] * scale)
                    cv2.rectangle(canvas, low, high, colour, thickness, cv2.LINE_AA)
        drawn.append(canvas)
    return side_by_side(drawn)


def depth_picture(image: UInt8Array, found: Float64Array, truth: Float64Array) -> UInt8Array:
    """A frame, the depth found and the true depth (h, w), near bright, black where nothing was measured."""
    measured = truth[truth > 0]
    far = 1.2 * float(np.percentile(measured, 98)) if measured.size else 1.0
    height, width = truth.shape
    frame = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    maps = [_depth_colours(found, far), np.where((truth > 0)[..., None], _depth_colours(truth, far), 0)]
    return side_by_side([to_height(np.asarray(part, np.uint8)) for part in (frame, *maps)])


def _depth_colours(depth: Float64Array, far: float) -> UInt8Array:
    near = np.clip(255 * (1 - depth / far), 0, 255).astype(np.uint8)
    return np.asarray(cv2.applyColorMap(near, cv2.COLORMAP_INFERNO)[..., ::-1], np.uint8)


def _pixel(xy: npt.ArrayLike) -> tuple[int, int]:
    x, y = np.clip(np.asarray(xy, np.float64), -10000, 10000)
    return int(np.floor(x)), int(np.floor(y))
