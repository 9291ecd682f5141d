"""What RVM's features are measured against, without features: optical flow of OpenCV from frame to frame.

Shapes: H W image, multiples of the patch size; h w grid.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.config import PATCH_SIZE
from rvm_core.tracking.base import (
    BoxQuery,
    BoxTracks,
    MaskQuery,
    MaskTracks,
    PointQuery,
    PointTracks,
    Query,
    QueryError,
    Status,
    Tracks,
)

UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """How `FlowTracker` follows."""

    window: int = 11
    """Side of the window around a point that is compared, pixels."""
    levels: int = 3
    """Of the pyramid, above the image itself."""
    max_error: float = 2.0
    """A point is seen if its way there and back ends at most so far from where it began, pixels."""
    box_points: int = 10
    """So many points along each side of a box are followed."""
    min_box_share: float = 0.25
    """A box is seen if at least this share of its points is."""
    min_mask_share: float = 0.1
    """A segment is seen if its area is at least this share of its first area."""


@dataclass(frozen=True)
class FlowState:
    """What the tracker remembers: the newest frame and where everything is in it. Positions are in pixels."""

    gray: UInt8Array | None = None
    """(H, W); None before the first frame."""
    points: Mapping[int, Float32Array] = field(default_factory=dict)
    """(2,) by id."""
    hidden: frozenset[int] = frozenset()
    """Points that were lost sight of: they stay where they were and are followed no more."""
    boxes: Mapping[int, Float32Array] = field(default_factory=dict)
    """(4,) by id."""
    masks: Mapping[int, Float32Array] = field(default_factory=dict)
    """(H, W), share of each pixel in [0, 1], by id."""
    first_areas: Mapping[int, float] = field(default_factory=dict)
    """Of the masks, pixels."""


class FlowTracker:
    """Follows points and boxes by pyramidal Lucas-Kanade and masks by dense (DIS) flow, from frame to frame.

    As `Tracker`, but that it is given frames instead of features, and queries only at the newest frame. What is lost
    is not found again. Source: OpenCV; boxes after MedianFlow (Kalal et al., 2010).
    """

    name = "optical_flow"

    def __init__(self, grid: tuple[int, int], config: FlowConfig | None = None) -> None:
        """grid: (h, w), that its coordinates are of."""
        self.grid = grid
        self._config = config or FlowConfig()
        self._dense = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def init_state(self) -> FlowState:
        return FlowState()

    def remembered(self, state: FlowState) -> int:
        return int(state.gray is not None)

    def add(self, queries: Sequence[Query], state: FlowState, *, age: int = 0) -> FlowState:
        """As of `Tracker`. Raises `QueryError` for another frame than the newest and for an id that is in use."""
        if state.gray is None or age != 0:
            raise QueryError("optical flow starts tracks at the newest frame only")
        points, boxes, masks = dict(state.points), dict(state.boxes), dict(state.masks)
        areas = dict(state.first_areas)
        for query in queries:
            if query.id in points or query.id in boxes or query.id in masks:
                raise QueryError(f"id {query.id} is in use")
            if isinstance(query, PointQuery):
                points[query.id] = _pixels([query.x, query.y])
            elif isinstance(query, BoxQuery):
                boxes[query.id] = _pixels([query.x_min, query.y_min, query.x_max, query.y_max])
            elif isinstance(query, MaskQuery):
                height, width = state.gray.shape
                masks[query.id] = np.asarray(cv2.resize(query.mask.astype(np.float32), (width, height)), np.float32)
                areas[query.id] = float(masks[query.id].sum())
        return replace(state, points=points, boxes=boxes, masks=masks, first_areas=areas)

    def remove(self, ids: Collection[int], state: FlowState) -> FlowState:
        gone = set(ids)
        return replace(
            state,
            points={key: value for key, value in state.points.items() if key not in gone},
            hidden=state.hidden - gone,
            boxes={key: value for key, value in state.boxes.items() if key not in gone},
            masks={key: value for key, value in state.masks.items() if key not in gone},
            first_areas={key: value for key, value in state.first_areas.items() if key not in gone},
        )

    def step(self, frame: UInt8Array, state: FlowState) -> tuple[Tracks, FlowState]:
        """Takes the next frame (H, W, 3) and says where each track is in it."""
        height, width = self.grid[0] * PATCH_SIZE, self.grid[1] * PATCH_SIZE
        if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
            raise ValueError(f"expected a uint8 frame {(height, width, 3)}, got {frame.dtype} {frame.shape}")
        gray = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)
        if state.gray is None:
            return Tracks(), replace(state, gray=gray)
        old = state.gray
        points, state = self._step_points(old, gray, state)
        boxes, state = self._step_boxes(old, gray, state)
        masks, state = self._step_masks(old, gray, state)
        return Tracks(points=points, boxes=boxes, masks=masks), replace(state, gray=gray)

    def _step_points(self, old: UInt8Array, gray: UInt8Array, state: FlowState) -> tuple[PointTracks, FlowState]:
        ids = list(state.points)
        before = _stack(state.points.values(), 2)
        after, error = self._flow(old, gray, before)
        followed = np.array([key not in state.hidden for key in ids], bool)
        height, width = gray.shape
        inside = ((after >= 0) & (after <= (width, height))).all(axis=1)
        visible = followed & inside & (error <= self._config.max_error)
        places = np.where(visible[:, None], after, before)
        tracks = PointTracks(
            ids=_ids(ids),
            xy=places / PATCH_SIZE,
            status=_status(visible),
            confidence=np.where(visible, 1 - error / (2 * self._config.max_error), 0.0).astype(np.float32),
        )
        hidden = state.hidden | {key for key, seen in zip(ids, visible, strict=True) if not seen}
        return tracks, replace(state, points=dict(zip(ids, places, strict=True)), hidden=hidden)

    def _step_boxes(self, old: UInt8Array, gray: UInt8Array, state: FlowState) -> tuple[BoxTracks, FlowState]:
        shares = np.zeros(len(state.boxes), np.float32)
        boxes = dict(state.boxes)
        for index, (key, box) in enumerate(state.boxes.items()):
            steps = (np.arange(self._config.box_points, dtype=np.float32) + 0.5) / self._config.box_points
            before = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2) * (box[2:] - box[:2]) + box[:2]
            after, error = self._flow(old, gray, before)
            good = error <= self._config.max_error
            shares[index] = good.mean()
            if shares[index] >= self._config.min_box_share:
                boxes[key] = _moved_box(box, before[good], after[good])
        visible = shares >= self._config.min_box_share
        xyxy = _stack(boxes.values(), 4) / PATCH_SIZE
        tracks = BoxTracks(ids=_ids(list(boxes)), xyxy=xyxy, status=_status(visible), confidence=shares)
        return tracks, replace(state, boxes=boxes)

    def _step_masks(self, old: UInt8Array, gray: UInt8Array, state: FlowState) -> tuple[MaskTracks, FlowState]:
        if not state.masks:
            return MaskTracks(soft=np.zeros((0, *self.grid), np.float32)), state
        height, width = gray.shape
        back = self._dense.calc(gray, old, np.zeros((height, width, 2), np.float32))
        sources = back + np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
        masks = {
            key: np.asarray(cv2.remap(mask, sources[..., 0], sources[..., 1], cv2.INTER_LINEAR), np.float32)
            for key, mask in state.masks.items()
        }
        soft = [cv2.resize(mask, self.grid[::-1], interpolation=cv2.INTER_AREA) for mask in masks.values()]
        shares = np.array([mask.sum() / max(state.first_areas[key], 1.0) for key, mask in masks.items()], np.float32)
        tracks = MaskTracks(
            ids=_ids(list(masks)),
            soft=np.stack(soft).astype(np.float32),
            status=_status(shares >= self._config.min_mask_share),
            confidence=np.clip(shares, 0, 1),
        )
        return tracks, replace(state, masks=masks)

    def _flow(self, old: UInt8Array, new: UInt8Array, points: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Where points (n, 2) go, (n, 2), and how far they end from where they began on the way back, (n,)."""
        if not len(points):
            return points, np.zeros(0, np.float32)
        # OpenCV's pixel centres are at whole numbers.
        start = points.astype(np.float32) - np.float32(0.5)
        there, found = self._lucas_kanade(old, new, start)
        back, found_back = self._lucas_kanade(new, old, there)
        error = np.where(found & found_back, np.linalg.norm(back - start, axis=1), np.inf)
        return there + np.float32(0.5), error.astype(np.float32)

    def _lucas_kanade(self, old: UInt8Array, new: UInt8Array, start: Float32Array) -> tuple[Float32Array, BoolArray]:
        window = (self._config.window, self._config.window)
        there, found, _ = cv2.calcOpticalFlowPyrLK(
            old, new, start, np.empty_like(start), winSize=window, maxLevel=self._config.levels
        )
        return np.asarray(there, np.float32), np.asarray(found)[:, 0] != 0


def _moved_box(box: Float32Array, before: Float32Array, after: Float32Array) -> Float32Array:
    """The box moved by the median of its points' shifts, and scaled by the median of the change of their distances."""
    shift = np.median(after - before, axis=0)
    spread = np.linalg.norm(before - np.median(before, axis=0), axis=1)
    new_spread = np.linalg.norm(after - np.median(after, axis=0), axis=1)
    wide = spread > 1
    scale = float(np.median(new_spread[wide] / spread[wide])) if wide.any() else 1.0
    centre, half = (box[:2] + box[2:]) / 2 + shift, (box[2:] - box[:2]) / 2 * scale
    return np.concatenate([centre - half, centre + half]).astype(np.float32)


def _pixels(values: Sequence[float]) -> Float32Array:
    return np.array(values, np.float32) * PATCH_SIZE


def _stack(rows: Collection[Float32Array], width: int) -> Float32Array:
    return np.array(list(rows), np.float32).reshape(-1, width)


def _ids(ids: Sequence[int]) -> npt.NDArray[np.uint64]:
    return np.array(ids, np.uint64)


def _status(visible: BoolArray) -> UInt8Array:
    return np.where(visible, Status.VISIBLE, Status.OCCLUDED).astype(np.uint8)
