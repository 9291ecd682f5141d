"""`rvm eval vip`: human parts of VIP's validation set propagated by features alone; mean IoU over 20 classes.

One confusion matrix counts the pixels of all frames of all videos, the first frames too, at the original size.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rvm_core.tracking.labels import labels_to_mask, mask_to_labels
from rvm_core.tracking.propagation import TrackingConfig
from rvm_training.datasets.folder import unusual_count
from rvm_training.datasets.images import read_image
from rvm_training.datasets.label_images import read_labels
from rvm_training.datasets.vip import CLASSES, VIDEOS, Vip
from rvm_training.evaluation.benchmark import Advance, Aggregate, DatasetError, Metric, Row, Scores, VideoResult
from rvm_training.evaluation.features import Encoder
from rvm_training.evaluators.label_propagation import (
    Propagation,
    compared,
    deviations,
    make_config,
    painted,
    shown_frames,
)

IMAGE_SIZE = (448, 880)
TOP_K = 10
_PAPER = "arXiv 2512.13684"

Counts = npt.NDArray[np.int64]


def create(args: argparse.Namespace, encoder: Encoder) -> VipBenchmark:
    """See `rvm_training.evaluation.benchmark`."""
    return VipBenchmark(Vip(args.data), encoder, make_config(args, top_k=TOP_K))


class VipBenchmark:
    """See the module's docstring and `Benchmark`."""

    name = "vip"
    title = "VIP validation: human parts of the first frame propagated by features alone"
    image_size = IMAGE_SIZE
    metrics = (
        Metric(key="miou", title="mIoU", description="mean IoU of the classes that occur, over all pixels, in %"),
        *(Metric(key=name, title=name, detail=True) for name in CLASSES),
    )
    published = (
        Row(name="RVM-L", values={"miou": 0.380}, source=_PAPER),
        Row(name="RVM-H", values={"miou": 0.373}, source=_PAPER),
    )

    def __init__(self, dataset: Vip, encoder: Encoder, config: TrackingConfig) -> None:
        self._dataset = dataset
        self._propagation = Propagation(encoder, self.image_size, config)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Benchmark`."""
        return self._propagation.settings

    @property
    def deviations(self) -> Sequence[str]:
        """See `Benchmark`."""
        return [*deviations(self._propagation.config, top_k=TOP_K), *unusual_count(self._dataset.videos, VIDEOS)]

    def videos(self) -> Sequence[str]:
        """See `Benchmark`."""
        return self._dataset.videos

    def files(self, video: str) -> Sequence[Path]:
        """See `Benchmark`."""
        return [*self._dataset.frames(video), *self._dataset.labels(video)]

    def evaluate(self, video: str, *, pictures: bool, advance: Advance) -> VideoResult:
        """Scores: counts, 20 rows (true class) of 20 columns (found class)."""
        frames, truths = self._dataset.frames(video), self._dataset.labels(video)
        first = read_labels(truths[0])
        labels, values = mask_to_labels(first, processing_size=self.image_size, grid=self._propagation.grid)
        shown = shown_frames(len(frames)) if pictures else []
        counts = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
        rows = []
        for index, soft in enumerate(self._propagation.run(frames, labels, advance)):
            truth = read_labels(truths[index])
            if truth.shape != first.shape:
                raise DatasetError(f"{truths[index]}: expected the size of the first, {first.shape}, got {truth.shape}")
            found = labels_to_mask(soft, values, processing_size=self.image_size, size=first.shape)
            counts += confusion(truth, found)
            if index in shown:
                image = read_image(frames[index])
                rows.append((painted(image, truth), painted(image, found)))
        summary = class_ious(counts)
        drawn = []
        if rows:
            captions = [f"truth, frame {i}" for i in shown] + [f"propagated, frame {i}" for i in shown]
            drawn.append(compared(video, list(zip(*rows, strict=True)), captions, f"mIoU {100 * summary['miou']:.1f}"))
        return VideoResult(scores={"counts": counts.tolist()}, summary=summary, pictures=drawn)

    def aggregate(self, results: Mapping[str, Scores]) -> Aggregate:
        """IoU from the sum of all counts."""
        counts = np.sum([np.array(scores["counts"], np.int64) for scores in results.values()], axis=0)
        return Aggregate(rows=[Row(name="", values=class_ious(counts))])


def confusion(truth: npt.NDArray[np.integer], found: npt.NDArray[np.integer]) -> Counts:
    """How many pixels of each true class (rows) were found to be of each class (columns).

    Pixels whose true number is no class are left out, and so are those found as none.
    """
    size = len(CLASSES)
    counted = (truth < size) & (found < size)
    pairs = truth[counted].astype(np.int64) * size + found[counted]
    return np.bincount(pairs, minlength=size**2).reshape(size, size)


def class_ious(counts: Counts) -> dict[str, float]:
    """IoU by class, NaN for one that neither occurs nor was found, and "miou", the mean of the others."""
    right = np.diagonal(counts)
    union = counts.sum(0) + counts.sum(1) - right
    iou = np.divide(right, union, out=np.full(len(CLASSES), np.nan), where=union > 0)
    mean = float(np.nanmean(iou)) if union.any() else float("nan")
    return {"miou": mean} | dict(zip(CLASSES, iou.tolist(), strict=True))
