"""Latency and memory per frame against the number of frames seen: what a robot pays that has been on for a while.

A model is measured in a process of its own, started afresh, so that its memory is its own. What it takes to have the
features of frame n, after n - 1 others:

- a recurrent or an image encoder: one step;
- a clip encoder, "window": its newest frames once more, as many as it takes at once;
- a clip encoder, "all frames": all n frames at once, its positions resized along time; so that it knows of all that was
  seen, as a recurrent one does.

Frames are random noise: how long a step takes does not depend on what they show.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rvm_core.process_memory import peak_bytes, resident_bytes
from rvm_training.compare_models import Compared, Source, open_compared
from rvm_training.data.pool import blocked_signals, start_pool
from rvm_training.evaluation.frame_encoder import to_pixels

STEP, WINDOW, ALL = "step", "window", "all frames"
REPEATS = 3
"""Of which the median counts; for steps, the last so many before a point."""
_WARM_UP = 2
_SEEDED = 8
"""Different frames of noise, over and over."""


class GrowthError(RuntimeError):
    """A model cannot be measured, or not further."""


@dataclass(frozen=True, kw_only=True)
class GrowthJob:
    """What to measure."""

    spec: str
    source: Source
    image_size: tuple[int, int]
    points: tuple[int, ...]
    """Numbers of frames seen, rising."""
    most_seconds: float = 60.0
    """After a frame that takes longer, a way is not measured further."""


@dataclass(frozen=True, kw_only=True)
class GrowthPoint:
    """What the features of one frame take."""

    way: str
    frames: int
    """Seen, this one among them."""
    ms: float
    peak_mb: float
    """Most memory while it is computed: of the GPU, or resident in the process, with program and weights."""


def points_up_to(frames: int) -> tuple[int, ...]:
    """1, 2, 4 and so on, and the number itself. Raises `ValueError` for less than one frame."""
    if frames < 1:
        raise ValueError(f"expected 1 or more frames, got {frames}")
    powers = [2**power for power in range(frames.bit_length()) if 2**power < frames]
    return (*powers, frames)


def ways_of(kind: str) -> tuple[str, ...]:
    """The ways that a kind of encoder is measured in."""
    return (WINDOW, ALL) if kind == "clip" else (STEP,)


def measure_growth(job: GrowthJob, kind: str, progress: Callable[[str], None]) -> tuple[list[GrowthPoint], list[str]]:
    """Measures a model, in a process each way. Returns points and why others are missing.

    progress: is told which point is measured. Raises `KeyboardInterrupt` after Ctrl-C, with the processes ended.
    """
    points: list[GrowthPoint] = []
    problems: list[str] = []
    for way in ways_of(kind):
        pool = start_pool(1)
        try:
            for frames in job.points:
                progress(f"{way}, {frames} frames")
                with blocked_signals():
                    task = pool.submit(_measure, job, way, frames)
                point = task.result()
                if isinstance(point, str):
                    problems.append(f"{way}, {frames} frames: {point}")
                    break
                points.append(point)
                if point.ms > 1e3 * job.most_seconds and frames != job.points[-1]:
                    problems.append(f"{way}: not measured beyond {frames} frames, which took {point.ms / 1e3:.0f} s")
                    break
        except RuntimeError as error:
            # The process is gone, as when the system ran out of memory.
            problems.append(f"{way}: {error}")
        finally:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)
    return points, problems


_TASKS: dict[tuple[GrowthJob, str], Task] = {}


def _measure(job: GrowthJob, way: str, frames: int) -> GrowthPoint | str:
    """In the process of its own; keeps the model between calls, whose `frames` rise."""
    try:
        task = _TASKS.get((job, way))
        if task is None:
            task = _TASKS[job, way] = Task(job, way)
        return task.measure(frames)
    except (GrowthError, ValueError, RuntimeError, MemoryError, ImportError, OSError) as error:
        return (str(error) or type(error).__name__).splitlines()[0]


class Task:
    """One way of one model."""

    def __init__(self, job: GrowthJob, way: str) -> None:
        self.job, self.way = job, way
        self._compared = open_compared(job.spec, job.source)
        self._steps = _stepper(self._compared, job) if way == STEP else None
        self._seen = 0
        shape = (_SEEDED, *job.image_size, 3)
        self._frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def measure(self, frames: int) -> GrowthPoint:
        """The features of frame number `frames`, counted from one."""
        if self._steps is not None:
            return self._after_steps(self._steps, frames)
        encode = self._encoder(frames)
        for _ in range(_WARM_UP if frames == self.job.points[0] else 0):
            encode()
        seconds = []
        reset_peak(self.job.source.device)
        for _ in range(REPEATS):
            seconds.append(_timed(encode, self.job.source.device))
            if seconds[-1] > self.job.most_seconds / REPEATS:
                break
        return self._point(frames, seconds)

    def _after_steps(self, steps: Iterator[None], frames: int) -> GrowthPoint:
        seconds = []
        reset_peak(self.job.source.device)
        while self._seen < frames:
            seconds.append(_timed(lambda: next(steps), self.job.source.device))
            self._seen += 1
        return self._point(frames, seconds[-REPEATS:])

    def _point(self, frames: int, seconds: Sequence[float]) -> GrowthPoint:
        peak = taken_peak(self.job.source.device)
        return GrowthPoint(way=self.way, frames=frames, ms=1e3 * float(np.median(seconds)), peak_mb=peak / 1e6)

    def _encoder(self, frames: int) -> Callable[[], None]:
        model: Any = self._compared.model
        count = self._compared.frames
        if self.way == ALL:
            # Tokens are of two frames each; the newest frame stands twice where the number is odd.
            count = max(2, frames + frames % 2)
            model = model.with_frames(count)
        clip = np.resize(self._frames, (count, *self._frames.shape[1:]))

        @torch.inference_mode()
        def encode() -> None:
            model(to_pixels(clip[None], self.job.source.device))

        return encode


def _stepper(compared: Compared, job: GrowthJob) -> Iterator[None]:
    """Steps a stream from its start; what is slow only at first happens on another stream before."""
    encode = compared.encoder.encode
    frames = np.random.default_rng(0).integers(0, 256, (_SEEDED, *job.image_size, 3), dtype=np.uint8)
    for _ in encode(frames[: _WARM_UP + 1], job.image_size):
        pass
    return _forever(encode(_repeated(frames), job.image_size))


def _repeated(frames: Any) -> Iterator[Any]:
    while True:
        yield from frames


def _forever(features: Iterator[Any]) -> Iterator[None]:
    for _ in features:
        yield


def _timed(work: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def reset_peak(device: str) -> None:
    """Forgets the most memory so far."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        # Linux: sets the high-water mark of this process to what it has now.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def taken_peak(device: str) -> int:
    """Most memory since `reset_peak`, bytes; where the system cannot tell, the most ever."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return peak_bytes() or resident_bytes()


def to_json(points: Sequence[GrowthPoint]) -> list[dict[str, Any]]:
    """Plain JSON."""
    return [asdict(point) for point in points]


def from_json(value: Sequence[dict[str, Any]]) -> list[GrowthPoint]:
    """Raises `TypeError` for what `to_json` did not make."""
    return [GrowthPoint(**point) for point in value]
