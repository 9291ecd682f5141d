"""Clips of miniature datasets in their real layouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from readout_folders import (
    SPEED,
    camera_of,
    write_davis,
    write_kinetics,
    write_mot,
    write_realestate,
    write_scannet,
    write_ssv2,
)
from readout_heads import converted
from rvm_training.converters.mot import convert_mot
from rvm_training.datasets.realestate import relative_pose
from rvm_training.evaluation.benchmark import DatasetError
from rvm_training.readouts.clips import ClipSource, Task
from rvm_training.readouts.sources import SourceRequest, open_source, parse_data

HEIGHT = WIDTH = 64


def request(task: Task, path: Path, **options: Any) -> SourceRequest:
    given: dict[str, Any] = {
        "split": None, "held_out": False, "count": None, "image_size": (HEIGHT, WIDTH), "frames": 4, "stride": 1,
        "points": 6, "objects": 3, "seed": 0,
    }  # fmt: skip
    return SourceRequest(task=task, path=path, **(given | options))


def check(source: ClipSource) -> dict[str, Any]:
    """A clip, after checks that hold for all sources."""
    clip, again, other = source.clip(0), source.clip(0), source.clip(len(source) - 1)
    assert clip.video.shape == (4, HEIGHT, WIDTH, 3) and clip.video.dtype == np.uint8
    assert np.array_equal(clip.video, again.video)
    for name, values in clip.truth.items():
        assert np.array_equal(values, again.truth[name])
        assert (values.shape, values.dtype) == (other.truth[name].shape, other.truth[name].dtype)
    return clip.truth


def test_points_of_tapvid_move_as_they_do(tmp_path: Path) -> None:
    folder = converted(tmp_path / "davis", write_davis(tmp_path / "raw"), "davis")
    truth = check(open_source("tapvid", request("points", folder, count=5)))
    known = truth["points.valid"].all(axis=0)
    assert truth["points.positions"].shape == (4, 6, 2) and 0 < known.sum() < 6
    steps = np.diff(truth["points.positions"][:, known], axis=0)
    assert np.allclose(steps, [SPEED, 0], atol=1e-5)
    assert not truth["points.startable"][:, ~known].any()
    assert not (truth["points.startable"] & ~truth["points.visible"]).any()


def test_boxes_of_a_converted_folder(tmp_path: Path) -> None:
    convert_mot(write_mot(tmp_path / "mot", frames=40, rate=10), tmp_path / "boxes", lambda text, done, total: None)
    source = open_source("boxes", request("boxes", tmp_path / "boxes", count=3))
    truth = check(source)
    assert truth["boxes.positions"].shape == (4, 3, 4)
    assert truth["boxes.visible"][:, 0].all() and not truth["boxes.valid"][:, 1:].any()
    starts = {float(source.clip(index).truth["boxes.positions"][0, 0, 0]) for index in range(3)}
    assert len(starts) > 1


def test_depth_of_scannet_is_in_metres_with_holes(tmp_path: Path) -> None:
    truth = check(open_source("scannet", request("depth", write_scannet(tmp_path))))["depth.metres"]
    assert truth.shape == (4, HEIGHT, WIDTH) and set(np.unique(truth)) == {0.0, 2.0}


def test_scannet_takes_the_scenes_of_its_split(tmp_path: Path) -> None:
    write_scannet(tmp_path, scenes=3)
    (tmp_path / "scannetv2_train.txt").write_text("scene0700_00\nscene0702_00\n")
    (tmp_path / "scannetv2_val.txt").write_text("scene0701_00\n")
    train, val = (open_source("scannet", request("depth", tmp_path, split=name)) for name in ("train", "val"))
    assert (len(train), len(val)) == (2, 1)


def test_classes_of_videos(tmp_path: Path) -> None:
    ssv2, kinetics = write_ssv2(tmp_path / "ssv2"), write_kinetics(tmp_path / "kinetics")
    source: Any = open_source("ssv2", request("class", ssv2, split="validation", stride=2))
    check(source)
    assert len(source.classes) == 3
    assert sorted(int(source.clip(index).truth["class.label"]) for index in range(3)) == [1, 2, 2]
    with pytest.raises(DatasetError, match="train.json"):
        open_source("ssv2", request("class", ssv2, split="train"))
    other: Any = open_source("kinetics", request("class", kinetics, split="val"))
    check(other)
    assert other.classes == ("abseiling", "yoga")


def test_poses_of_realestate(tmp_path: Path) -> None:
    data = write_realestate(tmp_path)
    truth = check(open_source("realestate", request("pose", data, split="test", held_out=True)))
    rotation, translation = relative_pose(camera_of(1), camera_of(4))
    assert np.allclose(truth["pose.rotation"], rotation, atol=1e-5)
    assert np.allclose(truth["pose.translation"], translation, atol=1e-5)


@pytest.mark.parametrize("task", ["points", "boxes", "depth", "pose"])
def test_movi_serves_four_tasks(tmp_path: Path, task: Task) -> None:
    pytest.importorskip("google_crc32c", reason="MOVi-E needs google-crc32c, of the extra train")
    from mini_movi import CAMERA_HEIGHT, OBJECT_HEIGHT, write_movi

    folder = write_movi(tmp_path)
    truth = check(open_source("movi", request(task, folder, split="train")))
    if task == "depth":
        found = np.unique(np.round(truth["depth.metres"], 2))
        assert found.tolist() == [CAMERA_HEIGHT - OBJECT_HEIGHT, CAMERA_HEIGHT]
    elif task == "pose":
        assert np.allclose(truth["pose.rotation"], np.eye(3), atol=1e-6)
        assert np.allclose(truth["pose.translation"], [-0.15, 0, 0], atol=1e-5)
    else:
        assert truth["points.valid"].all() and truth["points.startable"].any()
        assert truth["boxes.visible"][:, 0].all() and not truth["boxes.valid"][:, 1:].any()


def test_videos_of_one_split_are_shared_out(tmp_path: Path) -> None:
    folder = converted(tmp_path / "t", write_davis(tmp_path / "raw", {f"video{i}": 6 for i in range(12)}), "davis")
    sources: list[Any] = [
        open_source("tapvid", request("points", folder, set_aside=True, held_out=held_out))
        for held_out in (False, True)
    ]
    training, held_out = (set(source.videos) for source in sources)
    assert len(training) == 10 and len(held_out) == 2 and not training & held_out
    with pytest.raises(DatasetError, match="too few to hold one out"):
        alone = converted(tmp_path / "one", write_davis(tmp_path / "raw1", {"only": 6}), "davis")
        open_source("tapvid", request("points", alone, set_aside=True))


def test_videos_that_are_too_short_are_refused(tmp_path: Path) -> None:
    source = open_source("scannet", request("depth", write_scannet(tmp_path, frames=3)))
    with pytest.raises(DatasetError, match="expected a video of 4 frames or more, got 3"):
        source.clip(0)


def test_more_clips_than_videos_begin_elsewhere(tmp_path: Path) -> None:
    source = open_source("scannet", request("depth", write_scannet(tmp_path, scenes=1, frames=12), count=8))
    assert len(source) == 8
    assert len({source.clip(index).video.tobytes() for index in range(8)}) > 2


def test_another_seed_split_or_size_is_another_source(tmp_path: Path) -> None:
    data = request("depth", write_scannet(tmp_path))
    sources = [data, replace(data, seed=1), replace(data, image_size=(32, 32)), replace(data, frames=3)]
    identities = [str(open_source("scannet", wanted).identity) for wanted in sources]
    assert len(set(identities)) == len(sources)


@pytest.mark.parametrize("text", ["movi", "synthetic:/path", "other"])
def test_data_that_is_not_known_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected --data|unknown data"):
        parse_data(text)


def test_mujoco_gives_depth_and_poses() -> None:
    pytest.importorskip("mujoco", reason="the scenes need mujoco, of the extra scenes")
    from rvm_training.data.mujoco_scenes_config import MujocoSceneConfig
    from rvm_training.data.mujoco_scenes_render import RenderError
    from rvm_training.readouts.mujoco_clips import MujocoClips

    config = MujocoSceneConfig(
        height=32, width=32, num_frames=3, num_points=4, static_objects=(2, 3), moving_objects=(1, 1)
    )
    try:
        depth, tracks = (MujocoClips(config=config, task=task, count=2).clip(0) for task in ("depth", "pose"))
    except RenderError as error:
        pytest.skip(f"nothing can be drawn here: {error}")
    assert depth.truth["depth.metres"].shape == (3, 32, 32) and (depth.truth["depth.metres"] > 0).all()
    assert tracks.truth["boxes.positions"].shape == (3, 4, 4) and tracks.truth["points.positions"].shape == (3, 4, 2)
    rotation = tracks.truth["pose.rotation"]
    assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)


def test_every_name_says_what_it_needs() -> None:
    from rvm_training.readouts.sources import ENTRIES

    opened: dict[str, Callable[..., Any]] = {name: entry.open for name, entry in ENTRIES.items()}
    assert {"movi", "waymo", "scannet", "ssv2", "kinetics", "realestate", "synthetic", "mujoco"} <= opened.keys()
    assert {task for entry in ENTRIES.values() for task in entry.tasks} == {"points", "boxes", "depth", "class", "pose"}
