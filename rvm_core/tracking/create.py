"""The tracker for what a user has: trained heads, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rvm_core.checkpoint import CheckpointError
from rvm_core.heads import BoxHead, PointHead
from rvm_core.readout_checkpoint import load_readout
from rvm_core.recurrent_readout import RecurrentReadout, TrackKind
from rvm_core.tracking.base import Tracker
from rvm_core.tracking.combined import CombinedTracker
from rvm_core.tracking.feature_tracker import FeatureTracker
from rvm_core.tracking.propagation import TrackingConfig
from rvm_core.tracking.recurrent_tracker import RecurrentTracker
from rvm_core.tracking.window_tracker import WindowTracker
from rvm_core.weights import find_weights


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
        point_head, box_head: trained heads or recurrent readouts (see `load_readout`), as files or by their names (see
            `find_weights`).

    Raises `CheckpointError` for a file that holds neither for these tracks, or one for features of another width, and
    `FileNotFoundError` if there is none.
    """
    features = FeatureTracker(grid, config)
    points = _head_tracker(point_head, "points", grid, width) if point_head else features
    boxes = _head_tracker(box_head, "boxes", grid, width) if box_head else features
    return CombinedTracker(points=points, boxes=boxes, masks=features) if point_head or box_head else features


def _head_tracker(name_or_path: str | Path, kind: TrackKind, grid: tuple[int, int], width: int) -> Tracker[Any]:
    path = find_weights(str(name_or_path))
    head = load_readout(path)
    tracker: Tracker[Any]
    if kind == "points" and isinstance(head, PointHead):
        tracker = WindowTracker(grid=grid, point_head=head)
    elif kind == "boxes" and isinstance(head, BoxHead):
        # The release's heads say corners as (y, x).
        tracker = WindowTracker(grid=grid, box_head=head, corner_order="yxyx")
    elif isinstance(head, RecurrentReadout) and head.config.kind == kind:
        points, boxes = (head, None) if kind == "points" else (None, head)
        tracker = RecurrentTracker(grid=grid, points=points, boxes=boxes)
    else:
        found = type(head).__name__ + (f" of {head.config.kind}" if isinstance(head, RecurrentReadout) else "")
        expected = "PointHead" if kind == "points" else "BoxHead"
        raise CheckpointError(path, f"expected {expected} or RecurrentReadout of {kind}, got {found}")
    if head.config.features != width:
        raise CheckpointError(path, f"expected a head for features of {width} channels, got {head.config.features}")
    return tracker
