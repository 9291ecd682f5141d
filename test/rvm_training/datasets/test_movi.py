"""MOVi-E, of a scene in which everything is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("google_crc32c", reason="reading TFRecord files needs google-crc32c, of the extra train")
pytest.importorskip("google.protobuf", reason="reading TFRecord files needs protobuf, of the extra train")

from mini_movi import (
    CAMERA_HEIGHT,
    FRAMES,
    OBJECT_HEIGHT,
    SIZE,
    camera_x,
    example,
    in_object,
    label_image,
    object_pose,
    to_image,
    to_world,
    write_movi,
)
from rvm_training.datasets.movi import MoviFolder, MoviVideo, read_video
from rvm_training.datasets.tfrecord import parse_example
from rvm_training.evaluation.benchmark import DatasetError
from rvm_training.readouts.movi_tracks import follow_pixel, point_tracks

DEPTH_STEP = 10 / 65535
"""Metres: of the depth maps."""
PIXELS = 0.02
"""Tracks are as exact as the depth maps' steps, and float32, let them be."""


@pytest.fixture(scope="module")
def video() -> MoviVideo:
    return read_video(parse_example(example()), "test")


def test_pictures_and_depth_are_as_they_were_written(video: MoviVideo) -> None:
    assert video.video.shape == (FRAMES, SIZE, SIZE, 3) and video.video.dtype == np.uint8
    assert np.array_equal(video.labels, [label_image(t) for t in range(FRAMES)])
    assert (video.video[video.labels == 1] == 200).all()
    depth = np.where(video.labels == 1, CAMERA_HEIGHT - OBJECT_HEIGHT, CAMERA_HEIGHT)
    assert np.abs(video.depth - depth).max() < 2 * DEPTH_STEP


def test_boxes_are_those_of_the_labels(video: MoviVideo) -> None:
    for t in range(FRAMES):
        rows, columns = np.nonzero(video.labels[t])
        expected = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / SIZE
        assert np.allclose(video.boxes[t, 0], expected, atol=1e-6)


def test_places_of_the_world_are_where_the_camera_sees_them(video: MoviVideo) -> None:
    place = np.array([0.3, -0.4, 0.7])
    for t in range(FRAMES):
        seen = video.intrinsics @ (video.world_to_camera[t, :, :3] @ place + video.world_to_camera[t, :, 3])
        assert np.allclose(seen[:2] / seen[2], to_image(place, t), atol=1e-5)


@pytest.mark.parametrize("start", [0, 3])
def test_points_on_the_object_are_followed(video: MoviVideo, start: int) -> None:
    x, y = to_image(object_pose(start)[1] + [0.3, 0.2, 0], start).astype(int)
    assert video.labels[start, y, x] == 1
    own = in_object(to_world(x + 0.5, y + 0.5, OBJECT_HEIGHT, start), start)
    track, seen = follow_pixel(video, start, int(y), int(x))
    for t in range(FRAMES):
        angle, middle = object_pose(t)
        turned = [np.cos(angle) * own[0] - np.sin(angle) * own[1], np.sin(angle) * own[0] + np.cos(angle) * own[1], 0]
        assert np.abs(track[t] - to_image(middle + turned, t)).max() < PIXELS
    assert seen.all()


def test_a_point_of_the_floor_is_hidden_while_the_object_is_over_it(video: MoviVideo) -> None:
    # In the first frame the square does not yet cover what it covers in the last.
    last = (video.labels[-1] == 1) & (video.labels[0] == 0)
    rows, columns = np.nonzero(last)
    hidden = 0
    for row, column in zip(rows[::15], columns[::15], strict=True):
        track, seen = follow_pixel(video, 0, int(row), int(column))
        place = to_world(column + 0.5, row + 0.5, 0.0, 0)
        for t in range(FRAMES):
            x, y = to_image(place, t)
            assert np.abs(track[t] - (x, y)).max() < PIXELS
            if 0 <= x < SIZE and 0 <= y < SIZE:
                assert seen[t] == (video.labels[t, int(y), int(x)] == 0)
                hidden += not seen[t]
    assert hidden


def test_points_are_drawn_from_everything_that_is_seen(video: MoviVideo) -> None:
    tracks, seen = point_tracks(video, 40, np.random.default_rng(0))
    assert tracks.shape == (FRAMES, 40, 2) and seen.shape == (FRAMES, 40)
    assert seen.any(axis=0).all()
    t, which = np.nonzero(seen)
    x, y = (tracks[t, which] * SIZE).astype(int).T
    on_object = video.labels[t, y, x] == 1
    assert 0.2 < on_object.mean() < 0.8
    assert ((tracks[seen] >= 0) & (tracks[seen] < 1)).all()


def test_a_folder_is_read_by_split_and_number(tmp_path: Path) -> None:
    folder = write_movi(tmp_path)
    train, validation = MoviFolder(folder, "train"), MoviFolder(folder / "1.0.0", "validation")
    assert (len(train), len(validation)) == (3, 2)
    assert np.array_equal(train.read(2).video, read_video(parse_example(example(seed=1)), "").video)
    assert not np.array_equal(train.read(0).video, train.read(1).video)
    assert train.read(1).world_to_camera[2, 0, 3] == pytest.approx(-camera_x(2))


def test_an_example_without_a_field_is_refused() -> None:
    for key in ("video", "depth", "camera/positions", "instances/bboxes/ragged_row_lengths_0"):
        with pytest.raises(DatasetError, match="not as MOVi has it.*" + key.split("/")[0]):
            read_video(parse_example(example(leave_out=key)), "test")


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="dataset_info.json"):
        MoviFolder(tmp_path, "train")
    folder = write_movi(tmp_path) / "1.0.0"
    with pytest.raises(DatasetError, match="no split 'test'; it has train, validation"):
        MoviFolder(folder, "test")
    shard = folder / "movi_e-train.tfrecord-00001-of-00002"
    shard.unlink()
    with pytest.raises(DatasetError, match="1 are missing, the first is movi_e-train.tfrecord-00001-of-00002"):
        MoviFolder(folder, "train")
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][1]["shardLengths"] = ["5"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DatasetError, match="has 2 records"):
        MoviFolder(folder, "validation").read(4)
