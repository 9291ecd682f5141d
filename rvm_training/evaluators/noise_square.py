"""`rvm eval noise_square`: whether features show a square of noise that only its motion gives away (figure 6).

The stimulus is that of `rvm_training.data.moving_noise`: no single frame tells where the square is. The same model is
measured twice: as it is, and with its state reset before every frame, so that it sees single frames and cannot do
better than chance. Two readings of the features, both by cells of the grid, from frame `WARM_UP` on:

- k-means with 5 clusters, k-means++, over all frames of a clip at once, as the paper's figure has it. A cluster counts
  as the square if most of its cells lie in it; the figure is the IoU of all these with the true square. Clusters that
  know nothing hold about as much of the square as the image does, less than half: 0.
- A linear probe, by ridge regression from the features to whether a cell is in the square. It learns from other clips,
  of other noise, so that it cannot know the noise by heart. Figures: the area under the ROC curve (chance: 0.5), and
  of the cells that it ranks first, as many as the square has, the share that lie in it (chance: the square's area).

T frames, N cells, D width.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.clustering import cluster_colors, fit_clusters
from rvm_core.config import PATCH_SIZE
from rvm_training.data.moving_noise import NoiseClip, NoiseConfig, covered_cells, generate_noise_clip
from rvm_training.evaluation.benchmark import Advance, Aggregate, Metric, Row, Scores, VideoResult
from rvm_training.evaluation.features import Encoder
from rvm_training.evaluators.label_propagation import compared

WARM_UP = 8
"""Frames before the first that counts: motion has to be seen first."""
CLUSTERS = 5
RIDGE = 1e-3
"""Of the ridge regression, relative to the mean variance of the features."""
MEASURED_FROM = 1000
"""Seed of the first clip that is measured; those that the probe learns from start at 0."""
_SHOWN = 4
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
    return NoiseSquareBenchmark(encoder, config, clips=args.clips, training_clips=args.training_clips)


class NoiseSquareBenchmark:
    """See the module's docstring and `Benchmark`."""

    name = "noise_square"
    title = "A square of noise that moves over noise: seen in the features, or not"
    metrics = (
        Metric(
            key="auc", title="probe AUC", description="area under the ROC curve of a linear probe, in %; chance: 50"
        ),
        Metric(key="ranked", title="probe hits", description="of the cells ranked first, those in the square, in %"),
        Metric(key="kmeans", title="k-means IoU", description="of the clusters that are the square, with it, in %"),
    )
    published = ()
    deviations = ()

    def __init__(self, encoder: Encoder, config: NoiseConfig, *, clips: int = 8, training_clips: int = 8) -> None:
        """Raises `ValueError` if clips are too short to count."""
        if config.num_frames <= WARM_UP:
            raise ValueError(f"expected more than {WARM_UP} frames, got {config.num_frames}")
        self.image_size = (config.size, config.size)
        self._encoder, self._config = encoder, config
        self._clips, self._training_clips = clips, training_clips
        self._probes: dict[bool, LinearProbe] = {}

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
            "training_clips": self._training_clips,
        }

    def videos(self) -> Sequence[str]:
        """See `Benchmark`."""
        return [f"clip_{index:03d}" for index in range(self._clips)]

    def files(self, video: str) -> Sequence[Path]:
        """See `Benchmark`."""
        return []

    def evaluate(self, video: str, *, pictures: bool, advance: Advance) -> VideoResult:
        """Scores: for each way the metrics of one clip. The first clip of a run has to wait for the probes to learn."""
        clip = generate_noise_clip(self._config, MEASURED_FROM + self.videos().index(video))
        truth = covered_cells(clip.inside, PATCH_SIZE)[WARM_UP:]
        scores: dict[str, dict[str, float]] = {}
        columns: dict[str, tuple[Float64Array, IntArray]] = {}
        for done, (way, reset) in enumerate(_WAYS.items(), start=1):
            probe = self._probe(reset)
            features = self._features(clip, reset)
            ranks = probe.rank(features)
            vectors = features.reshape(-1, features.shape[-1])
            assigned = fit_clusters(vectors, CLUSTERS).assign(vectors).reshape(truth.shape)
            hits = ranked_hits(ranks, truth)
            scores[way] = {
                "auc": area_under_roc(ranks, truth),
                "ranked": hits,
                "kmeans": _iou(square_clusters(assigned, truth), truth),
            }
            columns[way] = (ranks, assigned)
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
        rows.append(Row(name="chance", values={"auc": 0.5, "ranked": share, "kmeans": 0.0}))
        note = f"the probe learned from {self._training_clips} other clips; frames from {WARM_UP} on count"
        return Aggregate(rows=rows, notes=[note])

    def _features(self, clip: NoiseClip, reset: bool) -> Float32Array:
        """(T, h, w, D) of the frames that count. Frames of one clip of noise are few and small."""
        encoded = self._encoder.encode(iter(clip.video), self.image_size, reset_every_frame=reset)
        cells = self._config.size // PATCH_SIZE
        kept = [tokens[1:].float().cpu().numpy() for index, tokens in enumerate(encoded) if index >= WARM_UP]
        return np.stack(kept).reshape(len(kept), cells, cells, -1)

    def _probe(self, reset: bool) -> LinearProbe:
        if reset not in self._probes:
            probe = LinearProbe()
            for seed in range(self._training_clips):
                clip = generate_noise_clip(self._config, seed)
                probe.learn(self._features(clip, reset), covered_cells(clip.inside, PATCH_SIZE)[WARM_UP:])
            self._probes[reset] = probe
        return self._probes[reset]

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


def square_clusters(assigned: IntArray, truth: BoolArray) -> BoolArray:
    """Cells (T, h, w) of the clusters whose cells lie mostly in the square; `assigned` (T, h, w) are their numbers."""
    cells = np.bincount(assigned.ravel(), minlength=CLUSTERS)
    inside = np.bincount(assigned.ravel(), truth.ravel(), minlength=CLUSTERS)
    return np.asarray((inside > cells / 2)[assigned])


def _iou(found: BoolArray, truth: BoolArray) -> float:
    union = int((found | truth).sum())
    return int((found & truth).sum()) / union if union else 1.0


def _grey(values: npt.ArrayLike) -> UInt8Array:
    """Values (h, w) in [0, 1] as a picture."""
    grey = (np.clip(np.asarray(values, np.float64), 0, 1) * 255).astype(np.uint8)
    return _large(np.repeat(grey[..., None], 3, axis=-1))


def _large(image: UInt8Array) -> UInt8Array:
    return np.asarray(cv2.resize(image, (_ENLARGED, _ENLARGED), interpolation=cv2.INTER_NEAREST), np.uint8)
