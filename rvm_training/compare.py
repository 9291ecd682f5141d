"""Compares encoders: each through the same measures, kept model by model and measure by measure.

The folder of a comparison: models/SPEC/MEASURE holds what `rvm_training.evaluation.runner` keeps of every video, and
models/SPEC/growth.json latency and memory. What is there and still true is not done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rvm_core.atomic import atomic_file
from rvm_core.exit_codes import DiskFullError, disk_full_errors
from rvm_core.tracking.propagation import TrackingConfig
from rvm_training.compare_growth import (
    GrowthJob,
    GrowthPoint,
    from_json,
    measure_growth,
    points_up_to,
    to_json,
    ways_of,
)
from rvm_training.compare_measures import ScenePropagation, SceneTracking, VideoStrips, curve_lengths, stability_curve
from rvm_training.compare_models import Compared, Source, folder_name, open_compared
from rvm_training.data.moving_noise import NoiseConfig
from rvm_training.data.scenes import SceneConfig
from rvm_training.datasets.davis import Davis2017
from rvm_training.evaluation.benchmark import Benchmark, DatasetError
from rvm_training.evaluation.fingerprint import code_version, hash_json
from rvm_training.evaluation.runner import Run, finite, run
from rvm_training.evaluation.store import KeptResult
from rvm_training.evaluators.davis2017 import Davis2017Benchmark
from rvm_training.evaluators.noise_square import NoiseSquareBenchmark

MEASURES = ("videos", "tracking", "propagation", "davis2017", "noise_square", "growth")
PROPAGATIONS = ("propagation", "davis2017")
"""Those of label propagation."""
LONGEST = 80
"""Frames of the last point of stability."""
GROWTH_FORMAT = 1

Progress = Callable[[str, float], None]
"""Is told what is done, and how many measures, or which share of one, were done since the last call."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What every model goes through alike. Raises `ValueError` at construction for what cannot be measured."""

    measures: tuple[str, ...] = MEASURES
    videos: Mapping[str, Path] = field(default_factory=dict)
    """The user's, by name; see `find_user_videos`."""
    davis: Path | None = None
    image_size: tuple[int, int] = (256, 256)
    """Of everything but DAVIS, pixels."""
    video_frames: int = 48
    """Of each of the user's videos."""
    stride: int = 1
    """Every so many of their frames."""
    scenes: int = 4
    """Synthetic ones."""
    scene_frames: int = 48
    noise_clips: int = 4
    noise_groups: int = 1
    noise_frames: int = 32
    growth_frames: int = 64
    """Seen, up to which latency and memory are measured."""
    source: Source = field(default_factory=Source)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.measures) - set(MEASURES)):
            raise ValueError(f"unknown measure {unknown[0]!r}; known: {', '.join(MEASURES)}")
        for name in ("video_frames", "stride", "scenes", "scene_frames", "noise_clips", "noise_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of 1 or more, got {getattr(self, name)}")
        points_up_to(self.growth_frames)
        if not self.chosen:
            raise ValueError("nothing to measure: give --data, --davis, or other measures")

    @property
    def chosen(self) -> list[str]:
        """The measures for which there is data, in order."""
        without = {name for name, data in (("videos", self.videos), ("davis2017", self.davis)) if not data}
        return [name for name in MEASURES if name in self.measures and name not in without]

    def scene_config(self) -> SceneConfig:
        """Of the synthetic scenes."""
        height, width = self.image_size
        return SceneConfig(height=height, width=width, num_frames=self.scene_frames)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of one measure of a model; keeps nothing of the model alive."""

    values: dict[str, float | None]
    """By figure, unscaled."""
    stability: list[tuple[float, float]]
    """(frames, J&F), for propagation."""
    videos: dict[str, KeptResult]
    fingerprint: str
    reused: int
    """Videos whose results were there from an earlier run."""


@dataclass
class ModelResult:
    """What is known of a model; grows while it is measured."""

    spec: str
    facts: dict[str, Any] | None = None
    """See `Compared.facts`; None if it could not be opened."""
    folder: str = ""
    """Of its results, relative to the report."""
    measured: dict[str, Measured] = field(default_factory=dict)
    """By measure."""
    growth: list[GrowthPoint] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    """By measure, or "model": why there is nothing, or not all."""


@dataclass
class Comparison:
    """What is known of all models."""

    protocol: Protocol
    models: list[ModelResult] = field(default_factory=list)
    interrupted: bool = False


def compare(specs: Sequence[str], protocol: Protocol, folder: Path, progress: Progress) -> Comparison:
    """Measures models one after the other; what one cannot do is noted, and the others go on.

    Ctrl-C gives up what it comes in and returns. Raises `DiskFullError`, or another `OSError` of writing.
    """
    comparison = Comparison(protocol)
    try:
        for spec in dict.fromkeys(specs):
            result = ModelResult(spec, folder=f"models/{folder_name(spec)}")
            comparison.models.append(result)
            progress(f"{spec}: opening", 0.0)
            try:
                compared = open_compared(spec, protocol.source)
            except (ValueError, OSError, ImportError, RuntimeError) as error:
                result.problems["model"] = str(error) or type(error).__name__
                progress(spec, len(protocol.chosen))
                continue
            result.facts = compared.facts()
            for measure in protocol.chosen:
                _measure(result, compared, measure, protocol, folder / result.folder, progress)
            # Before the next one comes, so that there is memory for it.
            del compared
    except KeyboardInterrupt:
        comparison.interrupted = True
    return comparison


def _measure(
    result: ModelResult, compared: Compared, measure: str, protocol: Protocol, folder: Path, progress: Progress
) -> None:
    """Adds what comes of one measure, or why there is none."""
    title = f"{compared.name}: {measure}"
    progress(title, 0.0)
    told = 0.0

    def advance(text: str, share: float) -> None:
        nonlocal told
        share = min(share, 1 - told)
        told += share
        progress(f"{title}, {text}", share)

    try:
        if measure == "growth":
            result.growth, problems = _growth(compared, protocol, folder, advance)
            if problems:
                result.problems[measure] = "; ".join(problems)
        else:
            benchmark = make_benchmark(measure, compared, protocol)
            count = len(benchmark.videos())
            done = run(
                benchmark,
                compared.encoder,
                folder / measure,
                root=protocol.davis if measure == "davis2017" else None,
                progress=lambda text, share: advance(text, share / count),
            )
            if done.results:
                result.measured[measure] = summarise(measure, done)
            if done.failed:
                result.problems[measure] = "; ".join(f"{video}: {why}" for video, why in done.failed.items())
            if done.interrupted:
                raise KeyboardInterrupt
    except DiskFullError:
        raise
    except (DatasetError, ValueError, RuntimeError, MemoryError) as error:
        # What a model cannot do, as for want of memory, is not the end of the comparison.
        result.problems[measure] = (str(error) or type(error).__name__).splitlines()[0]
    progress(title, 1 - told)


def summarise(measure: str, done: Run) -> Measured:
    """The figures of a run with results."""
    scores = {video: kept.scores for video, kept in done.results.items()}
    rows = done.benchmark.aggregate(scores).rows
    values = dict(rows[0].values)
    points: list[tuple[float, float]] = []
    if measure == "noise_square":
        values["auc_single"] = rows[1].values["auc"]
    if measure in PROPAGATIONS:
        longest = max(len(one["j"][0]) + 2 for one in scores.values())
        points = list(stability_curve(scores, curve_lengths(min(longest, LONGEST))).lines["J&F"])
        values["stability"] = points[-1][1] / points[0][1] if len(points) > 1 and points[0][1] else None
    return Measured(
        values=finite(values),
        stability=points,
        videos=dict(done.results),
        fingerprint=done.fingerprint["all"],
        reused=done.reused,
    )


def make_benchmark(measure: str, compared: Compared, protocol: Protocol) -> Benchmark:
    """Raises `DatasetError` for data that is not as it should be."""
    encoder, scenes = compared.encoder, protocol.scenes
    if measure == "videos":
        return VideoStrips(
            encoder, protocol.videos, size=protocol.image_size, frames=protocol.video_frames, stride=protocol.stride
        )
    if measure == "tracking":
        return SceneTracking(encoder, protocol.scene_config(), scenes=scenes)
    if measure == "propagation":
        return ScenePropagation(encoder, protocol.scene_config(), scenes=scenes)
    if measure == "davis2017":
        assert protocol.davis is not None
        return Davis2017Benchmark(Davis2017(protocol.davis), encoder, TrackingConfig())
    size = min(protocol.image_size)
    config = NoiseConfig(size=size, square=size // 2, num_frames=protocol.noise_frames)
    return NoiseSquareBenchmark(encoder, config, clips=protocol.noise_clips, groups=protocol.noise_groups)


def _growth(
    compared: Compared, protocol: Protocol, folder: Path, advance: Progress
) -> tuple[list[GrowthPoint], list[str]]:
    """Latency and memory, found again or measured."""
    job = GrowthJob(
        spec=compared.spec,
        source=protocol.source,
        image_size=protocol.image_size,
        points=points_up_to(protocol.growth_frames),
    )
    key = hash_json(
        {"encoder": compared.encoder.identity(job.image_size), "points": list(job.points), "code": code_version()}
    )
    path = folder / "growth.json"
    kept = _kept_growth(path, key)
    if kept is not None:
        return kept
    count = len(job.points) * len(ways_of(compared.kind))
    points, problems = measure_growth(job, compared.kind, lambda text: advance(text, 1 / count))
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format_version": GROWTH_FORMAT, "key": key, "points": to_json(points), "problems": problems}
    with disk_full_errors(str(path)), atomic_file(path) as file:
        file.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return points, problems


def _kept_growth(path: Path, key: str) -> tuple[list[GrowthPoint], list[str]] | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["format_version"] != GROWTH_FORMAT or kept["key"] != key:
            return None
        return from_json(kept["points"]), list(map(str, kept["problems"]))
    except (OSError, ValueError, TypeError, KeyError):
        # Not there, or not one of ours: it is measured again.
        return None
