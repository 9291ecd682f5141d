"""Decoding of videos: which frames, how large, which way up, and what happens to damaged ones."""

from __future__ import annotations

import struct
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from rvm_training.data.video_files import VideoFileError, frame_count, read_video
from training_clips import frame_of, write_numbered_video

ROTATIONS = {
    90: (0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30),
    180: (-65536, 0, 0, 0, -65536, 0, 96 << 16, 48 << 16, 1 << 30),
    270: (0, -65536, 0, 65536, 0, 0, 0, 96 << 16, 1 << 30),
}
"""Matrices of an MP4 track of 48x96 pixels, as telephones write them."""
COLOUR_TOLERANCE = 3.0
"""Grey levels, on average, by which OpenCV's conversion of colours differs; a wrong turn would make 40."""


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 frames of 48x64 pixels."""
    return write_numbered_video(tmp_path_factory.mktemp("video") / "video.mp4", 70)


def test_all_frames_in_order(video: Path) -> None:
    frames = list(read_video(video, size=48))
    assert [frame_of(frame) for frame in frames] == list(range(70)) and frame_count(video) == 70
    assert all(frame.shape == (48, 64, 3) and frame.dtype == np.uint8 and frame.flags.c_contiguous for frame in frames)


def test_stride(video: Path) -> None:
    assert [frame_of(frame) for frame in read_video(video, size=48, stride=3)] == list(range(0, 70, 3))


@pytest.mark.parametrize(("size", "shape"), [(24, (24, 32, 3)), (16, (16, 21, 3)), (480, (48, 64, 3))])
def test_the_shorter_side_gets_smaller_and_never_larger(video: Path, size: int, shape: tuple[int, ...]) -> None:
    assert next(read_video(video, size=size)).shape == shape


@pytest.mark.parametrize("begin", [0, 1, 7, 8, 9, 35, 66, 69])
def test_a_start_is_exact(video: Path, begin: int) -> None:
    frames = read_video(video, size=48, start=begin)
    assert [frame_of(frame) for frame in islice(frames, 4)] == list(range(begin, min(begin + 4, 70)))


@pytest.mark.parametrize("degrees", ROTATIONS)
def test_pictures_are_upright(tmp_path: Path, degrees: int) -> None:
    path = tmp_path / "turned.mp4"
    image = np.zeros((48, 96, 3), np.uint8)
    image[:24, :48] = 255, 0, 0
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
        film.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        film.mux(stream.encode())
    data = path.read_bytes()
    matrix = data.index(b"tkhd") + 44
    path.write_bytes(data[:matrix] + struct.pack(">9i", *ROTATIONS[degrees]) + data[matrix + 36 :])
    frame = next(read_video(path, size=48))
    capture = cv2.VideoCapture(str(path))
    shown = capture.read()[1][..., ::-1]
    capture.release()
    assert frame.shape == shown.shape
    assert np.abs(frame.astype(float) - shown).mean() < COLOUR_TOLERANCE


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100, b"\x00\x00\x00\x18ftypmp42" + bytes(500)])
def test_what_is_no_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoFileError):
        next(read_video(path, size=48))
    with pytest.raises(VideoFileError):
        frame_count(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(VideoFileError, match="No such file"):
        next(read_video(tmp_path / "none.mp4", size=48))


def test_sound_only(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as film:
        stream = film.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        film.mux(stream.encode(sound))
        film.mux(stream.encode())
    with pytest.raises(VideoFileError, match="no pictures"):
        next(read_video(path, size=48))
    with pytest.raises(VideoFileError, match="no pictures"):
        frame_count(path)


def test_a_missing_decoder_names_the_extra(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match=r"rvm_perception\[train\]"):
        next(read_video(video, size=48))
