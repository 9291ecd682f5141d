"""`rvm eval pose` on a miniature of RealEstate10K."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from readout_folders import (
    camera_of,
    write_realestate,
)
from readout_heads import SMALL, head_file
from rvm_core.heads import (
    PoseHead,
    PoseHeadConfig,
)
from rvm_training.datasets.realestate import RealEstateFolder, relative_pose
from rvm_training.evaluation.benchmark import DatasetError
from rvm_training.evaluators.pose import CUBE


def pose_head(path: Path, said: np.ndarray) -> Path:
    head = PoseHead(PoseHeadConfig(**SMALL))
    return head_file(path, head, output=said.ravel().tolist())


def test_pose(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    """The clip is frames 1 to 4; a head that says their motion has no error, one that says none has the cube's."""
    data = write_realestate(tmp_path / "re10k")
    rotation, translation = relative_pose(camera_of(1), camera_of(4))
    true = np.column_stack([rotation, translation])
    options = ["--size", "64x64", "--frames", "4"]
    report = evaluate("pose", data, "--head", pose_head(tmp_path / "p.safetensors", true), *options)
    assert report["rows"][0]["values"]["end_point_error"] == pytest.approx(0, abs=1e-6)
    assert "clips of 4 frames instead of 16" in report["not_comparable"]
    still = np.column_stack([np.eye(3), np.zeros(3)])
    report = evaluate("pose", data, "--head", pose_head(tmp_path / "p.safetensors", still), *options)
    expected = np.linalg.norm(CUBE @ rotation.T + translation - CUBE, axis=1).mean()
    assert report["rows"][0]["values"]["end_point_error"] == pytest.approx(expected, abs=1e-6)
    report = evaluate(
        "pose", data, "--head", tmp_path / "p.safetensors", "--frames", "2", "--stride", "3", *options[:2]
    )
    assert report["rows"][0]["values"]["end_point_error"] == pytest.approx(expected, abs=1e-6)


def test_relative_poses_take_points_from_one_camera_to_the_other() -> None:
    point = np.array([0.3, -0.2, 2.0, 1.0])
    rotation, translation = relative_pose(camera_of(1), camera_of(5))
    np.testing.assert_allclose(rotation @ (camera_of(1) @ point) + translation, camera_of(5) @ point, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: (data / "test").rename(data / "x"), r"looked for files of cameras ID.txt in"),
        (lambda data: (data / "frames").rename(data / "x"), "looked for frames of 2 videos"),
        (lambda data: next((data / "frames/test" / ("0" * 16)).iterdir()).unlink(), "looked for 6 frames .*: 1 are mi"),
        (lambda data: text(data).write_text("url\n1 2 3\n"), "expected 19 numbers in each line after the first"),
        (lambda data: text(data).write_text("url\n"), "expected 19 numbers in each line after the first"),
        (lambda data: text(data).write_text("url\n" + "a " * 19), "is no file of cameras"),
        (lambda data: text(data).write_text("url\n" + "2 " * 19), "expected rotations and translations"),
        (lambda data: text(data).write_text("url\n1 " + "nan " * 18), "expected rotations and translations"),
    ],
)
def test_damaged_realestate(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    data = write_realestate(tmp_path / "re10k")
    change(data)
    with pytest.raises(DatasetError, match=message):
        RealEstateFolder(data).read("0" * 16)


def text(data: Path) -> Path:
    return data / "test" / f"{'0' * 16}.txt"


def test_a_video_that_is_too_short_fails_alone(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    data = write_realestate(tmp_path / "re10k")
    lines = text(data).read_text().splitlines()
    text(data).write_text("\n".join(lines[:4]))
    head = pose_head(tmp_path / "p.safetensors", np.zeros((3, 4)))
    report = evaluate("pose", data, "--head", head, "--size", "64x64", "--frames", "4", expected=3)
    assert "expected a video of 4 frames or more, got 3" in report["failed"]["0" * 16]
