"""Video files, read and written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from rvm_perception import video
from rvm_perception.video import VideoError, read_frames, video_info, write_video
from video_clip import FRAMES, HEIGHT, RATE, WIDTH, make_clip

LEVELS = 4
"""Levels of 255 that a plain colour may be off after H.264 in yuv420p."""


def test_info_is_that_of_the_file(tmp_path: Path) -> None:
    info = video_info(make_clip(tmp_path))
    assert (info.width, info.height, info.rate, info.frames) == (WIDTH, HEIGHT, RATE, FRAMES)


def test_frames_are_read_in_order_and_again(tmp_path: Path) -> None:
    path = make_clip(tmp_path)
    frames = list(read_frames(path))
    assert len(frames) == FRAMES and frames[0].shape == (HEIGHT, WIDTH, 3)
    levels = [frame[-1, -1, 0] for frame in frames]
    assert levels == sorted(levels) and len(set(levels)) == FRAMES
    np.testing.assert_array_equal(np.stack(frames), np.stack(list(read_frames(path))))


def test_a_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no such video file"):
        video_info(tmp_path / "gone.mp4")
    (tmp_path / "text.mp4").write_text("text")
    with pytest.raises(VideoError, match="cannot open"):
        next(read_frames(tmp_path / "text.mp4"))


@pytest.mark.parametrize("size", [(48, 64), (47, 65)])
def test_written_video_has_the_images_and_their_times(tmp_path: Path, size: tuple[int, int]) -> None:
    pytest.importorskip("av", reason="films are written with PyAV (extra: demo)")
    times, colors = [0, 40, 200, 1000], [(200, 30, 30), (30, 200, 30), (30, 30, 200), (90, 90, 90)]
    images = [np.full((*size, 3), color, np.uint8) for color in colors]
    path = tmp_path / "film.mp4"
    write_video(path, zip(times, images, strict=True), rate=25.0)
    capture, read = cv2.VideoCapture(str(path)), []
    while (frame := capture.read()[1]) is not None:
        read.append((capture.get(cv2.CAP_PROP_POS_MSEC), frame[..., ::-1]))
    assert [time for time, _ in read] == pytest.approx(times, abs=1)
    for (_, frame), image in zip(read, images, strict=True):
        assert np.abs(frame[: size[0], : size[1]].astype(int) - image).max() <= LEVELS
    assert list(tmp_path.iterdir()) == [path]


def test_failed_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="films are written with PyAV (extra: demo)")

    def broken() -> Iterator[tuple[int, video.UInt8Array]]:
        yield 0, np.zeros((16, 16, 3), np.uint8)
        raise KeyError

    with pytest.raises(KeyError):
        write_video(tmp_path / "film.mp4", broken(), rate=25.0)
    write_video(tmp_path / "film.mp4", [], rate=25.0)
    assert not list(tmp_path.iterdir())


def test_missing_writer_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoError, match=r"rvm_perception\[demo\]"):
        video.require_video_writer()
