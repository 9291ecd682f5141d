"""Video files: reading frames with OpenCV, writing a film with PyAV."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.atomic import atomic_file

UInt8Array = npt.NDArray[np.uint8]

_MILLISECOND = Fraction(1, 1000)
# The same pictures give the same bytes: x264's macroblock tree differs from run to run, and the rest with the number of
# threads.
_QUALITY = {"crf": "20", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}


class VideoError(RuntimeError):
    """A video file is missing or cannot be read or written; the text says which and what to do."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video file says about itself."""

    width: int
    """Pixels."""
    height: int
    """Pixels."""
    rate: float
    """Frames per second; 0 where the file does not say."""
    frames: int
    """Number of frames, by the file's header; 0 where it does not say."""


def video_info(path: Path) -> VideoInfo:
    """Size, rate and length of a video, its size from its first frame. Raises `VideoError` if that cannot be read."""
    capture = _open(path)
    try:
        ok, frame = capture.read()
        if not ok:
            raise VideoError(f"{path} holds no frame that OpenCV can decode; convert it, for example to H.264 in .mp4")
        rate, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    finally:
        capture.release()
    height, width = frame.shape[:2]
    return VideoInfo(
        width=width,
        height=height,
        rate=rate if np.isfinite(rate) and rate > 0 else 0.0,
        frames=int(frames) if np.isfinite(frames) and frames > 0 else 0,
    )


def read_frames(path: Path) -> Iterator[UInt8Array]:
    """The frames of a video in order, BGR uint8 (H, W, 3). Raises `VideoError` if the file cannot be opened."""
    capture = _open(path)
    try:
        while True:
            ok, frame = capture.read()
            if not ok:
                return
            yield np.asarray(frame, np.uint8)
    finally:
        capture.release()


def require_video_writer() -> None:
    """Raises `VideoError` if `write_video` cannot work as PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise VideoError(
            "writing a video needs PyAV, which is not installed: pip install 'rvm_perception[demo]', or pip install av"
        ) from None


def write_video(path: Path, frames: Iterable[tuple[int, UInt8Array]], *, rate: float) -> None:
    """Writes (time in ms, RGB uint8 (H, W, 3)) pairs, times rising, as H.264 in MP4, which plays everywhere.

    All images have one size; an odd height or width grows by one pixel. `rate` is nominal, frames per second; the times
    decide when each frame is shown. Without any frame, no file is written. Raises `VideoError` without PyAV.
    """
    require_video_writer()
    import av

    times_and_images = iter(frames)
    first = next(times_and_images, None)
    if first is None:
        return
    with atomic_file(path) as part, av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as film:
        stream = film.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000), options=_QUALITY)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = _MILLISECOND
        stream.height, stream.width = (size + size % 2 for size in first[1].shape[:2])
        for milliseconds, image in chain([first], times_and_images):
            padding = ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0))
            frame = av.VideoFrame.from_ndarray(np.pad(image, padding, mode="edge"), format="rgb24")
            frame.pts, frame.time_base = milliseconds, _MILLISECOND
            film.mux(stream.encode(frame))
        film.mux(stream.encode())


def _open(path: Path) -> cv2.VideoCapture:
    if not path.is_file():
        raise VideoError(f"no such video file: {path}")
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise VideoError(f"OpenCV cannot open {path} as a video; convert it, for example to H.264 in .mp4")
    return capture
