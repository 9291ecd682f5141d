"""A short video file for tests, each frame of which tells its number."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np

FRAMES, RATE = 25, 25.0
HEIGHT, WIDTH = 48, 72
TIMEOUT_S = 60.0


def level_of(frame: int) -> int:
    """The grey level that stands for the number of a frame."""
    return 40 + 7 * frame


def make_clip(folder: Path) -> Path:
    """Writes 25 grey frames with one bright quarter."""
    path = folder / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (WIDTH, HEIGHT))
    for frame in range(FRAMES):
        image = np.full((HEIGHT, WIDTH, 3), level_of(frame), np.uint8)
        image[: HEIGHT // 2, : WIDTH // 2] = 250
        writer.write(image)
    writer.release()
    return path


def wait_for_text(path: Path, text: str) -> None:
    """Fails the test if a process does not write the text to its file in time."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline, f"{text!r} did not come: {path.read_text() if path.exists() else ''}"
        time.sleep(0.02)
