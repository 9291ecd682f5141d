"""Between pixels of the source image and the grid of the trackers: queries in, tracks and label images out.

Shapes: h rows and w columns of the grid, H rows and W columns of the source image, M segments. Pixel coordinates are x
right and y down with centres at .5: the image covers [0, W] x [0, H].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from rvm_core.preprocess import Box, FrameMap
from rvm_core.tracking.base import (
    BoxQuery,
    BoxTracks,
    MaskQuery,
    MaskTracks,
    PointQuery,
    PointTracks,
    QueryError,
    Tracks,
)

Float32Array = npt.NDArray[np.float32]
UInt16Array = npt.NDArray[np.uint16]
BoolArray = npt.NDArray[np.bool_]

_TINY = 1e-6
"""What may be rounding, in shares of a cell and in sums of shares."""


@dataclass(frozen=True, kw_only=True)
class PixelTracks:
    """What a tracker says of one frame, in pixels of the source image. Positions may lie outside of it."""

    points: PointTracks = field(default_factory=PointTracks)
    """`xy` is in pixels."""
    boxes: BoxTracks = field(default_factory=BoxTracks)
    """`xyxy` is in pixels."""
    masks: MaskTracks = field(default_factory=MaskTracks)
    """`soft` is still of the grid: `label_image` takes it to pixels."""


def tracks_to_pixels(tracks: Tracks, frame_map: FrameMap) -> PixelTracks:
    """Tracks in grid coordinates to pixels of the source image."""
    corners = frame_map.grid_to_pixels(tracks.boxes.xyxy.reshape(-1, 2, 2))
    return PixelTracks(
        points=replace(tracks.points, xy=frame_map.grid_to_pixels(tracks.points.xy).astype(np.float32)),
        boxes=replace(tracks.boxes, xyxy=corners.reshape(-1, 4).astype(np.float32)),
        masks=tracks.masks,
    )


def point_query(id: int, x: float, y: float, frame_map: FrameMap) -> PointQuery:
    """A point in pixels as a query. Raises `QueryError` if it does not lie in the part of the image that is seen."""
    if not np.isfinite((x, y)).all():
        raise QueryError(f"point ({x:g}, {y:g}) is not finite")
    seen = seen_box(frame_map)
    if not (seen.left <= x <= seen.left + seen.width and seen.top <= y <= seen.top + seen.height):
        raise QueryError(f"point ({x:g}, {y:g}) is outside of {_describe_seen(frame_map)}")
    ((column, row),) = _on_grid([(x, y)], frame_map)
    return PointQuery(id=id, x=column, y=row)


def box_query(id: int, x_min: float, y_min: float, x_max: float, y_max: float, frame_map: FrameMap) -> BoxQuery:
    """A box in pixels as a query, cut to the part of the image that is seen.

    Raises `QueryError` if it is not finite, has no area, or none of it is seen.
    """
    text = f"box ({x_min:g}, {y_min:g}, {x_max:g}, {y_max:g})"
    if not np.isfinite((x_min, y_min, x_max, y_max)).all():
        raise QueryError(f"{text} is not finite")
    if not (x_min < x_max and y_min < y_max):
        raise QueryError(f"{text} is empty: expected x_min < x_max and y_min < y_max")
    seen = seen_box(frame_map)
    low = max(x_min, seen.left), max(y_min, seen.top)
    high = min(x_max, seen.left + seen.width), min(y_max, seen.top + seen.height)
    if low[0] < high[0] and low[1] < high[1]:
        (column_min, row_min), (column_max, row_max) = _on_grid([low, high], frame_map)
        if column_min < column_max and row_min < row_max:
            return BoxQuery(id=id, x_min=column_min, y_min=row_min, x_max=column_max, y_max=row_max)
    raise QueryError(f"{text} is outside of {_describe_seen(frame_map)}")


def mask_query(id: int, mask: BoolArray, frame_map: FrameMap) -> MaskQuery:
    """A segment, bool (H, W), as a query.

    Raises `QueryError` if it is of another size, it is empty, or none of it is seen.
    """
    shape = frame_map.source_height, frame_map.source_width
    if mask.shape != shape:
        raise QueryError(
            f"mask of {mask.shape[-1]}x{mask.shape[0]} pixels, expected the size of the image, {shape[1]}x{shape[0]}"
        )
    if not mask.any():
        raise QueryError("mask is empty")
    coverage = cell_coverage(mask, frame_map)
    if not coverage.any():
        raise QueryError(f"mask is outside of {_describe_seen(frame_map)}")
    return MaskQuery(id=id, mask=coverage)


def cell_coverage(mask: BoolArray, frame_map: FrameMap) -> Float32Array:
    """Bool (H, W) to float32 (h, w): the exact share of each cell's area that the mask covers.

    Of a cell that is partly padding, the rest counts as the whole; cells that are all padding have 0. Raises
    `ValueError` for a mask of another size than the source image.
    """
    shape = frame_map.source_height, frame_map.source_width
    if mask.shape != shape:
        raise ValueError(f"expected a mask {shape}, the size of the source image, got {mask.shape}")
    rows, columns = _shares(frame_map)
    return np.clip(rows @ (mask.astype(np.float32) @ columns.T), 0.0, 1.0, dtype=np.float32)


def label_image(masks: MaskTracks, frame_map: FrameMap, values: Sequence[int] | None = None) -> UInt16Array:
    """Which segment each pixel of the source image belongs to: uint16 (H, W), 0 where it is none.

    The soft planes are interpolated between the centres of the cells, bilinear; cells that are all padding say nothing.
    A pixel is its likeliest segment's, or background's, which has what is left to a sum of 1; among equals the
    background wins, then the first. What the model does not see of the image (`center_crop`) is background.

    values: the label of each segment, 1 to 65535; None: 1, 2, ... in their order. Raises `ValueError` for others.
    """
    soft = masks.soft
    if values is None:
        values = range(1, len(soft) + 1)
    if len(values) != len(soft) or any(not 0 < value <= 0xFFFF for value in values):
        raise ValueError(f"expected {len(soft)} values from 1 to 65535, one for each segment, got {list(values)}")
    labels = np.zeros((frame_map.source_height, frame_map.source_width), np.uint16)
    if not len(soft):
        return labels
    if soft.shape[1:] != (frame_map.rows, frame_map.cols):
        raise ValueError(f"expected masks of a grid {(frame_map.rows, frame_map.cols)}, got {soft.shape[1:]}")
    box, affine = seen_box(frame_map), frame_map.grid_to_image
    rows, columns = _shares(frame_map)
    to_rows = _bilinear(affine[1, 1], affine[1, 2] - box.top, np.any(rows, axis=1), box.height)
    to_columns = _bilinear(affine[0, 0], affine[0, 2] - box.left, np.any(columns, axis=1), box.width)
    best, total = np.zeros((2, box.height, box.width), np.float32)
    seen = labels[box.slices]
    for value, plane in zip(values, soft, strict=True):
        share = to_rows @ (plane.astype(np.float32, copy=False) @ to_columns.T)
        total += share
        seen[share > best] = value
        np.maximum(best, share, out=best)
    seen[best + total <= 1 + _TINY] = 0
    return labels


def seen_box(frame_map: FrameMap) -> Box:
    """The part of the source image that the model sees, with a margin of less than one of its pixels.

    Preprocessing may leave out such a margin (see `Preprocess.map`), where the outermost cells stand for it.
    """
    source, target = frame_map.source_box, frame_map.target_box
    left, right = _without_margin(source.left, source.width, frame_map.source_width, target.width)
    top, bottom = _without_margin(source.top, source.height, frame_map.source_height, target.height)
    return Box(left, top, right - left, bottom - top)


def _without_margin(start: int, length: int, whole: int, target_length: int) -> tuple[int, int]:
    end = start + length
    return (
        0 if start * target_length < length else start,
        whole if (whole - end) * target_length < length else end,
    )


def _on_grid(pixels: Sequence[tuple[float, float]], frame_map: FrameMap) -> list[list[float]]:
    """Pixels that are seen to (column, row), held on the grid where they lie in its margin."""
    cells: list[list[float]] = np.clip(frame_map.pixels_to_grid(pixels), 0, (frame_map.cols, frame_map.rows)).tolist()
    return cells


def _describe_seen(frame_map: FrameMap) -> str:
    seen, width, height = seen_box(frame_map), frame_map.source_width, frame_map.source_height
    if (seen.width, seen.height) == (width, height):
        return f"the image, which is {width}x{height} pixels"
    return (
        f"the part of the image that the model sees, x {seen.left} to {seen.left + seen.width} and "
        f"y {seen.top} to {seen.top + seen.height} of {width}x{height} pixels"
    )


def _shares(frame_map: FrameMap) -> tuple[Float32Array, Float32Array]:
    """(h, H) and (w, W): which share of what each row or column of cells shows of the image each pixel is."""
    affine = frame_map.grid_to_image
    return (
        _shares_along(affine[1, 1], affine[1, 2], frame_map.rows, frame_map.source_height),
        _shares_along(affine[0, 0], affine[0, 2], frame_map.cols, frame_map.source_width),
    )


def _shares_along(scale: float, offset: float, cells: int, pixels: int) -> Float32Array:
    """(cells, pixels): cell c covers scale * [c, c + 1] + offset. Rows sum to 1, or to 0 where no pixel is."""
    starts = scale * np.arange(cells)[:, None] + offset
    edges = np.arange(pixels)[None]
    overlaps = np.maximum(np.minimum(starts + scale, edges + 1) - np.maximum(starts, edges), 0.0)
    shown = overlaps.sum(axis=1, keepdims=True)
    return np.where(shown > _TINY * scale, overlaps / np.maximum(shown, _TINY * scale), 0.0).astype(np.float32)


def _bilinear(scale: float, offset: float, shown: BoolArray, pixels: int) -> Float32Array:
    """(pixels, cells): weights of the cells around each pixel, along one axis; beyond the last centre, all is its."""
    (numbers,) = np.nonzero(shown)
    at = np.clip((np.arange(pixels) + 0.5 - offset) / scale - 0.5, numbers[0], numbers[-1])
    weights = np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(len(shown))[None]))
    return weights.astype(np.float32)
