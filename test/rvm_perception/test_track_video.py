"""Following through a video: which frame is which, what the tracker is told, and what is written of it."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from rvm_core.engines import EngineSpec
from rvm_core.preprocess import Preprocess
from rvm_core.tracking.base import (
    BoxQuery,
    BoxTracks,
    MaskQuery,
    MaskTracks,
    PointQuery,
    PointTracks,
    Query,
    Status,
    Tracks,
)
from rvm_perception.track_video import FIELDS, TrackedFrame, TrackPlan, TrackWriter, as_tracks, follow, kind_of
from rvm_perception.video import VideoError, read_frames
from video_clip import FRAMES, HEIGHT, RATE, WIDTH, level_of, make_clip

PREPROCESS = Preprocess(height=48, width=64, policy="stretch")
CELL_X, CELL_Y = WIDTH / 4, HEIGHT / 3

MASK = np.zeros((3, 4), np.float32)
MASK[1:, :2] = 1
QUERIES: list[Query] = [
    PointQuery(id=1, x=0.5, y=1.5),
    BoxQuery(id=4, x_min=0.0, y_min=1.0, x_max=1.0, y_max=2.0),
    MaskQuery(id=300, mask=MASK),
]

PIXELS = 0.01
"""Coordinates are written with two decimals."""


class CountingEngine:
    """Features are the mean grey level of the frame; the state counts the steps."""

    spec = EngineSpec(backend="torch", precision="fp32", device="cpu", image_size=(48, 64))
    bad_step = -1

    def init_state(self) -> int:
        return 0

    def step(self, frames: np.ndarray, state: int) -> tuple[Tensor, int]:
        level = np.nan if state == self.bad_step else float(np.median(frames))
        return torch.full((1, 13, 2), level), state + 1


class DriftingTracker:
    """Moves everything right by a tenth of a cell a frame, every second one occluded. The state is the tracks."""

    name, grid = "drift", (3, 4)

    def __init__(self) -> None:
        self.levels: list[float] = []

    def init_state(self) -> Tracks:
        return Tracks()

    def remembered(self, state: Tracks) -> int:
        return 1

    def add(self, queries: Sequence[Query], state: Tracks, *, age: int = 0) -> Tracks:
        return as_tracks(queries)

    def remove(self, ids: Collection[int], state: Tracks) -> Tracks:
        return state

    def step(self, tokens: Tensor, state: Tracks) -> tuple[Tracks, Tracks]:
        assert tokens.shape == (13, 2)
        self.levels.append(float(tokens[0, 0]))
        points, boxes, masks = state.points, state.boxes, state.masks

        def common(tracks: PointTracks | BoxTracks | MaskTracks) -> dict[str, Any]:
            return {
                "ids": tracks.ids,
                "status": (3 - tracks.status).astype(np.uint8),
                "confidence": tracks.confidence * np.float32(0.5),
            }

        after = Tracks(
            points=PointTracks(xy=points.xy + np.float32([0.1, 0]), **common(points)),
            boxes=BoxTracks(xyxy=boxes.xyxy + np.float32([0.1, 0, 0.1, 0]), **common(boxes)),
            masks=MaskTracks(soft=masks.soft, **common(masks)),
        )
        return after, after


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return make_clip(tmp_path)


def plan_of(video: Path, **changes: Any) -> TrackPlan:
    return TrackPlan(**{"video": video, "rate": RATE, "queries": QUERIES, "labels": {4: "van"}, **changes})


def followed(plan: TrackPlan) -> list[TrackedFrame]:
    return list(follow(plan, CountingEngine(), PREPROCESS, DriftingTracker()))


def test_tracks_begin_where_the_queries_are_and_go_on_from_there(video: Path) -> None:
    tracker = DriftingTracker()
    frames = list(follow(plan_of(video, at=0.2), CountingEngine(), PREPROCESS, tracker))
    assert [frame.number for frame in frames] == list(range(FRAMES))
    np.testing.assert_allclose(tracker.levels, [level_of(i) for i in range(FRAMES)], atol=6)
    for frame in frames[:5]:
        assert not len(frame.tracks.points.ids) and frame.segments is None
    start, later = frames[5], frames[9]
    np.testing.assert_allclose(start.tracks.points.xy, [[0.5 * CELL_X, 1.5 * CELL_Y]], atol=PIXELS)
    np.testing.assert_allclose(start.tracks.boxes.xyxy, [[0, CELL_Y, CELL_X, 2 * CELL_Y]], atol=PIXELS)
    assert start.tracks.points.status == [Status.VISIBLE] and start.tracks.points.confidence == [1]
    np.testing.assert_allclose(later.tracks.points.xy, [[0.9 * CELL_X, 1.5 * CELL_Y]], atol=PIXELS)
    assert start.image.shape == (HEIGHT, WIDTH, 3)
    assert start.segments is not None and start.segments.shape == (HEIGHT, WIDTH)
    assert set(np.unique(start.segments).tolist()) == {0, 300}
    assert (start.segments[-1, : WIDTH // 3] == 300).all() and not start.segments[0].any()


def test_following_ends_in_time(video: Path) -> None:
    assert [frame.number for frame in followed(plan_of(video, at=0.2, seconds=0.12))] == list(range(8))
    assert len(followed(plan_of(video, at=0.2, seconds=0.001))) == 6
    assert len(followed(plan_of(video, seconds=100.0))) == FRAMES


@pytest.mark.parametrize(("at", "frame"), [(0.0, 0), (0.04, 1), (0.041, 2), (0.12, 3), (7 / RATE, 7)])
def test_queries_hold_in_the_first_frame_that_is_not_earlier(at: float, frame: int) -> None:
    assert plan_of(Path("a.mp4"), at=at).query_frame == frame


def test_no_segments_without_masks(video: Path) -> None:
    assert all(frame.segments is None for frame in followed(plan_of(video, queries=QUERIES[:2])))


def test_video_that_ends_before_the_queries_is_an_error(video: Path) -> None:
    with pytest.raises(VideoError, match=r"ends after 25 frames, 1\.00 s: nothing can be followed from 1 s on"):
        followed(plan_of(video, at=1.0))


def test_features_that_are_no_numbers_are_an_error(video: Path) -> None:
    engine = CountingEngine()
    engine.bad_step = 3
    with pytest.raises(VideoError, match="frame 3 of .* NaN"):
        list(follow(plan_of(video), engine, PREPROCESS, DriftingTracker()))


def test_kinds() -> None:
    assert [kind_of(query) for query in QUERIES] == ["point", "box", "mask"]


def test_written_files_say_where_everything_is(video: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="films are written with PyAV (extra: demo)")
    folder = tmp_path / "out"
    folder.mkdir()
    plan = plan_of(video, at=0.2)
    writer = TrackWriter(folder, plan)
    writer.write(follow(plan, CountingEngine(), PREPROCESS, DriftingTracker()))
    assert writer.frames == FRAMES - 5 and writer.visible == {1: 10, 4: 10, 300: 10}
    assert len(writer.engine_ms) == len(writer.tracking_ms) == FRAMES
    with open(folder / "tracks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(FIELDS) and len(rows) == 3 * (FRAMES - 5)
    point, box, mask = rows[3:6]
    assert (point["frame"], point["time_s"], point["kind"], point["id"]) == ("6", "0.240", "point", "1")
    assert (point["status"], point["label"], point["confidence"]) == ("occluded", "", "0.5000")
    np.testing.assert_allclose([float(point["x"]), float(point["y"])], [0.6 * CELL_X, 1.5 * CELL_Y], atol=PIXELS)
    assert point["x_min"] == box["x"] == mask["x"] == mask["y_max"] == ""
    assert box["label"] == "van"
    corners = [float(box[name]) for name in ("x_min", "y_min", "x_max", "y_max")]
    np.testing.assert_allclose(corners, [0.1 * CELL_X, CELL_Y, 1.1 * CELL_X, 2 * CELL_Y], atol=PIXELS)
    assert (mask["kind"], mask["id"]) == ("mask", "300")
    names = [path.name for path in sorted((folder / "masks").iterdir())]
    assert names == [f"{i:06d}.png" for i in range(5, FRAMES)]
    label_image = cv2.imread(str(folder / "masks" / names[0]), cv2.IMREAD_UNCHANGED)
    assert label_image is not None and label_image.dtype == np.uint16 and set(np.unique(label_image)) == {0, 300}
    pictures = list(read_frames(folder / "overlay.mp4"))
    assert len(pictures) == FRAMES and pictures[0].shape == (HEIGHT, WIDTH, 3)
    level = [picture[:, :, 1].astype(int) for picture in pictures]
    assert np.abs(level[5] - level_of(5))[HEIGHT // 2 :].max() > 50, "tracks are not drawn"
    assert np.abs(level[4] - level_of(4))[HEIGHT // 2 :].max() < 30, "there was nothing to draw yet"


def test_small_ids_are_written_with_8_bits(video: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="films are written with PyAV (extra: demo)")
    plan = plan_of(video, queries=[MaskQuery(id=255, mask=MASK)], seconds=0.1)
    writer = TrackWriter(tmp_path, plan)
    writer.write(follow(plan, CountingEngine(), PREPROCESS, DriftingTracker()))
    label_image = cv2.imread(str(tmp_path / "masks" / "000001.png"), cv2.IMREAD_UNCHANGED)
    assert label_image is not None and label_image.dtype == np.uint8 and set(np.unique(label_image)) == {0, 255}
