"""The tracker for the files that a user has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rvm_core import CheckpointError
from rvm_core.heads import BoxHead, PointHead, PointHeadConfig
from rvm_core.readout import AttentionReadout, ReadoutConfig
from rvm_core.readout_checkpoint import load_readout, save_readout
from rvm_core.recurrent_readout import RecurrentReadout, RecurrentReadoutConfig, TrackKind
from rvm_core.tracking import TrackingConfig, create_tracker
from rvm_core.tracking.base import BoxQuery, MaskQuery, PointQuery, Query, Tracker, Tracks
from rvm_core.tracking.combined import CombinedTracker
from rvm_core.tracking.feature_tracker import FeatureTracker
from rvm_core.tracking.recurrent_tracker import RecurrentTracker
from rvm_core.tracking.window_tracker import WindowTracker

EXACT = 1e-5
"""Between the same computation done twice in float32."""

GRID, WIDTH = (4, 6), 40
"""The width is that of the reference heads."""

QUERIES: dict[str, Query] = {
    "points": PointQuery(id=1, x=1.5, y=2.5),
    "boxes": BoxQuery(id=2, x_min=1, y_min=1, x_max=4, y_max=3),
    "masks": MaskQuery(id=3, mask=np.eye(*GRID, dtype=np.float32)),
}


def recurrent(kind: TrackKind, features: int = WIDTH) -> RecurrentReadout:
    config = RecurrentReadoutConfig(features=features, kind=kind, channels=16, num_heads=2, fourier_bases=4)
    return RecurrentReadout(config, seed=5).eval()


@pytest.fixture(scope="module")
def files(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Heads as the release stores them and as this project does."""
    folder = tmp_path_factory.mktemp("heads")
    made: dict[str, Any] = {
        "recurrent points": recurrent("points"),
        "recurrent boxes": recurrent("boxes"),
        "recurrent points of 24": recurrent("points", 24),
        "bare": AttentionReadout(
            ReadoutConfig(features=WIDTH, channels=16, num_heads=2, frames=2, num_queries=1, outputs=4)
        ),
        "points of 24": PointHead(PointHeadConfig(features=24, channels=16, num_heads=2, query_width=8)),
    }
    paths = {name: folder / f"{name}.safetensors" for name in made}
    for name, readout in made.items():
        save_readout(readout, paths[name])
    return paths | {kind: data_folder / f"tracking_head_{kind}.npz" for kind in ("points", "boxes")}


def follow(tracker: Tracker[Any], *queries: Query) -> Tracks:
    """What a tracker says of the fourth frame; the queries are given in the first."""
    frames = torch.randn(4, GRID[0] * GRID[1] + 1, WIDTH, generator=torch.Generator().manual_seed(0))
    _, state = tracker.step(frames[0], tracker.init_state())
    state = tracker.add(queries, state)
    for frame in frames[1:]:
        tracks, state = tracker.step(frame, state)
    return tracks


def assert_same(tracks: Tracks, expected: Tracks, kind: str) -> None:
    for name, value in vars(getattr(expected, kind)).items():
        np.testing.assert_allclose(getattr(getattr(tracks, kind), name), value, atol=EXACT)
    assert len(getattr(tracks, kind).ids) == 1


def test_without_heads_features_do_all() -> None:
    config = TrackingConfig(n_context=3)
    tracker = create_tracker(GRID, WIDTH, config=config)
    assert isinstance(tracker, FeatureTracker)
    assert (tracker.name, tracker.grid) == ("label_propagation", GRID)
    state = tracker.init_state()
    for _ in range(5):
        _, state = tracker.step(torch.zeros(25, WIDTH), state)
    assert tracker.remembered(state) == 3
    assert isinstance(create_tracker(GRID, WIDTH, point_head="", box_head=None), FeatureTracker)


