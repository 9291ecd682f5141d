"""`rvm eval boxes`: the rules of 4DS, and end to end on a miniature of MOT."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from readout_folders import (
    SPEED,
    write_mot,
)
from readout_heads import TRACKS, CountingEncoder, MovingTracker, head_file
from rvm_core.heads import (
    BoxHead,
    BoxHeadConfig,
)
from rvm_training.converters.mot import convert_mot
from rvm_training.datasets.boxes import BoxVideo
from rvm_training.evaluation.benchmark import DatasetError
from rvm_training.evaluators import box_tracking
from rvm_training.evaluators.box_tracking import BoxTracking, to_middle


def test_boxes_are_cut_to_the_part_in_the_middle() -> None:
    # 768x512 is twice 384x256, of which 64 are cut at each side.
    boxes = np.array([[[0, 0, 768, 512], [128, 0, 256, 100], [0, 0, 100, 100], [600, 500, 700, 600], [np.nan] * 4]])
    expected = [[0, 0, 256, 256], [0, 0, 64, 50], [np.nan] * 4, [236, 250, 256, 256], [np.nan] * 4]
    np.testing.assert_allclose(to_middle(boxes, (512, 768))[0], expected)


def test_which_frames_and_boxes_count(tmp_path: Path) -> None:
    frames = tuple(tmp_path / f"{t}.png" for t in range(100))
    cv2.imwrite(str(frames[0]), np.zeros((256, 384, 3), np.uint8))
    side = math.sqrt(box_tracking.SMALLEST) * 256
    corners = [(70.0, 10.0, 70 + s, 10 + s) for s in [side - 0.1, side + 0.1, *np.linspace(30, 60, 30)]]
    boxes = np.broadcast_to(np.array(corners), (100, 32, 4)).copy()
    boxes[0, 31] = np.nan
    video = BoxVideo(rate=14.0, frames=frames, ids=tuple(map(str, range(32))), boxes=boxes)
    task = box_tracking.make_task(video, 16)
    assert [int(path.stem) for path in task.frames] == [round(i * 14 / 5) for i in range(16)]
    # 25 of the 29 large ones, the smallest are left out, and so is the one that the first frame does not show.
    np.testing.assert_allclose(task.boxes[0, :, 2], [corners[i][2] - 64 for i in range(6, 31)])
    with pytest.raises(DatasetError, match="expected a video of 5 frames a second or more, got 4"):
        box_tracking.make_task(BoxVideo(rate=4.0, frames=frames, ids=video.ids, boxes=boxes), 16)


def test_a_perfect_tracker_of_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes move by 2 pixels of 256 a frame; a tracker that says 16 / 256 * `SPEED` * 256 is wrong by that, exactly."""
    speed = 256 * SPEED
    frames = tuple(tmp_path / f"{t}.png" for t in range(5))
    for t, path in enumerate(frames):
        cv2.imwrite(str(path), np.full((256, 384, 3), t, np.uint8))
    moved = np.arange(5)[:, None, None] * np.array([speed, 0, speed, 0])
    boxes = np.array([[[100.0, 50, 150, 100], [160, 100, 240, 180]]]) + moved
    boxes[3, 0] = np.nan
    video = BoxVideo(rate=5.0, frames=frames, ids=("1", "2"), boxes=boxes)

    class Folder:
        folder, ids = tmp_path, ["v"]

        def read(self, id: str) -> BoxVideo:
            return video

    monkeypatch.setattr(box_tracking, "create_tracker", lambda *args, **options: MovingTracker())
    benchmark = BoxTracking(Folder(), CountingEncoder())  # type: ignore[arg-type]
    result = benchmark.evaluate("v", pictures=True, advance=lambda share: None)
    # Four frames of two boxes, without the one that is hidden.
    assert result.scores["count"] == 7 and result.scores["sum"] == pytest.approx(7, abs=1e-4)
    boxes[1:] = boxes[0]
    standing = benchmark.evaluate("v", pictures=False, advance=lambda share: None)
    shifts = np.arange(1, 5) * speed
    ious = [(width - s) / (width + s) for width in (50, 80) for s in shifts]
    assert standing.scores["sum"] == pytest.approx(sum(ious), abs=1e-4)


@pytest.mark.parametrize("with_head", [False, True])
def test_boxes(tmp_path: Path, evaluate: Callable[..., dict[str, Any]], with_head: bool) -> None:
    convert_mot(write_mot(tmp_path / "train"), tmp_path / "boxes", lambda text, done, total: None)
    options: list[str | Path] = []
    if with_head:
        options = ["--head", head_file(tmp_path / "boxes.safetensors", BoxHead(BoxHeadConfig(**TRACKS)))]
    report = evaluate("boxes", tmp_path / "boxes", *options)
    (row,) = report["rows"]
    assert 0 <= row["values"]["box_iou"] <= 1
    assert report["notes"] == ["1 boxes in 1 videos"]
    assert ("untrained" in " ".join(report["not_comparable"])) is not with_head
    if not with_head:
        assert evaluate("boxes", tmp_path / "boxes", "--frames", "5")["identity"]["settings"]["frames"] == 5


def test_boxes_that_are_all_too_small(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    source = write_mot(tmp_path / "train")
    (source / "MOT17-02-FRCNN" / "gt" / "gt.txt").write_text("1,1,60,10,2,2,1,1,1\n")
    convert_mot(source, tmp_path / "boxes", lambda text, done, total: None)
    report = evaluate("boxes", tmp_path / "boxes")
    assert report["rows"][0]["values"]["box_iou"] is None and "1 videos have no box" in report["notes"][1]
