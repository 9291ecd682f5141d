"""`rvm eval depth` on a miniature of ScanNet."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from readout_folders import (
    DEPTH_MM,
    write_scannet,
)
from readout_heads import SMALL, head_file
from rvm_core.heads import (
    DepthHead,
    DepthHeadConfig,
)
from rvm_training.datasets.scannet import ScanNetFolder
from rvm_training.evaluation.benchmark import DatasetError


def depth_head(path: Path, metres: float, frames: int = 4) -> Path:
    head = DepthHead(DepthHeadConfig(frames=frames, image_size=(32, 32), **SMALL))
    return head_file(path, head, output=[math.log(metres)] * 128)


def test_depth(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    """A head that says 2.5 m of what is 2 m away is wrong by a quarter; what is not known does not count."""
    data = write_scannet(tmp_path / "scannet")
    report = evaluate("depth", data, "--head", depth_head(tmp_path / "d.safetensors", 2.5), "--size", "64x64")
    assert report["rows"][0]["values"]["abs_rel"] == pytest.approx(2500 / DEPTH_MM - 1, abs=1e-6)
    assert report["published"][0]["values"]["abs_rel"] == 0.120
    assert [video["id"] for video in report["videos"]] == ["scene0700_00", "scene0701_00"]
    assert "a head for 4 frames instead of 16" in report["not_comparable"]


def test_depth_counts_only_what_is_known(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    data = write_scannet(tmp_path / "scannet", scenes=1)
    for path in (data / "scans" / "scene0700_00" / "depth").iterdir():
        depth = np.zeros((48, 64), np.uint16)
        depth[:, 8:32], depth[:, 32:56] = 1000, 12000
        cv2.imwrite(str(path), depth)
    report = evaluate("depth", data, "--head", depth_head(tmp_path / "d.safetensors", 1.5), "--size", "64x64")
    assert report["rows"][0]["values"]["abs_rel"] == pytest.approx(0.5, abs=1e-6)


def test_depth_of_listed_scenes_and_options(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    data, head = write_scannet(tmp_path / "scannet"), depth_head(tmp_path / "d.safetensors", 2.0, frames=2)
    (data / "scannetv2_val.txt").write_text("scene0701_00\n\n")
    report = evaluate("depth", data, "--head", head, "--size", "64x64", "--clips", "3", "--stride", "2")
    assert [video["id"] for video in report["videos"]] == ["scene0701_00"]
    assert report["rows"][0]["values"]["abs_rel"] == pytest.approx(0, abs=1e-6)
    settings = report["identity"]["settings"]
    assert (settings["clips"], settings["stride"], settings["frames"]) == (3, 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: (data / "scans").rename(data / "x"),
            "looked for ScanNet's scenes .* in .*scans: it is not there",
        ),
        (lambda data: [p.rename(data / p.name) for p in list((data / "scans").iterdir())], "there is none"),
        (lambda data: (data / "scans/scene0700_00/depth").rename(data / "x"), "the first is scene0700_00/depth"),
        (lambda data: (data / "scannetv2_val.txt").write_text("scene9999_00"), "the first is scene9999_00/color"),
        (lambda data: (data / "scans/scene0700_00/depth/3.png").unlink(), "found 6 images .* and 5 depth maps"),
    ],
)
def test_damaged_scannet(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    data = write_scannet(tmp_path / "scannet")
    change(data)
    with pytest.raises(DatasetError, match=message):
        ScanNetFolder(data).read("scene0700_00")


def test_a_depth_map_of_another_kind_fails_its_scene(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    data = write_scannet(tmp_path / "scannet")
    cv2.imwrite(str(data / "scans/scene0700_00/depth/2.png"), np.zeros((48, 64), np.uint8))
    head = depth_head(tmp_path / "d.safetensors", 2.0)
    report = evaluate("depth", data, "--head", head, "--size", "64x64", expected=3)
    assert "expected a PNG with one channel of 16 bits" in report["failed"]["scene0700_00"]
    assert report["rows"][0]["values"]["abs_rel"] == pytest.approx(0, abs=1e-6)
