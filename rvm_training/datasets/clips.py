"""Which frames of a video make a clip, and reading just these from a video file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from rvm_training.evaluation.benchmark import DatasetError

UInt8Array = npt.NDArray[np.uint8]


def clip_indices(total: int, *, frames: int, stride: int, clips: int) -> list[list[int]]:
    """Frames of `clips` clips, spread evenly over a video of `total` frames; of one clip, the one in the middle.

    Each has `frames` frames, every `stride`-th; where the video ends before, its last frame is repeated.
    """
    if total < 1:
        raise ValueError(f"expected a video of one frame or more, got {total}")
    last_start = max(0, total - ((frames - 1) * stride + 1))
    starts = np.linspace(0, last_start, clips) if clips > 1 else np.array([last_start / 2])
    return [np.minimum(int(start) + np.arange(frames) * stride, total - 1).tolist() for start in starts]


def count_frames(path: Path) -> int:
    """How many frames of a video file can be decoded; what its header says is not trusted."""
    capture = _open(path)
    try:
        total = 0
        while capture.grab():
            total += 1
    finally:
        capture.release()
    if not total:
        raise DatasetError(f"{path} holds no frame that can be decoded")
    return total


def read_video_frames(path: Path, indices: Sequence[int]) -> Iterator[tuple[int, UInt8Array]]:
    """These frames of a video file, in their order: number and RGB (H, W, 3).

    Raises `DatasetError` where the file ends before, or a frame cannot be decoded.
    """
    wanted = set(indices)
    capture = _open(path)
    try:
        for index in range(max(wanted, default=-1) + 1):
            if not capture.grab():
                raise DatasetError(f"{path} ends after {index} frames")
            if index in wanted:
                done, frame = capture.retrieve()
                if not done:
                    raise DatasetError(f"frame {index} of {path} cannot be decoded")
                yield index, np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
    finally:
        capture.release()


def _open(path: Path) -> cv2.VideoCapture:
    if not path.is_file():
        raise DatasetError(f"looked for a video in {path}: it is not there")
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise DatasetError(f"{path} is no video that can be decoded")
    return capture
