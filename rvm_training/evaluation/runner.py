"""Runs a benchmark over its videos, each once: what is done is kept, and found again by the next run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rvm_training.evaluation.benchmark import Advance, Benchmark, DatasetError
from rvm_training.evaluation.features import Encoder
from rvm_training.evaluation.fingerprint import code_version, hash_files, hash_json
from rvm_training.evaluation.store import KeptResult, ResultStore

PICTURED = 24
"""Videos that are shown in the report, the first ones."""


@dataclass(kw_only=True)
class Run:
    """What a run has; grows while it runs, so that an interrupted run has its part."""

    benchmark: Benchmark
    encoder_name: str
    random: bool
    identity: dict[str, Any]
    """What decides the scores beside the data."""
    asked: list[str]
    """Videos of this run, in order."""
    all_videos: int
    """Of the benchmark."""
    results: dict[str, KeptResult] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Why videos could not be evaluated."""
    reused: int = 0
    """Results that were there from an earlier run."""
    interrupted: bool = False

    @property
    def fingerprint(self) -> dict[str, str]:
        """Hashes of what the figures rest on: of everything but the data, of the data of all videos, and of both."""
        data = hash_json([[video, result.data] for video, result in sorted(self.results.items())])
        method = hash_json(self.identity)
        return {"method": method, "data": data, "all": hash_json([method, data])}

    @property
    def complete(self) -> bool:
        """Whether every video of the benchmark has a result."""
        return len(self.results) == self.all_videos


def run(
    benchmark: Benchmark,
    encoder: Encoder,
    folder: Path,
    *,
    root: Path | None = None,
    videos: Sequence[str] | None = None,
    hash_contents: bool = False,
    pictured: int = PICTURED,
    progress: Callable[[str, float], None] = lambda text, done: None,
) -> Run:
    """Evaluates the videos that have no kept result yet. Ctrl-C gives up the video it comes in and returns.

    Args:
        folder: for the results; made where it is missing.
        root: of the data; file names count relative to it.
        videos: only these ids; None: all.
        hash_contents: see `hash_files`.
        pictured: so many of the videos, the first ones, get pictures.
        progress: is told what is being done, and how many videos, or which share of one, were done since the last call.

    Raises `DatasetError` for an id that there is not, `DiskFullError`, and what `evaluate` raises but `DatasetError`.
    """
    every = list(benchmark.videos())
    asked = every if videos is None else list(dict.fromkeys(videos))
    if unknown := [video for video in asked if video not in set(every)]:
        raise DatasetError(
            f"no such video: {', '.join(unknown)}; there are {len(every)}, such as {', '.join(every[:3])}"
        )
    done = Run(
        benchmark=benchmark,
        encoder_name=encoder.name,
        random=encoder.random,
        identity={
            "benchmark": benchmark.name,
            "settings": dict(benchmark.settings),
            "encoder": encoder.identity(benchmark.image_size),
            "code": code_version(),
        },
        asked=asked,
        all_videos=len(every),
    )
    store = ResultStore(folder)
    method = hash_json(done.identity)
    try:
        for index, video in enumerate(asked):
            with _told(video, progress) as advance:
                try:
                    _video(done, store, video, method, root, hash_contents, index < pictured, advance)
                except DatasetError as error:
                    done.failed[video] = str(error)
    except KeyboardInterrupt:
        done.interrupted = True
    return done


def _video(
    done: Run,
    store: ResultStore,
    video: str,
    method: str,
    root: Path | None,
    hash_contents: bool,
    pictures: bool,
    advance: Advance,
) -> None:
    try:
        data = hash_files(done.benchmark.files(video), root, contents=hash_contents)
    except FileNotFoundError as error:
        raise DatasetError(f"{video}: {error.filename} is missing") from error
    key = hash_json([method, video, data])
    kept = store.find(video, key, pictures=pictures)
    if kept is not None:
        done.reused += 1
    else:
        start = time.perf_counter()
        result = done.benchmark.evaluate(video, pictures=pictures, advance=advance)
        kept = KeptResult(
            video=video,
            key=key,
            data=data,
            scores=dict(result.scores),
            summary=finite(result.summary),
            seconds=round(time.perf_counter() - start, 3),
            pictures=store.keep_pictures(video, result.pictures),
            with_pictures=pictures,
        )
        # The pictures first: a kept result always has them.
        store.keep(kept)
    done.results[video] = kept


def finite(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """The values with None in place of what is not finite, as JSON has no NaN."""
    return {key: None if value is None or not math.isfinite(value) else value for key, value in values.items()}


@contextmanager
def _told(video: str, progress: Callable[[str, float], None]) -> Iterator[Advance]:
    """Turns shares of one video into steps, which add up to one."""
    told = 0.0

    def advance(share: float) -> None:
        nonlocal told
        step = max(0.0, min(1.0, share) - told)
        told += step
        progress(video, step)

    progress(video, 0.0)
    yield advance
    advance(1.0)
