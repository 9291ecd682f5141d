"""The demo's numbers and pictures, from made-up records."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from rvm_perception.demo_listener import ReceivedFeatures
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
        video=Path("bikes.mp4"),
        rate=25.0,
        camera_topic="/camera/image_raw",
        published=published(100),
        features=[received(40 * i, latency) for i, latency in enumerate(range(1, 41))],
        diagnostics={
            "rvm: engine": {"hardware_id": "cpu", "model": "rvm_s16 (random weights)", "backend": "torch"},
            "rvm: camera other": {"hardware_id": "/other/image_raw", "received": "7"},
            "rvm: camera camera": {"hardware_id": "/camera/image_raw", "engine_ms_p50": "31.50", **camera},
        },
        node_exit_code=0,
    )
    summary = summarize(recording)
    assert summary["frames_published"] == 100 and summary["features_received"] == 40
    assert summary["node"] == {"received": 98, "processed": 41, "dropped": 55, "rejected": 2, "resets": 0}
    assert summary["lost_before_node"] == 2 and summary["lost_after_node"] == 1
    assert summary["features_without_frame"] == 0
    assert summary["stamp_to_features_received_ms"] == {"p50": 20.5, "p95": 38.05, "max": 40.0}
    assert summary["engine_ms"] == {"p50": 31.5, "p95": None}
    assert summary["random_weights"] is True and summary["backend"] == "torch"
    table = format_table(summary)
    for text in ("100 at 25 Hz (bikes.mp4)", "p50 20.5 ms, p95 38.05 ms", "55 (a newer frame", "rvm weights"):
        assert text in table


def test_summary_without_diagnostics_admits_what_it_does_not_know() -> None:
    recording = Recording(video=Path("a.mp4"), rate=10.0, camera_topic="/camera/image_raw", published=published(3))
    summary = summarize(recording)
    assert summary["node"]["received"] is None and summary["lost_before_node"] is None
    assert summary["model"] is None and summary["random_weights"] is None
    assert summary["stamp_to_features_received_ms"]["p50"] is None
    json.dumps(summary, allow_nan=False)
    assert "?" in format_table(summary)


def test_film_shows_each_feature_map_beside_the_frame_with_its_stamp(video: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the demo writes its film with PyAV (extra: demo)")
    shown = [2, 3, 11, 24]
    recording = Recording(
        video=video,
        rate=RATE,
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


def test_stills_show_some_moments(video: Path, tmp_path: Path) -> None:
    recording = Recording(
        video=video,
        rate=RATE,
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
