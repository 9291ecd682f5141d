"""The tracker for what a user has: trained heads, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from rvm_core.checkpoint import CheckpointError
from rvm_core.heads import BoxHead, PointHead
from rvm_core.readout_checkpoint import load_readout
from rvm_core.tracking.base import Tracker
from rvm_core.tracking.combined import CombinedTracker
from rvm_core.tracking.feature_tracker import FeatureTracker
from rvm_core.tracking.propagation import TrackingConfig
from rvm_core.tracking.window_tracker import WindowTracker

Head = TypeVar("Head", PointHead, BoxHead)


def create_tracker(
    grid: tuple[int, int],
    width: int,
    *,
    config: TrackingConfig | None = None,
    point_head: str | Path | None = None,
    box_head: str | Path | None = None,
) -> Tracker[Any]:
    """A tracker of points, boxes and masks.

    Args:
        grid: (h, w) of the features.
        width: their channels.
        config: of the training-free tracker, which follows all that no head is given for.
        point_head, box_head: files of trained heads (see `load_readout`).

    Raises `CheckpointError` for a file that is no such head or one for features of another width.
    """
    features = FeatureTracker(grid, config)
    points: Tracker[Any] = features
    boxes: Tracker[Any] = features
    if point_head:
        points = WindowTracker(grid=grid, point_head=_load(point_head, PointHead, width))
    if box_head:
        # The release's heads say corners as (y, x).
        boxes = WindowTracker(grid=grid, box_head=_load(box_head, BoxHead, width), corner_order="yxyx")
    return CombinedTracker(points=points, boxes=boxes, masks=features) if point_head or box_head else features


def _load(path: str | Path, head_class: type[Head], width: int) -> Head:
    head = load_readout(path)
    if not isinstance(head, head_class):
        raise CheckpointError(path, f"expected a {head_class.__name__}, got a {type(head).__name__}")
    if head.config.features != width:
        raise CheckpointError(path, f"expected a head for features of {width} channels, got {head.config.features}")
    return head
