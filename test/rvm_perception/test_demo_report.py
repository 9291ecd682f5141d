"""The demo's numbers and pictures, from made-up records."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from rvm_core.tracking.base import BoxTracks, PointTracks, Status
from rvm_core.tracking.pixels import PixelTracks
from rvm_perception.demo_clip import DemoClip
from rvm_perception.demo_listener import QueryAnswer, ReceivedFeatures, ReceivedTracks
from rvm_perception.demo_report import (
    PublishedFrame,
    Recording,
    format_table,
    match_frames,
    read_stamps,
    summarize,
    write_film,
    write_stills,
)
from rvm_perception.track_arguments import Given
from rvm_perception.video import read_frames
from video_clip import FRAMES, HEIGHT, RATE, WIDTH, level_of, make_clip

VIDEO_LEVELS = 6
"""Levels of 255 by which a plain colour may change on its way through two lossy codecs; frames differ by 7."""


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return make_clip(tmp_path)


def received(stamp_ms: float, latency_ms: float, *, skipped: int = 0, value: float = 0.0) -> ReceivedFeatures:
    features = np.random.default_rng(int(stamp_ms)).normal(size=(3, 4, 8)).astype(np.float32) + value
    return ReceivedFeatures(
        stamp_ns=round(stamp_ms * 1e6),
        received_ns=round((stamp_ms + latency_ms) * 1e6),
        skipped=skipped,
        model="rvm_s16 (random weights)",
        features=features,
        grid_to_image=np.array([[WIDTH / 4, 0, 0], [0, HEIGHT / 3, 0]]),
        image_size=(HEIGHT, WIDTH),
    )


def clip_of(video: Path, rate: float = RATE, queries: int = 0) -> DemoClip:
    points = [Given((10, 10), "")] * queries
    return DemoClip(video=video, rate=rate, frames=FRAMES, size=(HEIGHT, WIDTH), points=points)


def tracked(stamp_ms: float, *, status: Status = Status.VISIBLE, box: bool = True) -> ReceivedTracks:
    """A point in the lower right, and a box around most of the image."""
    common = {"status": np.full(1, status, np.uint8), "confidence": np.ones(1, np.float32)}
    points = PointTracks(ids=np.array([2], np.uint64), xy=np.array([[WIDTH - 12, HEIGHT - 8]], np.float32), **common)
    xyxy = np.array([[2, 2, WIDTH - 3, HEIGHT - 3]], np.float32)
    boxes = BoxTracks(ids=np.array([5], np.uint64), xyxy=xyxy, **common) if box else BoxTracks()
    tracks = PixelTracks(points=points, boxes=boxes)
    return ReceivedTracks(stamp_ns=round(stamp_ms * 1e6), tracks=tracks, labels={5: "frame"} if box else {})


def by_stamp(*received: ReceivedTracks) -> dict[int, ReceivedTracks]:
    return {tracks.stamp_ns: tracks for tracks in received}


def published(count: int) -> list[PublishedFrame]:
    return [PublishedFrame(frame=i, stamp_ns=i * 40 * 10**6) for i in range(count)]


def test_features_are_matched_by_stamp() -> None:
    frames = published(5)
    unknown = received(81, 5)
    pairs = match_frames(frames, [received(120, 5), received(40, 5), unknown])
    assert [(frame.frame, features.stamp_ns) for frame, features in pairs] == [(1, 40 * 10**6), (3, 120 * 10**6)]


def test_stamps_are_read_as_the_camera_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "stamps.csv"
    path.write_text("index,frame,stamp_ns\n0,0,1700000000123456789\n1,1,1700000000163456789\n")
    assert read_stamps(path) == [
        PublishedFrame(frame=0, stamp_ns=1700000000123456789),
        PublishedFrame(frame=1, stamp_ns=1700000000163456789),
    ]


def test_summary_counts_every_loss_and_the_latencies() -> None:
    camera = {"received": "98", "processed": "41", "dropped": "55", "rejected": "2", "resets": "0"}
    recording = Recording(
        clip=clip_of(Path("bikes.mp4"), 25.0, queries=3),
        camera_topic="/camera/image_raw",
        published=published(100),
        features=[received(40 * i, latency) for i, latency in enumerate(range(1, 41))],
        diagnostics={
            "rvm: engine": {"hardware_id": "cpu", "model": "rvm_s16 (random weights)", "backend": "torch"},
            "rvm: camera other": {"hardware_id": "/other/image_raw", "received": "7"},
            "rvm: camera camera": {
                "hardware_id": "/camera/image_raw",
                "engine_ms_p50": "31.50",
                "tracking_ms_p95": "4.20",
                **camera,
            },
        },
        tracks=by_stamp(
            tracked(120, status=Status.OCCLUDED),
            tracked(160),
            tracked(200, box=False),
            tracked(240, status=Status.LOST),
        ),
        answers=[
            QueryAnswer(kind="point", id=2, reason=""),
            QueryAnswer(kind="box", id=5, reason=""),
            QueryAnswer(kind="box", id=0, reason="box (1, 1, 1, 1) is empty"),
        ],
        node_exit_code=0,
    )
    summary = summarize(recording)
    assert summary["frames_published"] == 100 and summary["features_received"] == 40
    assert summary["node"] == {"received": 98, "processed": 41, "dropped": 55, "rejected": 2, "resets": 0}
    assert summary["lost_before_node"] == 2 and summary["lost_after_node"] == 1
    assert summary["features_without_frame"] == 0
    assert summary["stamp_to_features_received_ms"] == {"p50": 20.5, "p95": 38.05, "max": 40.0}
    assert summary["engine_ms"] == {"p50": 31.5, "p95": None}
    assert summary["tracking_ms"] == {"p50": None, "p95": 4.2}
    assert summary["random_weights"] is True and summary["backend"] == "torch"
    assert summary["queries"] == {"sent": 3, "accepted": 2, "refused": ["box: box (1, 1, 1, 1) is empty"]}
    assert summary["frames_with_tracks"] == 4 and summary["tracks_per_frame"] == 1.25
    assert summary["tracks"] == [
        {"id": 2, "kind": "point", "label": "", "frames": 3, "visible": 2},
        {"id": 5, "kind": "box", "label": "frame", "frames": 2, "visible": 1},
    ]
    table = format_table(summary)
    for text in (
        "100 at 25 Hz (bikes.mp4)",
        "p50 20.5 ms, p95 38.05 ms",
        "55 (a newer frame",
        "3 sent, 2 accepted, 1 refused; box: box (1, 1, 1, 1) is empty",
        "box 5 frame",
        "visible in 1 of 2 frames",
        "rvm weights",
    ):
        assert text in table


def test_summary_without_diagnostics_admits_what_it_does_not_know() -> None:
    recording = Recording(clip=clip_of(Path("a.mp4"), 10.0), camera_topic="/camera/image_raw", published=published(3))
    summary = summarize(recording)
    assert summary["node"]["received"] is None and summary["lost_before_node"] is None
    assert summary["model"] is None and summary["random_weights"] is None
    assert summary["stamp_to_features_received_ms"]["p50"] is None and summary["tracking_ms"]["p50"] is None
    assert summary["frames_with_tracks"] == 0 and summary["tracks"] == []
    json.dumps(summary, allow_nan=False)
    assert "?" in format_table(summary)


def test_film_shows_each_feature_map_beside_the_frame_with_its_stamp(video: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the demo writes its film with PyAV (extra: demo)")
    shown = [2, 3, 11, 24]
    recording = Recording(
        clip=clip_of(video),
        camera_topic="/camera/image_raw",
        published=published(FRAMES),
        features=[received(40 * i, 5) for i in shown],
    )
    write_film(tmp_path / "film.mp4", recording)
    images = list(read_frames(tmp_path / "film.mp4"))
    levels = [image[HEIGHT // 2 + 4 :, : WIDTH - 4].mean() for image in images]
    np.testing.assert_allclose(levels, [level_of(i) for i in shown], atol=VIDEO_LEVELS)
    capture = cv2.VideoCapture(str(tmp_path / "film.mp4"))
    times = []
    while capture.read()[0]:
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC))
    np.testing.assert_allclose(np.diff(times), np.diff(shown) * 40.0, atol=1)


def test_tracks_are_drawn_on_the_frames_that_they_belong_to(video: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the demo writes its film with PyAV (extra: demo)")
    recording = Recording(
        clip=clip_of(video),
        camera_topic="/camera/image_raw",
        published=published(6),
        features=[received(40 * i, 5) for i in range(6)],
        tracks=by_stamp(tracked(120), tracked(160)),
    )
    write_film(tmp_path / "film.mp4", recording)
    # Of the point's place, how far the colour is from the frame's own.
    place = (slice(HEIGHT - 10, HEIGHT - 6), slice(WIDTH - 14, WIDTH - 10))
    images = [image.astype(int) for image in read_frames(tmp_path / "film.mp4")]
    differences = [np.abs(image[place] - level_of(i)).mean() for i, image in enumerate(images)]
    assert max(differences[i] for i in (0, 1, 2, 5)) < 20 < 40 < min(differences[3:5]), differences
    painted = [image[:, WIDTH + 4 :] for image in images]
    assert np.abs(painted[3] - painted[2]).mean() < 60, "the features' half shows no tracks"


def test_stills_show_some_moments(video: Path, tmp_path: Path) -> None:
    recording = Recording(
        clip=clip_of(video),
        camera_topic="/camera/image_raw",
        published=published(FRAMES),
        features=[received(40 * i, 5) for i in range(FRAMES)],
    )
    write_stills(tmp_path / "features.png", recording)
    sheet = cv2.imread(str(tmp_path / "features.png"))
    assert sheet is not None and sheet.shape[1] > 4 * WIDTH and sheet.shape[0] > 3 * HEIGHT
    assert sheet.std() > 20


def test_cells_outside_the_image_are_padding() -> None:
    features = received(0, 0)
    letterbox = ReceivedFeatures(
        **{**vars(features), "grid_to_image": np.array([[WIDTH / 4, 0, 0], [0, HEIGHT, -HEIGHT]])}
    )
    np.testing.assert_array_equal(letterbox.valid, [[False] * 4, [True] * 4, [False] * 4])
    assert features.valid.all()
