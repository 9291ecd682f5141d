"""`rvm eval classes` on miniatures of Something-Something v2 and Kinetics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from readout_folders import (
    SSV2,
    write_kinetics,
    write_ssv2,
    write_video,
)
from readout_heads import SMALL, head_file
from rvm_core.cli import main
from rvm_core.heads import (
    ClassHead,
    ClassHeadConfig,
)
from rvm_training.datasets.clips import clip_indices, count_frames, read_video_frames
from rvm_training.datasets.video_classes import open_classes
from rvm_training.evaluation.benchmark import DatasetError

pytestmark = pytest.mark.usefixtures("eval_command")


def class_head(path: Path, said: int, classes: int) -> Path:
    head = ClassHead(ClassHeadConfig(classes=classes, frames=4, **SMALL))
    return head_file(path, head, output=[float(index == said) for index in range(classes)])


@pytest.mark.parametrize(("said", "expected"), [(0, 0.0), (1, 1 / 3), (2, 2 / 3)])
def test_classes_of_ssv2(tmp_path: Path, evaluate: Callable[..., dict[str, Any]], said: int, expected: float) -> None:
    data, head = write_ssv2(tmp_path / "ssv2"), class_head(tmp_path / "c.safetensors", said, 3)
    report = evaluate("classes", data, "--head", head, "--size", "64x64")
    assert report["rows"][0]["values"]["top_1"] == pytest.approx(expected)
    assert [row["values"]["top_1"] for row in report["published"]] == [0.597, 0.667, 0.687]
    settings = report["identity"]["settings"]
    assert (settings["dataset"], settings["clips"], settings["stride"]) == ("ssv2", 1, 2)
    assert settings["classes"] == list(SSV2)


def test_classes_of_kinetics(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    data, head = write_kinetics(tmp_path / "kinetics"), class_head(tmp_path / "c.safetensors", 1, 2)
    report = evaluate("classes", data, "--head", head, "--size", "64x64")
    assert report["identity"]["settings"]["clips"] == 7
    assert report["identity"]["settings"]["classes"] == ["abseiling", "yoga"]
    assert report["rows"][0]["values"]["top_1"] == pytest.approx(2 / 3)
    assert report["published"][0]["values"]["top_1"] == 0.496


def test_kinetics_with_missing_videos_is_not_comparable(
    tmp_path: Path, evaluate: Callable[..., dict[str, Any]]
) -> None:
    data, head = write_kinetics(tmp_path / "kinetics", missing=True), class_head(tmp_path / "c.safetensors", 0, 2)
    report = evaluate("classes", data, "--head", head, "--size", "64x64")
    assert report["rows"][0]["values"]["top_1"] == 0.5
    assert "1 of 3 videos of the list are missing" in report["not_comparable"]


def test_kinetics_in_folders_of_classes(tmp_path: Path) -> None:
    for i, path in enumerate(("yoga/a.mp4", "yoga/b.mp4", "abseiling/c.mp4")):
        write_video(tmp_path / "val" / path, 5, seed=i)
    dataset = open_classes(tmp_path)
    assert dataset.labels == {"abseiling/c.mp4": 0, "yoga/a.mp4": 1, "yoga/b.mp4": 1}
    (tmp_path / "classes.txt").write_text("zumba\nyoga\nabseiling\n")
    assert open_classes(tmp_path).labels == {"abseiling/c.mp4": 2, "yoga/a.mp4": 1, "yoga/b.mp4": 1}
    (tmp_path / "classes.txt").write_text("yoga\n")
    with pytest.raises(DatasetError, match="does not list the class 'abseiling'"):
        open_classes(tmp_path)


def test_classes_that_the_head_does_not_have(
    tmp_path: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, head = write_ssv2(tmp_path / "ssv2"), class_head(tmp_path / "c.safetensors", 0, 5)
    arguments = ["--data", data, "--weights", tiny_path, "--head", head, "--out", tmp_path / "out"]
    assert main(["eval", "classes", *map(str, arguments)]) == 1
    assert "expected a head for the 3 classes there are, got 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: (data / "labels" / "labels.json").unlink(),
            "looked for videos of Kinetics in .*neither is there",
        ),
        (lambda data: (data / "labels" / "labels.json").write_text("[]"), "expected a dict that is not empty"),
        (lambda data: (data / "labels" / "labels.json").write_text('{"a": "3"}'), "expected the numbers 0 to 0"),
        (lambda data: (data / "labels" / "labels.json").write_text('{"a": "x"}'), "expected templates with numbers"),
        (lambda data: (data / "labels" / "labels.json").write_text('{"a": "0"}'), "no known template"),
        (lambda data: (data / "labels" / "validation.json").unlink(), "looked for validation.json or something-som"),
        (lambda data: (data / "labels" / "validation.json").write_text("{"), "cannot be read as JSON"),
        (lambda data: (data / "20bn-something-something-v2").rename(data / "x"), "looked for the videos of Something"),
        (lambda data: (data / "20bn-something-something-v2/101.webm").unlink(), "1 are missing, the first is 101.webm"),
    ],
)
def test_damaged_ssv2(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    data = write_ssv2(tmp_path / "ssv2")
    change(data)
    with pytest.raises(DatasetError, match=message):
        open_classes(data)


def test_damaged_kinetics(tmp_path: Path) -> None:
    data = write_kinetics(tmp_path / "kinetics")
    table = data / "annotations" / "val.csv"
    kept = table.read_text()
    table.write_text("a,b\n1,2\n")
    with pytest.raises(DatasetError, match="expected columns label, youtube_id, time_start, time_end"):
        open_classes(data)
    table.write_text(kept.replace("000", "x").replace("yoga,-aBc_dEfGhI,10", "yoga,other,11"))
    for path in list((data / "val").iterdir()):
        path.unlink()
    with pytest.raises(DatasetError, match=r"as .*val.csv lists them, or for .*found none"):
        open_classes(data)


def test_a_video_that_cannot_be_decoded_fails_alone(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    data, head = write_ssv2(tmp_path / "ssv2"), class_head(tmp_path / "c.safetensors", 2, 3)
    (data / "20bn-something-something-v2" / "101.webm").write_bytes(b"no video")
    report = evaluate("classes", data, "--head", head, "--size", "64x64", expected=3)
    assert "101.webm" in report["failed"]["101"] and report["rows"][0]["values"]["top_1"] == 1.0


@pytest.mark.parametrize(
    ("total", "frames", "stride", "clips", "expected"),
    [
        (100, 4, 2, 1, [[46, 48, 50, 52]]),
        (7, 4, 2, 1, [[0, 2, 4, 6]]),
        (5, 4, 2, 1, [[0, 2, 4, 4]]),
        (1, 3, 2, 2, [[0, 0, 0], [0, 0, 0]]),
        (11, 2, 1, 4, [[0, 1], [3, 4], [6, 7], [9, 10]]),
    ],
)
def test_which_frames_make_a_clip(total: int, frames: int, stride: int, clips: int, expected: list[list[int]]) -> None:
    assert clip_indices(total, frames=frames, stride=stride, clips=clips) == expected


def test_frames_of_a_video_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.webm", 9)
    assert count_frames(path) == 9
    every = dict(read_video_frames(path, range(9)))
    some = dict(read_video_frames(path, [7, 2, 2]))
    assert list(some) == [2, 7]
    assert np.array_equal(some[7], every[7]) and not np.array_equal(some[2], some[7])
    with pytest.raises(DatasetError, match="ends after 9 frames"):
        list(read_video_frames(path, [9]))
    with pytest.raises(DatasetError, match="looked for a video in"):
        count_frames(tmp_path / "b.webm")
