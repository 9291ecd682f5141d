"""What `rvm show` looks at: a clip whose frames can be read several times, and its features, kept on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.preprocess import FrameMap
from rvm_perception.video import VideoError, read_frames, video_info

UInt8Array = npt.NDArray[np.uint8]
Float16Array = npt.NDArray[np.float16]
Float32Array = npt.NDArray[np.float32]

DEFAULT_RATE = 25.0
"""Frames per second of a file that does not say."""


class Frame(NamedTuple):
    """One frame of a clip."""

    seconds: float
    """Its time from the start of the recording."""
    image: UInt8Array
    """(H, W, 3) RGB."""
    starts: bool = False
    """Whether the state starts anew with it; it does so with the first one in any case."""


class Clip(Protocol):
    """A part of a recording of one camera, all frames of one size."""

    name: str
    rate: float
    """Frames per second, nominal."""
    expected: int | None
    """About how many frames there are; None where that is not known."""
    recovered: str
    """What is wrong with a recording of which only a part can be read; empty for a whole one."""

    def frames(self) -> Iterator[Frame]:
        """The frames in order, from the start; the same ones each time."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which part of a recording is looked at."""

    start: float = 0.0
    """Seconds; the first frame is the first one that is not earlier."""
    seconds: float | None = None
    """How long; None: to the end."""

    def holds(self, seconds: float) -> bool:
        # What is a frame's own time on paper may differ in the last digits.
        return seconds >= self.start - 1e-6 and not self.is_over(seconds)

    def is_over(self, seconds: float) -> bool:
        return self.seconds is not None and seconds >= self.start + self.seconds - 1e-6


class VideoClip:
    """A part of a video file. See `Clip`."""

    recovered = ""

    def __init__(self, path: Path, part: Part) -> None:
        """Raises `VideoError` if the file cannot be read."""
        info = video_info(path)
        self._path, self._part = path, part
        self.name = path.name
        self.rate = info.rate or DEFAULT_RATE
        self.expected = self._expected(info.frames)

    def frames(self) -> Iterator[Frame]:
        with closing(read_frames(self._path)) as images:  # type: ignore[type-var]
            timed = ((number / self.rate, bgr) for number, bgr in enumerate(images))
            for seconds, bgr in takewhile(lambda frame: not self._part.is_over(frame[0]), timed):
                if self._part.holds(seconds):
                    yield Frame(seconds, np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8))

    def _expected(self, frames: int) -> int | None:
        if not frames:
            return None
        left = frames - int(np.ceil(self._part.start * self.rate - 1e-6))
        if self._part.seconds is not None:
            left = min(left, round(self._part.seconds * self.rate))
        return max(0, left)


class StoredFeatures:
    """Feature maps of all frames of a clip in a temporary file, as float16: long clips do not fit into memory."""

    def __init__(self, file: IO[bytes]) -> None:
        """file: open for reading and writing, empty; it is the caller's to close."""
        self._file = file
        self._shape: tuple[int, ...] = ()
        self._count = 0

    def append(self, features: Float32Array) -> None:
        """Takes the features of the next frame, (rows, cols, D) or any other shape, always the same."""
        if self._count and features.shape != self._shape:
            raise ValueError(f"expected features of shape {self._shape}, got {features.shape}")
        largest = np.finfo(np.float16).max
        self._file.write(np.clip(features, -largest, largest).astype(np.float16).tobytes())
        self._shape, self._count = features.shape, self._count + 1

    def array(self) -> Float16Array:
        """(T, rows, cols, D), of which only what is used is read."""
        self._file.flush()
        return np.memmap(self._file, np.float16, "r", shape=(self._count, *self._shape))


@dataclass(frozen=True, kw_only=True)
class EncodedClip:
    """A clip with its features."""

    clip: Clip
    features: Float16Array
    """(T, rows, cols, D)."""
    seconds: list[float]
    """Of each frame."""
    starts: list[int]
    """Numbers of the frames with which the state starts anew, the first one's too."""
    frame_map: FrameMap

    def frames(self) -> Iterator[tuple[Frame, Float32Array]]:
        """Each frame with its features (rows, cols, D)."""
        for frame, features in zip(self.clip.frames(), self.features, strict=True):
            yield frame, features.astype(np.float32)

    def frame_at(self, seconds: float | None) -> int:
        """Number of the first frame that is not earlier; None: the first of all.

        Raises `VideoError` if the clip ends before.
        """
        if seconds is None:
            return 0
        for number, time in enumerate(self.seconds):
            if time >= seconds - 1e-6:
                return number
        raise VideoError(
            f"{self.clip.name} is shown from {self.seconds[0]:.2f} s to {self.seconds[-1]:.2f} s: there is no frame "
            f"at {seconds:g} s"
        )


def encode(clip: Clip, frames: Iterator[Frame], engine: Any, preprocess: Any, file: IO[bytes]) -> EncodedClip:
    """Steps the model through all frames.

    Args:
        frames: those of the clip, perhaps wrapped in a progress bar.
        engine: an `rvm_core.engines.Engine` for the size of `preprocess`, an `rvm_core.preprocess.Preprocess`.
        file: where the features are kept; the result can be used while it is open.

    Raises `VideoError` for a clip without frames, of changing size, or whose features are not finite.
    """
    stored, seconds, state = StoredFeatures(file), [], None
    starts: list[int] = []
    frame_map: FrameMap | None = None
    for number, frame in enumerate(frames):
        here = preprocess.map(*frame.image.shape[:2])
        if frame_map not in (None, here):
            raise VideoError(
                f"{clip.name} changes its size at {frame.seconds:.2f} s; show the parts one by one, with --start and "
                "--seconds"
            )
        frame_map = here
        if frame.starts or not starts:
            state = engine.init_state()
            starts.append(number)
        features, state = engine.step(preprocess(frame.image)[None], state)
        tokens = features[0].cpu().numpy()
        if not np.isfinite(tokens).all():
            raise VideoError(f"frame {number} of {clip.name}: the engine returned NaN or infinite features")
        stored.append(tokens[1:].reshape(here.rows, here.cols, -1))
        seconds.append(frame.seconds)
    if frame_map is None:
        raise VideoError(f"{clip.name} has no frame in the part that is asked for")
    return EncodedClip(clip=clip, features=stored.array(), seconds=seconds, starts=starts, frame_map=frame_map)
