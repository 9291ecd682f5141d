"""Measures tracking beside what it is compared with, all in one process and taking turns from frame to frame.

Label propagation: the computation as the protocol states it (`propagate_frame`, with a context of n_context + 1 frames)
and the streaming one (`LabelPropagator`), with a full queue; both include making the keys of the new frame. What they
give is compared in every frame, from the same queue. Where the last of the k best matches and the next one are equally
good but for the rounding of float32, either is right; such cells are counted apart.

Trackers: `FeatureTracker` with many points and boxes beside a step of the engine, as they take turns in the node.

Shapes: N = h * w cells of the grid, D width, K labels.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rvm_core.bench import Progress
from rvm_core.config import PATCH_SIZE
from rvm_core.engines.base import Engine
from rvm_core.engines.gate import gate_frames
from rvm_core.tracking.base import BoxQuery, PointQuery, Query
from rvm_core.tracking.feature_tracker import FeatureTracker
from rvm_core.tracking.matching import FrameKeys
from rvm_core.tracking.propagation import LabelPropagator, TrackingConfig, propagate_frame

TOLERANCE = 1e-5
"""Soft labels that differ by no more count as equal: sums in another order differ by some 1e-6."""
_TIE = 2e-6
"""Similarities that differ by less may be ordered either way: float32 sums of unit vectors differ by up to 1e-6."""
NODE_CONTEXT = 8
"""Frames that the node remembers if it is not told otherwise."""
STARTS = (1, 8)
"""The queries of a tracker come from so many frames: each frame has an affinity of its own."""
_LABELS = 8
_RANDOM_CHANGE = 0.5
"""Of random features from frame to frame, beside 1 that stays."""

Times = dict[int, list[float]]
"""Seconds by round; a round is one frame."""
Task = Callable[[Tensor], object]
"""Takes the features of the next frame, (N+1, D)."""
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class TrackingOptions:
    """What to measure, and how long. `ValueError` if it cannot be."""

    context: int = 20
    """Frames in the queue of label propagation."""
    points: int = 256
    boxes: int = 32
    steps: int = 30
    """Measured frames."""
    random_features: bool = False
    """Normal random features, which cost no steps of the model, instead of those of the bundled clip."""

    def __post_init__(self) -> None:
        for name in ("context", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected 1 or more for {name}, got {getattr(self, name)}")
        if min(self.points, self.boxes) < 0 or self.points + self.boxes == 0:
            raise ValueError(f"expected something to track, got {self.points} points and {self.boxes} boxes")

    @property
    def contexts(self) -> tuple[int, ...]:
        """Those that trackers are measured with."""
        return tuple(dict.fromkeys((self.context, NODE_CONTEXT)))

    @property
    def warm_up(self) -> int:
        """Frames after which the queues are full and all queries are given."""
        return max(self.contexts) + max(STARTS) + 1


@dataclass(kw_only=True)
class Propagation:
    """Both ways of label propagation."""

    straightforward: Times = field(default_factory=dict)
    streaming: Times = field(default_factory=dict)
    compared_cells: int = 0
    """Over all frames, as the counts below."""
    tied_cells: int = 0
    """Cells that differ because the choice of matches is a matter of rounding. The figures below leave them out."""
    different_cells: int = 0
    """Cells whose soft labels differ by more than `TOLERANCE`."""
    other_labels: int = 0
    """Cells whose likeliest label differs."""
    max_abs_difference: float = 0.0
    """Of the soft labels."""

    @property
    def identical(self) -> bool:
        """Whether both gave the same."""
        return not self.different_cells and not self.other_labels


@dataclass(kw_only=True)
class TrackerTimes:
    """One tracker."""

    context: int
    starts: int
    """Frames its queries come from."""
    times: Times = field(default_factory=dict)


@dataclass(kw_only=True)
class SizeMeasurement:
    """What was measured at one size. Grows while it is measured, so that an interrupted run has its part."""

    image_size: tuple[int, int]
    """(height, width), pixels."""
    width: int = 0
    """Channels of the features."""
    propagation: Propagation = field(default_factory=Propagation)
    engine: str = ""
    """"openvino:bf16"."""
    engine_times: Times = field(default_factory=dict)
    trackers: list[TrackerTimes] = field(default_factory=list)


def count_turns(sizes: int, options: TrackingOptions) -> int:
    """How many frames there are to do, for a progress bar."""
    frames = options.warm_up + options.steps
    return sizes * frames * (2 if options.random_features else 3)


@torch.no_grad()
def measure_size(measurement: SizeMeasurement, engine: Engine, options: TrackingOptions, progress: Progress) -> None:
    """Fills the measurement. `engine` is of its size, for one stream."""
    height, width = measurement.image_size
    grid = height // PATCH_SIZE, width // PATCH_SIZE
    measurement.engine = f"{engine.spec.backend}:{engine.spec.precision}"
    frames = list(gate_frames(measurement.image_size, options.warm_up + options.steps))
    tokens = list(_features(engine, frames, options, progress))
    measurement.width = tokens[0].shape[1]
    _measure_propagation(measurement.propagation, grid, tokens, options, progress)
    _measure_trackers(measurement, grid, engine, frames, tokens, options, progress)


def _features(
    engine: Engine, frames: Sequence[np.ndarray], options: TrackingOptions, progress: Progress
) -> Iterator[Tensor]:
    """Float32 (N+1, D) of each frame on the CPU, where the node tracks."""
    features, state = engine.step(frames[0][None], engine.init_state())
    if options.random_features:
        generator = torch.Generator().manual_seed(0)
        lasting = torch.randn(features.shape[1:], generator=generator)
        for _ in frames:
            yield lasting + _RANDOM_CHANGE * torch.randn(lasting.shape, generator=generator)
        return
    state = engine.init_state()
    for frame in frames:
        features, state = engine.step(frame[None], state)
        yield features[0].to("cpu", copy=True)
        progress("features", 1)


# ---- label propagation ----------------------------------------------------------------------------------------------


def _measure_propagation(
    found: Propagation, grid: tuple[int, int], tokens: Sequence[Tensor], options: TrackingOptions, progress: Progress
) -> None:
    config = TrackingConfig(n_context=options.context)
    streaming = _Streaming(tokens[0][1:], _label_stripes(grid), config, grid)
    progress("label propagation", 1)
    for frame in tokens[1 : options.warm_up]:
        streaming.step(frame[1:])
        progress("label propagation", 1)
    straightforward = _Straightforward(streaming)
    ways = [(straightforward.step, found.straightforward), (streaming.step, found.streaming)]
    for number, frame in enumerate(tokens[options.warm_up :]):
        results = []
        for step, times in ways if number % 2 else reversed(ways):
            seconds, result = _timed(step, frame[1:])
            times[number] = [seconds]
            results.append(result)
        _compare(results, straightforward, found)
        straightforward.remember(streaming.track.newest)
        progress("label propagation", 1)


def _compare(labels: Sequence[Tensor], straightforward: _Straightforward, found: Propagation) -> None:
    difference = (labels[0] - labels[1]).abs().amax(1)
    other = labels[0].argmax(1) != labels[1].argmax(1)
    suspects = ((difference > TOLERANCE) | other).nonzero()[:, 0]
    sound = torch.ones_like(other)
    sound[suspects] = straightforward.margin(suspects) > _TIE
    found.compared_cells += len(sound)
    found.tied_cells += int((~sound).sum())
    found.different_cells += int((difference[sound] > TOLERANCE).sum())
    found.other_labels += int(other[sound].sum())
    found.max_abs_difference = max(found.max_abs_difference, float(difference[sound].max()))


def _label_stripes(grid: tuple[int, int]) -> Tensor:
    """Float32 (N, K): each label has as many columns as the others, or nearly so."""
    label = torch.arange(grid[1]) * _LABELS // grid[1]
    return F.one_hot(label.repeat(grid[0]), _LABELS).float()


class _Streaming:
    """Labels by `LabelPropagator`."""

    def __init__(self, first: Tensor, labels: Tensor, config: TrackingConfig, grid: tuple[int, int]) -> None:
        """Features (N, D) of the first frame and its labels (N, K)."""
        self.config = config
        self._propagator = LabelPropagator(grid, config)
        self.memory = [FrameKeys.of(first)]
        """Newest first."""
        self.track = self._propagator.start(self.memory[0], labels)

    def step(self, features: Tensor) -> Tensor:
        """The labels (N, K) of the next frame, by its features (N, D)."""
        keys = FrameKeys.of(features)
        (self.track,) = self._propagator.step(keys, self.memory, [self.track])
        self.memory = [keys, *self.memory[: self.config.n_context - 1]]
        return self.track.newest


class _Straightforward:
    """Labels as the protocol states them."""

    def __init__(self, other: _Streaming) -> None:
        """Takes over the queue of the other way, which must be full.

        Before, while the first frame is in the queue too, its cells match equally well with given and with predicted
        labels, and what falls among the k best is then a matter of rounding.
        """
        self._config = other.config
        self._first = other.track.anchor.exact, other.track.first
        queue = zip((keys.exact for keys in other.memory), other.track.recent, strict=True)
        self._queue = deque(reversed(list(queue)), maxlen=other.config.n_context)

    def step(self, features: Tensor) -> Tensor:
        """The labels (N, K) of the next frame, by its features (N, D)."""
        self._newest = F.normalize(features, dim=-1)
        context = [self._first, *self._queue]
        return propagate_frame(self._newest, context, top_k=self._config.top_k, temperature=self._config.temperature)

    def remember(self, labels: Tensor) -> None:
        """Puts the newest frame into the queue, with labels (N, K)."""
        self._queue.append((self._newest, labels))

    def margin(self, cells: Tensor) -> Tensor:
        """By how much the k-th match of some cells (C,) of the newest frame is better than the next, (C,)."""
        context = torch.cat([keys for keys, _ in (self._first, *self._queue)]).double()
        score = (self._newest[cells].double() @ context.T).topk(self._config.top_k + 1).values
        return score[:, -2] - score[:, -1]


# ---- trackers -------------------------------------------------------------------------------------------------------


def _measure_trackers(
    measurement: SizeMeasurement,
    grid: tuple[int, int],
    engine: Engine,
    frames: Sequence[np.ndarray],
    tokens: Sequence[Tensor],
    options: TrackingOptions,
    progress: Progress,
) -> None:
    ways: list[tuple[Task, Times]] = [(_engine_step(engine, frames), measurement.engine_times)]
    for context in options.contexts:
        for starts in STARTS:
            tracker = TrackerTimes(context=context, starts=starts)
            measurement.trackers.append(tracker)
            ways.append((_tracker_step(grid, tracker, options), tracker.times))
    for number, frame in enumerate(tokens, start=-options.warm_up):
        turn = number % len(ways)
        for step, times in [*ways[turn:], *ways[:turn]]:
            seconds, _ = _timed(step, frame)
            if number >= 0:
                times[number] = [seconds]
        progress("trackers", 1)


def _engine_step(engine: Engine, frames: Sequence[np.ndarray]) -> Task:
    numbers, state = count(), engine.init_state()

    def step(_: Tensor) -> Tensor:
        nonlocal state
        features, state = engine.step(frames[next(numbers)][None], state)
        # The node needs them here, so this is when they are there.
        return features[0].cpu()

    return step


def _tracker_step(grid: tuple[int, int], what: TrackerTimes, options: TrackingOptions) -> Task:
    tracker = FeatureTracker(grid, TrackingConfig(n_context=what.context))
    queries, numbers, state = _queries(grid, options), count(), tracker.init_state()

    def step(tokens: Tensor) -> object:
        nonlocal state
        tracks, state = tracker.step(tokens, state)
        if (number := next(numbers)) < what.starts and (chosen := queries[number :: what.starts]):
            state = tracker.add(chosen, state)
        return tracks

    return step


def _queries(grid: tuple[int, int], options: TrackingOptions) -> list[Query]:
    """Points and boxes, evenly mixed, anywhere on the grid."""
    random = np.random.default_rng(0)
    size = np.array(grid[::-1], float)
    points = random.uniform(0, size, (options.points, 2))
    lows = random.uniform(0, 0.7 * size, (options.boxes, 2))
    highs = lows + random.uniform(0.1, 0.3, (options.boxes, 2)) * size
    queries: list[tuple[float, Query]] = []
    for number, (x, y) in enumerate(points):
        queries.append((number / len(points), PointQuery(id=number, x=x, y=y)))
    for number, (low, high) in enumerate(zip(lows, highs, strict=True)):
        box = BoxQuery(id=len(points) + number, x_min=low[0], y_min=low[1], x_max=high[0], y_max=high[1])
        queries.append((number / len(lows), box))
    return [query for _, query in sorted(queries, key=lambda entry: entry[0])]


def _timed(step: Callable[[Tensor], Result], tokens: Tensor) -> tuple[float, Result]:
    started = time.perf_counter()
    result = step(tokens)
    return time.perf_counter() - started, result
