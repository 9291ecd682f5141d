"""Miniature datasets of tracks and readouts, in the layouts that the real ones are distributed in."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]

SPEED = 0.01
"""Share of the image's width by which everything moves to the right in each frame."""


def moving_frame(t: int, height: int = 48, width: int = 64, seed: int = 0) -> UInt8Array:
    """RGB (height, width, 3): a smooth texture that moves by `SPEED`."""
    rng = np.random.default_rng(seed)
    texture = cv2.GaussianBlur(rng.integers(0, 256, (height, 2 * width, 3)).astype(np.uint8), (0, 0), 2)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    moved = np.roll(texture, round(t * SPEED * width), axis=1)
    return np.ascontiguousarray(moved[:, :width])


def tapvid_video(frames: int, *, points: int = 5, jpeg: bool = False, seed: int = 0) -> dict[str, Any]:
    """One video as TAP-Vid's pickles have it: points that move by `SPEED`, each first seen in another frame."""
    rng = np.random.default_rng(seed)
    video = np.stack([moving_frame(t, seed=seed) for t in range(frames)])
    start = rng.uniform(0.1, 0.4, (points, 1, 2))
    places = start + np.arange(frames)[None, :, None] * np.array([SPEED, 0.0])
    occluded = np.arange(frames)[None] < np.arange(points)[:, None]
    occluded[-1, -2:] = True
    return {
        "video": np.array([encoded(frame, ".jpg") for frame in video]) if jpeg else video,
        "points": places,
        "occluded": occluded,
    }


def write_davis(folder: Path, lengths: dict[str, int] | None = None) -> Path:
    """tapvid_davis.pkl: a dict of videos by name, uncompressed."""
    lengths = lengths or {"bike-packing": 8, "blackswan": 11}
    return _pickle(
        folder / "tapvid_davis.pkl", {name: tapvid_video(n, seed=i) for i, (name, n) in enumerate(lengths.items())}
    )


def write_kinetics_points(folder: Path) -> Path:
    """0000_of_0002.pkl and 0001_of_0002.pkl: lists of videos of JPEG files."""
    for shard in range(2):
        videos = [tapvid_video(6, jpeg=True, seed=10 * shard + i) for i in range(2)]
        _pickle(folder / f"{shard:04d}_of_0002.pkl", videos)
    return folder


def write_robotap(folder: Path) -> Path:
    """robotap_split0.pkl and robotap_split1.pkl: dicts of videos."""
    for split in range(2):
        _pickle(folder / f"robotap_split{split}.pkl", {f"video_{split}": tapvid_video(5, seed=split)})
    return folder


def _pickle(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(data, protocol=4))
    return path


def encoded(rgb: UInt8Array, suffix: str) -> bytes:
    """The file of an image."""
    return cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()


def write_image(path: Path, rgb: UInt8Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(rgb, path.suffix))
    return path


def write_mot(folder: Path, frames: int = 40, rate: int = 10) -> Path:
    """MOT17/train with one sequence: a pedestrian that moves by `SPEED`, a tiny one, one that does not count, a car."""
    sequence = folder / "MOT17-02-FRCNN"
    for t in range(frames):
        write_image(sequence / "img1" / f"{t + 1:06d}.jpg", moving_frame(t, 96, 144))
    sequence.joinpath("seqinfo.ini").write_text(
        f"[Sequence]\nname=MOT17-02-FRCNN\nimDir=img1\nframeRate={rate}\nseqLength={frames}\nimWidth=144\n"
        "imHeight=96\nimExt=.jpg\n"
    )
    (sequence / "gt").mkdir()
    with open(sequence / "gt" / "gt.txt", "w", newline="") as file:
        table = csv.writer(file)
        for t in range(frames):
            moved = t * SPEED * 144
            table.writerow([t + 1, 7, 41 + moved, 21, 30, 40, 1, 1, 1.0])
            table.writerow([t + 1, 8, 61, 11, 3, 3, 1, 1, 1.0])
            table.writerow([t + 1, 9, 61, 11, 50, 50, 0, 1, 1.0])
            table.writerow([t + 1, 10, 61, 11, 50, 50, 1, 3, 1.0])
    return folder


