"""A small folder as `rvm replay` writes it, made without a bag: one camera with resets, rejections and tracks."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rvm_perception.replay_summary import (
    SUMMARY,
    TIMING,
    CameraSummary,
    EngineSummary,
    Percentiles,
    Rejection,
    ReplaySummary,
    ReplayTiming,
    Reset,
    write_json,
)

FRAMES, ROWS, COLS, WIDTH = 30, 8, 12, 16
RESET_FRAME, REJECTED_FRAME = 18, 7
"""Of the camera's 31 frames; the first half of 30 processed ones is epoch 0."""
STAMP_NS = 10**18
NASTY = "<script>alert('x')</script> & \"dog\""
"""A label as a stranger's recording may hold."""


def summary_of(**changes: Any) -> ReplaySummary:
    camera = CameraSummary(
        name="front", topic="/front/image_raw", message_type="sensor_msgs/msg/Image", received=FRAMES + 1,
        processed=FRAMES, rejected={"late": 1},
        resets=(Reset(frame=RESET_FRAME, stamp_ns=stamp(RESET_FRAME), epoch=1, reason="gap"),),
        rejections=(Rejection(frame=REJECTED_FRAME, stamp_ns=stamp(REJECTED_FRAME), reason="late", message=NASTY),),
        out_of_order=2, first_stamp_ns=STAMP_NS, last_stamp_ns=stamp(FRAMES), duration_s=3.0,
        image_sizes=((96, 192),), queries=1, queries_accepted=2, queries_refused=1,
        tracks={"point": 2, "box": 0, "mask": 0}, features="front/features.npz",
        tables=("front/frames.csv", "front/point_tracks.csv"), overlay="front/overlay.mp4",
    )  # fmt: skip
    engine = EngineSummary(
        model="rvm_custom", weights="tiny.npz", weights_hash="ab" * 32, random_weights=False, backend="torch",
        precision="fp32", device="cpu", image_size=(128, 192), tracker="label_propagation",
    )  # fmt: skip
    summary = ReplaySummary(
        bag="drive", bag_storage="mcap", bag_messages=FRAMES + 2, recovered="", lost=0, code_version="1",
        fingerprint="cd" * 32, engine=engine, cameras=(camera,), messages={"/rvm/features": FRAMES},
        parameters={"height": 128, "width": 192, "resize_policy": "letterbox", "camera_topics": ["/front/image_raw"]},
    )  # fmt: skip
    return replace(summary, **changes)


def stamp(frame: int) -> int:
    """Ten frames a second, and two seconds more before the reset."""
    return STAMP_NS + frame * 10**8 + (2 * 10**9 if frame >= RESET_FRAME else 0)


def write_replay(folder: Path, summary: ReplaySummary | None = None) -> ReplaySummary:
    """Writes everything but the report."""
    summary = summary or summary_of()
    camera = folder / "front"
    camera.mkdir(parents=True)
    numbers = [number for number in range(FRAMES + 1) if number != REJECTED_FRAME]
    epochs = [int(number >= RESET_FRAME) for number in numbers]
    starts = {0: 0, 1: numbers.index(RESET_FRAME)}
    places = [i - starts[epoch] for i, epoch in enumerate(epochs)]
    frames: list[Sequence[Any]] = [
        (
            number,
            stamp(number),
            stamp(number) + 5,
            "processed",
            epoch,
            place,
            0,
            "gap" * (number == RESET_FRAME),
            192,
            96,
        )
        for number, epoch, place in zip(numbers, epochs, places, strict=True)
    ]
    frames.insert(REJECTED_FRAME, (REJECTED_FRAME, stamp(REJECTED_FRAME), 0, "late", *[""] * 6))
    names = "frame stamp_ns received_ns status epoch index skipped reset image_width image_height"
    write_csv(camera / "frames.csv", names, frames)
    random = np.random.default_rng(0)
    times = random.lognormal((0, 2, 1), 0.3, (FRAMES, 3)).round(3)
    rows = [(number, *row) for number, row in zip(numbers, times.tolist(), strict=True)]
    write_csv(camera / "timing.csv", "frame preprocess_ms engine_ms tracking_ms", rows)
    write_csv(
        camera / "point_tracks.csv", "stamp_ns epoch index id label status confidence x y", tracks(epochs, places)
    )
    np.savez(camera / "features.npz", features=features(epochs))
    write_film(camera / "overlay.mp4")
    write_json(folder / SUMMARY, summary)
    write_json(folder / TIMING, timing(times))
    return summary


def features(epochs: Sequence[int]) -> np.ndarray:
    """Maps that change slowly, and are other ones after the reset."""
    random = np.random.default_rng(1)
    base = random.normal(size=(2, ROWS, COLS, WIDTH))
    maps = [base[epoch] + 0.1 * random.normal(size=(ROWS, COLS, WIDTH)) for epoch in epochs]
    return np.stack(maps).astype(np.float16)


def tracks(epochs: Sequence[int], places: Sequence[int]) -> Iterable[Sequence[Any]]:
    """Two points to the reset, of which one is hidden now and then, and lost there."""
    for epoch, place in zip(epochs, places, strict=True):
        for id, label in ((1, "cat"), (2, NASTY)):
            if epoch == 0:
                status = "occluded" if id == 2 and place % 4 == 0 else "visible"
                yield (0, epoch, place, id, label, status, 0.5, 10.0, 20.0)
            elif place == 0:
                yield (0, epoch, place, id, label, "lost", 0.0, "nan", "nan")


def timing(times: np.ndarray) -> ReplayTiming:
    values = np.percentile(times, [50, 95, 99, 100], axis=0).T.tolist()
    names = ("preprocess_ms", "engine_ms", "tracking_ms")
    percentiles = {
        name: Percentiles(p50=p50, p95=p95, p99=p99, max=most)
        for name, (p50, p95, p99, most) in zip(names, values, strict=True)
    }
    return ReplayTiming(stepping_s=1.5, frames_per_s=20.0, real_time_factor=2.0, cameras={"front": percentiles})


def write_csv(path: Path, names: str, rows: Iterable[Sequence[Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names.split())
        writer.writerows(rows)


def write_film(path: Path) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (192, 96))
    for frame in range(FRAMES):
        image = np.full((96, 192, 3), 40, np.uint8)
        cv2.circle(image, (20 + 5 * frame, 48), 15, (60, 160, 230), -1)
        writer.write(image)
    writer.release()
