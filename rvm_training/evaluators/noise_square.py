"""`rvm eval noise_square`: whether features show a square of noise that only its motion gives away (figure 6).

The stimulus is that of `rvm_training.data.moving_noise`: no single frame tells where the square is. The same model is
measured twice: as it is, and with its state reset before every frame, so that it sees single frames and cannot do
better than chance. Two readings of the features, both by cells of the grid, from frame `WARM_UP` on:

- k-means with 5 clusters, k-means++. The clusters, and which of them are the square, those most of whose cells lie in
  it, come from other clips; the figure is the IoU of their cells with the true square (chance: at most the square's
  share of the image). Chosen in the measured clip itself, clusters that tell no more than position would count, as a
  slow square stays over some places all the time. The pictures show clusters of the clip, as the paper's figure does.
- A linear probe, by ridge regression from the features to whether a cell is in the square, learned from other clips.
  Figures: the area under the ROC curve (chance: 0.5), and of the cells that it ranks first, as many as the square has,
  the share that lie in it (chance: the square's share of the image).

The other clips have other noise, so that it cannot be known by heart, and come in groups of four whose squares together
cover every place once, so that there is nothing to be learned from positions.

T frames, N cells, D width.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.clustering import Clusters, cluster_colors, fit_clusters
from rvm_core.config import PATCH_SIZE
from rvm_training.data.moving_noise import (
    GROUP,
    NoiseClip,
    NoiseConfig,
    balanced_clips,
    covered_cells,
    generate_noise_clip,
)
from rvm_training.evaluation.benchmark import Advance, Aggregate, Metric, Row, Scores, VideoResult
from rvm_training.evaluation.features import Encoder
from rvm_training.evaluators.label_propagation import compared

WARM_UP = 8
"""Frames before the first that counts: motion has to be seen first."""
CLUSTERS = 5
RIDGE = 1e-3
"""Of the ridge regression, relative to the mean variance of the features."""
MEASURED_FROM = 1000
"""Seed of the first clip that is measured; those of the clips to learn from start at 0."""
_SHOWN = 4
_SAMPLED = 3
"""Of the frames of other clips every third makes the clusters: their features are in memory at once."""
_WAYS = {"": False, "state reset every frame": True}
_ENLARGED = 320
_KEYS = ("auc", "ranked", "kmeans")

Float64Array = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.intp]
UInt8Array = npt.NDArray[np.uint8]


def create(args: argparse.Namespace, encoder: Encoder) -> NoiseSquareBenchmark:
    """See `rvm_training.evaluation.benchmark`."""
    config = NoiseConfig(num_frames=args.frames)
    return NoiseSquareBenchmark(encoder, config, clips=args.clips, groups=args.groups)


class NoiseSquareBenchmark:
    """See the module's docstring and `Benchmark`."""

    name = "noise_square"
    title = "A square of noise that moves over noise: seen in the features, or not"
    metrics = (
        Metric(
            key="auc", title="probe AUC", description="area under the ROC curve of a linear probe, in %; chance: 50"
        ),
        Metric(key="ranked", title="probe hits", description="of the cells ranked first, those in the square, in %"),
        Metric(
            key="kmeans",
            title="k-means IoU",
            description="of the clusters that are the square, with it, in %; chance: at most 25",
        ),
    )
    published = ()
    deviations = ()

    def __init__(self, encoder: Encoder, config: NoiseConfig, *, clips: int = 8, groups: int = 2) -> None:
        """Raises `ValueError` if clips are too short to count."""
        if config.num_frames <= WARM_UP:
            raise ValueError(f"expected more than {WARM_UP} frames, got {config.num_frames}")
        self.image_size = (config.size, config.size)
        self._encoder, self._config = encoder, config
        self._clips, self._groups = clips, groups
        self._learned: dict[bool, Learned] = {}

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Benchmark`."""
        return {
            "size": self._config.size,
            "square": self._config.square,
            "speed": self._config.speed,
            "frames": self._config.num_frames,
            "warm_up": WARM_UP,
            "clusters": CLUSTERS,
            "ridge": RIDGE,
            "training_clips": GROUP * self._groups,
        }

    def videos(self) -> Sequence[str]:
        """See `Benchmark`."""
        return [f"clip_{index:03d}" for index in range(self._clips)]

    def files(self, video: str) -> Sequence[Path]:
        """See `Benchmark`."""
        return []

    def evaluate(self, video: str, *, pictures: bool, advance: Advance) -> VideoResult:
        """Scores: for each way the metrics of one clip. The first clip has to wait for what is learned from others."""
        clip = generate_noise_clip(self._config, MEASURED_FROM + self.videos().index(video))
        truth = covered_cells(clip.inside, PATCH_SIZE)[WARM_UP:]
        scores: dict[str, dict[str, float]] = {}
        columns: dict[str, tuple[Float64Array, IntArray]] = {}
        for done, (way, reset) in enumerate(_WAYS.items(), start=1):
            learned = self._learned_from_others(reset)
            features = self._features(clip, reset)
            ranks = learned.probe.rank(features)
            scores[way] = {
                "auc": area_under_roc(ranks, truth),
                "ranked": ranked_hits(ranks, truth),
                "kmeans": _iou(learned.in_square(features), truth),
            }
            if pictures:
                vectors = features.reshape(-1, features.shape[-1])
                columns[way] = (ranks, fit_clusters(vectors, CLUSTERS).assign(vectors).reshape(truth.shape))
            advance(done / len(_WAYS))
        drawn = [self._picture(video, clip, truth, columns)] if pictures else []
        return VideoResult(scores={"ways": scores}, summary=scores[""], pictures=drawn)

    def aggregate(self, results: Mapping[str, Scores]) -> Aggregate:
        """Means over clips."""
        rows = []
        for way in _WAYS:
            values = {key: float(np.mean([scores["ways"][way][key] for scores in results.values()])) for key in _KEYS}
            rows.append(Row(name=f"{self._encoder.name}, {way}" if way else "", values=values))
        share = self._config.square**2 / self._config.size**2
        rows.append(Row(name="chance", values={"auc": 0.5, "ranked": share}))
        note = f"learned from {GROUP * self._groups} other clips; frames from {WARM_UP} on count"
        return Aggregate(rows=rows, notes=[note])

    def _features(self, clip: NoiseClip, reset: bool) -> Float32Array:
        """(T, h, w, D) of the frames that count. Frames of one clip of noise are few and small."""
        encoded = self._encoder.encode(iter(clip.video), self.image_size, reset_every_frame=reset)
        cells = self._config.size // PATCH_SIZE
        kept = [tokens[1:].float().cpu().numpy() for index, tokens in enumerate(encoded) if index >= WARM_UP]
        return np.stack(kept).reshape(len(kept), cells, cells, -1)

    def _learned_from_others(self, reset: bool) -> Learned:
        if reset not in self._learned:
            probe = LinearProbe()
            samples, inside = [], []
            for clip in balanced_clips(self._config, self._groups):
                features = self._features(clip, reset)
                truth = covered_cells(clip.inside, PATCH_SIZE)[WARM_UP:]
                probe.learn(features, truth)
                samples.append(features[::_SAMPLED].reshape(-1, features.shape[-1]))
                inside.append(truth[::_SAMPLED].ravel())
            vectors = np.concatenate(samples)
            clusters = fit_clusters(vectors, CLUSTERS)
            chosen = mostly_inside(clusters.assign(vectors), np.concatenate(inside))
            self._learned[reset] = Learned(probe, clusters, chosen)
        return self._learned[reset]

    def _picture(
        self, video: str, clip: NoiseClip, truth: BoolArray, ways: Mapping[str, tuple[Float64Array, IntArray]]
    ) -> Any:
        shown = np.unique(np.linspace(0, len(truth) - 1, _SHOWN).round().astype(int))
        rows = [[clip.video[WARM_UP + t] for t in shown], [_grey(truth[t]) for t in shown]]
        colours = cluster_colors(CLUSTERS)
        captions = [f"frame {WARM_UP + t}" for t in shown] + ["true square"] * len(shown)
        for way, (ranks, assigned) in ways.items():
            low, high = np.percentile(ranks, (2, 98))
            scaled = (ranks - low) / max(high - low, 1e-12)
            rows += [[_grey(scaled[t]) for t in shown], [_large(colours[assigned[t]]) for t in shown]]
            name = "reset" if way else "with state"
            captions += [f"probe, {name}"] * len(shown) + [f"k-means, {name}"] * len(shown)
        return compared(video, rows, captions, "the frames show nothing; the features with state may")


@dataclass(frozen=True)
class Learned:
    """What is known from other clips."""

    probe: LinearProbe
    clusters: Clusters
    chosen: BoolArray
    """(CLUSTERS,): those that are the square."""

    def in_square(self, features: Float32Array) -> BoolArray:
        """Cells (T, h, w) of the clusters that are the square; features (T, h, w, D)."""
        return np.asarray(self.chosen[self.clusters.assign(features)])


class LinearProbe:
    """Ridge regression from standardised features to a yes or no; takes clips one by one and keeps only their sums."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Float64Array = np.zeros(0)
        self._products: Float64Array = np.zeros((0, 0))
        self._target_sum = 0.0
        self._target_products: Float64Array = np.zeros(0)
        self._weights: Float64Array | None = None

    def learn(self, features: Float32Array, truth: BoolArray) -> None:
        """Takes features (..., D) and what is true of them (...)."""
        x = features.reshape(-1, features.shape[-1]).astype(np.float64)
        y = truth.reshape(-1).astype(np.float64)
        if not self._count:
            self._sum, self._products = np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1]))
            self._target_products = np.zeros(x.shape[1])
        self._count += len(x)
        self._sum += x.sum(axis=0)
        self._products += x.T @ x
        self._target_sum += float(y.sum())
        self._target_products += x.T @ y
        self._weights = None

    def rank(self, features: Float32Array) -> Float64Array:
        """How much each of the features (..., D) looks like a yes, (...): larger for more. After `learn`."""
        return np.asarray(features.astype(np.float64) @ self._solved())

    def _solved(self) -> Float64Array:
        if self._weights is None:
            mean = self._sum / self._count
            covariance = self._products / self._count - np.outer(mean, mean)
            target = self._target_products / self._count - mean * (self._target_sum / self._count)
            damping = RIDGE * float(np.diagonal(covariance).mean()) + 1e-12
            self._weights = np.asarray(np.linalg.solve(covariance + damping * np.eye(len(mean)), target))
        return self._weights


def area_under_roc(ranks: Float64Array, truth: BoolArray) -> float:
    """The probability that a cell in the square ranks above one outside; ties count half. NaN-free: 0.5 if one kind."""
    values, yes = ranks.ravel(), truth.ravel()
    inside, outside = int(yes.sum()), int((~yes).sum())
    if not inside or not outside:
        return 0.5
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    # Places from 1 on; equal values share the mean of theirs.
    places = (np.cumsum(counts) - (counts - 1) / 2)[index]
    return float((places[yes].sum() - inside * (inside + 1) / 2) / (inside * outside))


def ranked_hits(ranks: Float64Array, truth: BoolArray) -> float:
    """Of the cells that rank first, as many in each frame as the square has, the share that are in the square."""
    hits = total = 0
    for values, inside in zip(ranks.reshape(len(ranks), -1), truth.reshape(len(truth), -1), strict=True):
        count = int(inside.sum())
        hits += int(inside[np.argsort(-values, kind="stable")[:count]].sum())
        total += count
    return hits / total if total else 0.0


def mostly_inside(assigned: IntArray, truth: BoolArray) -> BoolArray:
    """(CLUSTERS,): whether most of the cells with this number in `assigned` (n,) are in the square, `truth` (n,)."""
    cells = np.bincount(assigned, minlength=CLUSTERS)
    return np.asarray(np.bincount(assigned, truth, minlength=CLUSTERS) > cells / 2)


def _iou(found: BoolArray, truth: BoolArray) -> float:
    union = int((found | truth).sum())
    return int((found & truth).sum()) / union if union else 1.0


def _grey(values: npt.ArrayLike) -> UInt8Array:
    """Values (h, w) in [0, 1] as a picture."""
    grey = (np.clip(np.asarray(values, np.float64), 0, 1) * 255).astype(np.uint8)
    return _large(np.repeat(grey[..., None], 3, axis=-1))


def _large(image: UInt8Array) -> UInt8Array:
    return np.asarray(cv2.resize(image, (_ENLARGED, _ENLARGED), interpolation=cv2.INTER_NEAREST), np.uint8)
