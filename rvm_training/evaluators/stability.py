"""`rvm eval stability`: how J&F on DAVIS 2017 falls with the number of frames, relative to the first 16 (figure 4).

A video's first T frames are what a propagation of T frames would see, as nothing is known of later ones; J&F of T
frames leaves out the first and the last of the T, as DAVIS does. So that all lengths rest on the same videos, only
those count that have as many frames as the greatest length.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rvm_core.tracking.propagation import TrackingConfig
from rvm_training.datasets.davis import Davis2017
from rvm_training.evaluation.benchmark import Advance, Aggregate, Curve, DatasetError, Metric, Row, Scores, VideoResult
from rvm_training.evaluation.features import Encoder
from rvm_training.evaluators.davis2017 import IMAGE_SIZE, Davis2017Benchmark
from rvm_training.evaluators.label_propagation import make_config

LENGTHS = (16, 32, 48, 64, 80)
_LEAST = 3


def create(args: argparse.Namespace, encoder: Encoder) -> StabilityBenchmark:
    """See `rvm_training.evaluation.benchmark`."""
    return StabilityBenchmark(Davis2017(args.data), encoder, make_config(args), args.lengths)


class StabilityBenchmark:
    """See the module's docstring and `Benchmark`."""

    name = "stability"
    title = "DAVIS 2017 validation, 480p: J&F after more and more frames"
    image_size = IMAGE_SIZE
    published = ()

    def __init__(
        self, dataset: Davis2017, encoder: Encoder, config: TrackingConfig, lengths: Sequence[int] = LENGTHS
    ) -> None:
        """Raises `ValueError` for lengths that do not rise, `DatasetError` if no video is so long."""
        if list(lengths) != sorted(set(lengths)) or lengths[0] < _LEAST:
            raise ValueError(f"expected lengths that rise, from {_LEAST} on, got {' '.join(map(str, lengths))}")
        self._lengths = list(lengths)
        self._davis = Davis2017Benchmark(dataset, encoder, config)
        counts = {video: len(dataset.frames(video)) for video in dataset.videos}
        self._videos = [video for video, count in counts.items() if count >= self._lengths[-1]]
        if not self._videos:
            raise DatasetError(
                f"no video of {dataset.root} has {self._lengths[-1]} frames, the longest has {max(counts.values())}; "
                "give smaller --lengths"
            )
        first = self._lengths[0]
        self.metrics = (
            *(Metric(key=f"jf_{n}", title=f"J&F {n}") for n in self._lengths),
            *(
                Metric(key=f"relative_{n}", title=f"{n}/{first}", scale=1, form=".3f")
                for n in self._lengths
            ),
        )  # fmt: skip

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Benchmark`."""
        return {**self._davis.settings, "lengths": self._lengths}

    @property
    def deviations(self) -> Sequence[str]:
        """See `Benchmark`."""
        own = [] if tuple(self._lengths) == LENGTHS else [f"the lengths are {self._lengths}, not {list(LENGTHS)}"]
        return [*self._davis.deviations, *own]

    def videos(self) -> Sequence[str]:
        """See `Benchmark`."""
        return self._videos

    def files(self, video: str) -> Sequence[Path]:
        """See `Benchmark`."""
        return self._davis.files(video)

    def evaluate(self, video: str, *, pictures: bool, advance: Advance) -> VideoResult:
        """Scores as of davis2017."""
        result = self._davis.evaluate(video, pictures=pictures, advance=advance)
        return VideoResult(scores=result.scores, summary=self._values({video: result.scores}), pictures=result.pictures)

    def aggregate(self, results: Mapping[str, Scores]) -> Aggregate:
        """J&F by length, and relative to the first length."""
        values = self._values(results)
        points = [(float(n), values[f"relative_{n}"]) for n in self._lengths]
        curve = Curve(
            title="J&F by number of frames",
            x_title="frames",
            y_title=f"J&F relative to {self._lengths[0]} frames",
            lines={"this model": [(x, y) for x, y in points if y is not None]},
        )
        note = f"{len(results)} videos of {self._lengths[-1]} frames or more"
        return Aggregate(rows=[Row(name="", values=values)], curves=[curve], notes=[note])

    def _values(self, results: Mapping[str, Scores]) -> dict[str, float | None]:
        absolute = {n: j_and_f(results, n) for n in self._lengths}
        first = absolute[self._lengths[0]]
        values: dict[str, float | None] = {f"jf_{n}": value for n, value in absolute.items()}
        return values | {f"relative_{n}": value / first if first else None for n, value in absolute.items()}


def j_and_f(results: Mapping[str, Scores], length: int) -> float:
    """J&F of the first `length` frames of all videos; kept scores start with the second frame."""
    means = [
        [np.mean(frames[: length - 2]) for scores in results.values() for frames in scores[key]] for key in ("j", "f")
    ]
    return float(np.mean(means))
