"""What a benchmark is: the contract between a benchmark and the frame that runs it.

A benchmark is a class in rvm_training/evaluators/NAME.py with the members of `Benchmark`, and a function of the module

    create(args: argparse.Namespace, encoder: Encoder) -> Benchmark

that the registry names (`rvm_training.evaluation.registry`: a line there, with the benchmark's own options, makes the
command `rvm eval NAME`). `args` has `data` (Path, or None where the entry needs no data) and the benchmark's own
options; `encoder` makes features (`rvm_training.evaluation.features`). `create` reads lists and checks folders, and
raises `DatasetError` where something is missing; it computes nothing that takes long.

The frame does everything else. For each video of `videos()`, in that order, it looks for a result that was kept under
the same key (see below), and otherwise calls `evaluate` and keeps what it returns: `VideoResult.scores` as JSON in
OUT/NAME/videos/, its pictures in OUT/NAME/pictures/. At the end, and after Ctrl-C, `aggregate` makes rows of all
scores, which are shown beside `published` and written as OUT/NAME/report.json, report.csv and report.html.

What a benchmark has to keep to:
- `evaluate` depends on nothing but the video, the encoder and `settings`: a video done again gives the same scores, and
  videos may be done in any order, in several runs.
- `scores` is plain JSON (no NaN: None) from which `aggregate` computes what the protocol says: counts and sums where
  the protocol sums over videos, lists where it takes a mean over objects.
- A share is stored in [0, 1]; `Metric.scale` makes it percent where it is shown.
- A file that cannot be used: raise `DatasetError` in `create` if that can be seen cheaply, and in `evaluate` otherwise:
  the video then counts as failed, the others go on, and the report says so (exit code 3). Anything else raised in
  `evaluate` ends the run; what was done is kept.
- Frames are read one by one and given up: never all in memory.

Key of a kept result: sha256 over weights hash, engine (backend, precision, runtime, hardware, image size), code (all
sources of rvm_core and rvm_training), `settings`, and of the video's own files name, size and time of change, or with
--hash-data their sha256 in place of that time. So a changed file, weight, setting or line of code does a video again,
and a video added to the folder does not do the others again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]

Scores = Mapping[str, Any]
"""Plain JSON."""

Advance = Callable[[float], None]
"""Is told which share of the video is done, 0 to 1, rising. Cheap; called for every frame."""


class DatasetError(ValueError):
    """A dataset's folder or file is missing or not as it should be; says what was looked for and where."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A column of the table."""

    key: str
    """In the values of rows and in JSON."""
    title: str
    """In the table, such as "J&F"."""
    scale: float = 100.0
    """Stored values are shown times this; 1 for what is no share."""
    form: str = ".1f"
    """Of the shown number."""
    description: str = ""
    """Below the table: what it is, and whether more or less is better if that is not plain."""
    detail: bool = False
    """Left out of the printed table; in the page, JSON and CSV like all others."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table."""

    name: str
    values: Mapping[str, float | None]
    """By key of the metric, unscaled; metrics that are not there or None are shown as "-"."""
    source: str = ""
    """For a published row: where it was published."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Something to look at in the report."""

    name: str
    """Unique in the video (or among the benchmark's): letters, digits, - and _."""
    image: UInt8Array
    """RGB (H, W, 3)."""
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A plot in the report: values over x, a line for each name."""

    title: str
    x_title: str
    y_title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    """(x, y) points by name."""


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """What came of one video."""

    scores: Scores
    """What `aggregate` needs of it."""
    summary: Mapping[str, float | None] = field(default_factory=dict)
    """The video's own figures for the CSV and the page, by key of a metric, unscaled."""
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """What came of all videos."""

    rows: Sequence[Row]
    """The first is the model's own; more if the benchmark compares. An empty name is replaced by the model's."""
    pictures: Sequence[Picture] = ()
    curves: Sequence[Curve] = ()
    notes: Sequence[str] = ()
    """Sentences for the report, such as how many videos a figure rests on."""


class Benchmark(Protocol):
    """See the module's docstring."""

    @property
    def name(self) -> str:
        """As in `rvm eval NAME`, and of the folder of its results."""

    @property
    def title(self) -> str:
        """One line for the head of the report: dataset, split, task."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """Columns of the table."""

    @property
    def published(self) -> Sequence[Row]:
        """Values to stand beside the measured ones; only those that were measured by the same protocol."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Plain JSON: everything that decides the numbers beside weights, engine, code and data."""

    @property
    def deviations(self) -> Sequence[str]:
        """Why this run cannot be compared with the published values, if so: settings that are not the protocol's."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels at which the encoder sees frames."""

    def videos(self) -> Sequence[str]:
        """Ids, in order, unique. "/" is allowed in them."""

    def files(self, video: str) -> Sequence[Path]:
        """The files that decide a video's scores: frames, annotations. Empty for what is generated from a seed."""

    def evaluate(self, video: str, *, pictures: bool, advance: Advance) -> VideoResult:
        """Runs the encoder over a video. `pictures`: whether the report will show any of this video."""

    def aggregate(self, results: Mapping[str, Scores]) -> Aggregate:
        """Rows from the scores of all videos that are done, by id; at least one."""


CreateBenchmark = Callable[[Any, Any], Benchmark]
"""Type of a module's `create(args, encoder)`."""