def write_waymo(folder: Path, frames: int = 6) -> Path:
    """Waymo Open 2 with one segment, rows out of order, and a side camera that is not to be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    segment = "10023947602400723454_1120_000_1140_000"
    images, boxes = [], []
    for t in [*range(1, frames), 0]:
        time = 1_550_000_000_000_000 + 100_000 * t
        key = {"key.segment_context_name": segment, "key.frame_timestamp_micros": time}
        for camera in (1, 2):
            image = encoded(moving_frame(t, 96, 144, seed=camera), ".jpg")
            images.append(key | {"key.camera_name": camera, "[CameraImageComponent].image": image})
            boxes.append(
                key
                | {
                    "key.camera_name": camera,
                    "key.camera_object_id": f"object-{camera}",
                    "[CameraBoxComponent].box.center.x": 60.0 + t * SPEED * 144,
                    "[CameraBoxComponent].box.center.y": 50.0,
                    "[CameraBoxComponent].box.size.x": 30.0,
                    "[CameraBoxComponent].box.size.y": 40.0,
                    "[CameraBoxComponent].type": 1,
                }
            )
    for part, rows in (("camera_image", images), ("camera_box", boxes)):
        (folder / part).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / part / f"{segment}.parquet", row_group_size=3)
    return folder


DEPTH_MM = 2000


def write_scannet(folder: Path, scenes: int = 2, frames: int = 6) -> Path:
    """scans/SCENE/color and depth: everything is 2 m away but a hole without depth; the depth maps are smaller."""
    for number in range(scenes):
        scene = folder / "scans" / f"scene{700 + number:04d}_00"
        for t in range(frames):
            write_image(scene / "color" / f"{t}.jpg", moving_frame(t, 60, 80, seed=number))
            depth = np.full((48, 64), DEPTH_MM, np.uint16)
            depth[:5, :30] = 0
            (scene / "depth").mkdir(exist_ok=True)
            cv2.imwrite(str(scene / "depth" / f"{t}.png"), depth)
    return folder


def write_video(path: Path, frames: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # What is in a file decides how it is read, not what it is called; every build of OpenCV can write this.
    temporary = path.with_suffix(".avi")
    writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"MJPG"), 12.0, (64, 48))
    for t in range(frames):
        writer.write(cv2.cvtColor(moving_frame(t, seed=seed), cv2.COLOR_RGB2BGR))
    writer.release()
    return temporary.rename(path)


SSV2 = {
    "Approaching something with your camera": "0",
    "Bending something until it breaks": "1",
    "Putting something on a surface": "2",
}


def write_ssv2(folder: Path) -> Path:
    """Something-Something v2: labels/, and videos shorter and longer than a clip."""
    templates = [
        "Putting [something] on a surface",
        "Bending [something] until it breaks",
        "Putting [something] on a surface",
    ]
    (folder / "labels").mkdir(parents=True)
    (folder / "labels" / "labels.json").write_text(json.dumps(SSV2))
    entries = [
        {"id": str(100 + i), "label": "putting cup", "template": template, "placeholders": ["cup"]}
        for i, template in enumerate(templates)
    ]
    (folder / "labels" / "validation.json").write_text(json.dumps(entries))
    for i, entry in enumerate(entries):
        write_video(folder / "20bn-something-something-v2" / f"{entry['id']}.webm", 4 + 20 * i, seed=i)
    return folder


def write_kinetics(folder: Path, *, missing: bool = False) -> Path:
    """Kinetics as its mirror packs it: val/ and annotations/val.csv."""
    rows = [("yoga", "-aBc_dEfGhI", 10, 20), ("abseiling", "bbbbbbbbbbb", 0, 10), ("yoga", "ccccccccccc", 5, 15)]
    (folder / "annotations").mkdir(parents=True)
    with open(folder / "annotations" / "val.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
        table.writerows([*row, "val"] for row in rows)
    for i, (_, id, start, end) in enumerate(rows[: 2 if missing else 3]):
        write_video(folder / "val" / f"{id}_{start:06d}_{end:06d}.mp4", 50, seed=i)
    return folder


def write_realestate(folder: Path, frames: int = 6, videos: int = 2) -> Path:
    """RealEstate10K: a camera that moves to the right by 0.1 a frame and turns about its own vertical axis."""
    (folder / "test").mkdir(parents=True)
    for number in range(videos):
        id = f"{number:016x}"
        lines = ["https://www.youtube.com/watch?v=aaaaaaaaaaa"]
        for t in range(frames):
            time = 50_050_000 + 33_367 * t
            camera = camera_of(t)
            lines.append(" ".join([str(time), "0.9 1.6 0.5 0.5 0 0", *(f"{value:.9f}" for value in camera.ravel())]))
            write_image(folder / "frames" / "test" / id / f"{time}.jpg", moving_frame(t, seed=number))
        (folder / "test" / f"{id}.txt").write_text("\n".join(lines) + "\n")
    return folder


def camera_of(t: int) -> npt.NDArray[np.float64]:
    """(3, 4): [R | t] of `write_realestate`."""
    angle = 0.05 * t
    rotation = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    position = np.array([0.1 * t, 0.0, 0.0])
    return np.column_stack([rotation, -rotation @ position])