def expected_tracker(kind: str, path: Path) -> Tracker[Any]:
    head = load_readout(path)
    if isinstance(head, RecurrentReadout):
        return RecurrentTracker(grid=GRID, **{kind: head})  # type: ignore[arg-type]
    if isinstance(head, PointHead):
        return WindowTracker(grid=GRID, point_head=head)
    assert isinstance(head, BoxHead)
    return WindowTracker(grid=GRID, box_head=head, corner_order="yxyx")


@pytest.mark.parametrize(
    ("point_head", "box_head", "name"),
    [
        ("points", None, "window_heads+label_propagation"),
        (None, "boxes", "label_propagation+window_heads"),
        ("points", "boxes", "window_heads+label_propagation"),
        ("recurrent points", None, "recurrent_readout+label_propagation"),
        (None, "recurrent boxes", "label_propagation+recurrent_readout"),
        ("recurrent points", "recurrent boxes", "recurrent_readout+label_propagation"),
        ("recurrent points", "boxes", "recurrent_readout+window_heads+label_propagation"),
        ("points", "recurrent boxes", "window_heads+recurrent_readout+label_propagation"),
    ],
)
def test_heads_follow_what_they_are_given_for(
    files: Mapping[str, Path], point_head: str | None, box_head: str | None, name: str
) -> None:
    """Everything else is followed by features; paths may be strings."""
    chosen = {"points": point_head and files[point_head], "boxes": box_head and files[box_head], "masks": None}
    tracker = create_tracker(
        GRID, WIDTH, point_head=chosen["points"], box_head=chosen["boxes"] and str(chosen["boxes"])
    )
    assert isinstance(tracker, CombinedTracker)
    assert (tracker.name, tracker.grid) == (name, GRID)
    tracks = follow(tracker, *QUERIES.values())
    for kind, path in chosen.items():
        alone = expected_tracker(kind, path) if path else FeatureTracker(GRID)
        assert_same(tracks, follow(alone, QUERIES[kind]), kind)


def test_late_queries_of_all_kinds_are_remembered(files: Mapping[str, Path]) -> None:
    tracker = create_tracker(GRID, WIDTH, point_head=files["recurrent points"], box_head=files["boxes"])
    state = tracker.init_state()
    frame: Tensor = torch.zeros(25, WIDTH)
    for _ in range(30):
        _, state = tracker.step(frame, state)
    assert tracker.remembered(state) == 16
    tracks, _ = tracker.step(frame, tracker.add(list(QUERIES.values()), state, age=15))
    assert [said.ids.tolist() for said in (tracks.points, tracks.boxes, tracks.masks)] == [[1], [2], [3]]


POINTS_BUT = "expected PointHead or RecurrentReadout of points, got "
BOXES_BUT = "expected BoxHead or RecurrentReadout of boxes, got "


@pytest.mark.parametrize(
    ("head", "file", "reason"),
    [
        ("point_head", "boxes", POINTS_BUT + "BoxHead"),
        ("point_head", "bare", POINTS_BUT + "AttentionReadout"),
        ("point_head", "recurrent boxes", POINTS_BUT + "RecurrentReadout of boxes"),
        ("box_head", "points", BOXES_BUT + "PointHead"),
        ("box_head", "recurrent points", BOXES_BUT + "RecurrentReadout of points"),
        ("point_head", "points of 24", "expected a head for features of 40 channels, got 24"),
        ("point_head", "recurrent points of 24", "expected a head for features of 40 channels, got 24"),
    ],
)
def test_wrong_files_are_refused(files: Mapping[str, Path], head: str, file: str, reason: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        create_tracker(GRID, WIDTH, **{head: files[file]})  # type: ignore[arg-type]
    assert caught.value.problems == (reason,)
    assert str(files[file]) in str(caught.value)


def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.npz"
    with pytest.raises(FileNotFoundError, match=r"head.npz, .* the names are"):
        create_tracker(GRID, WIDTH, point_head=path)
    for content in (b"", b"no head"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="head.npz"):
            create_tracker(GRID, WIDTH, point_head=path)
