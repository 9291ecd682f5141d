"""`rvm eval davis2017`: masks of DAVIS 2017's validation set propagated by features alone; J, F and J&F.

The protocol of DAVIS, semi-supervised: at the original size, without the first and the last frame, a mean over frames
for each object that the first frame has, then over all objects of all videos.
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
from rvm_training.datasets.davis import VIDEOS, Davis2017
from rvm_training.datasets.folder import unusual_count
from rvm_training.datasets.images import read_image
from rvm_training.datasets.label_images import read_labels
from rvm_training.evaluation.benchmark import Advance, Aggregate, DatasetError, Metric, Row, Scores, VideoResult
from rvm_training.evaluation.features import Encoder
from rvm_training.evaluators.boundary import boundary_f
from rvm_training.evaluators.label_propagation import (
    Propagation,
    compared,
    deviations,
    make_config,
    painted,
    shown_frames,
)
from rvm_training.evaluators.overlap import mask_iou

IMAGE_SIZE = (480, 880)
VOID = 255
"""Pixels that no object is said to have; counted as background."""
_GOOD = 0.5
_PAPER = "arXiv 2512.13684"

Labels = npt.NDArray[np.integer]


def create(args: argparse.Namespace, encoder: Encoder) -> Davis2017Benchmark:
    """See `rvm_training.evaluation.benchmark`."""
    return Davis2017Benchmark(Davis2017(args.data), encoder, make_config(args))


class Davis2017Benchmark:
    """See the module's docstring and `Benchmark`."""

    name = "davis2017"
    title = "DAVIS 2017 validation, 480p: masks of the first frame propagated by features alone"
    image_size = IMAGE_SIZE
    metrics = (
        Metric(key="jf", title="J&F", description="mean of J and F, in %"),
        Metric(key="j", title="J", description="IoU of masks, mean over frames and objects, in %"),
        Metric(key="f", title="F", description="agreement of boundaries within 0.008 of the diagonal, in %"),
        Metric(key="j_recall", title="J recall", description="frames with J over 0.5, in %"),
        Metric(key="f_recall", title="F recall", description="frames with F over 0.5, in %"),
    )
    published = (
        Row(name="RVM-L", values={"jf": 0.660}, source=_PAPER),
        Row(name="RVM-H", values={"jf": 0.656}, source=_PAPER),
    )

    def __init__(self, dataset: Davis2017, encoder: Encoder, config: TrackingConfig) -> None:
        self._dataset = dataset
        self._propagation = Propagation(encoder, self.image_size, config)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Benchmark`."""
        return self._propagation.settings

    @property
    def deviations(self) -> Sequence[str]:
        """See `Benchmark`."""
        return [*deviations(self._propagation.config), *unusual_count(self._dataset.videos, VIDEOS)]

    def videos(self) -> Sequence[str]:
        """See `Benchmark`."""
        return self._dataset.videos

    def files(self, video: str) -> Sequence[Path]:
        """See `Benchmark`."""
        return [*self._dataset.frames(video), *self._dataset.labels(video)]

    def evaluate(self, video: str, *, pictures: bool, advance: Advance) -> VideoResult:
        """Scores: j and f, each a list of frames for each object."""
        frames, truths = self._dataset.frames(video), self._dataset.labels(video)
        first = read_objects(truths[0])
        objects = list(range(1, int(first.max(initial=0)) + 1))
        if not objects:
            raise DatasetError(f"{truths[0]} has no object: every pixel is background")
        labels, values = mask_to_labels(first, processing_size=self.image_size, grid=self._propagation.grid)
        shown = shown_frames(len(frames)) if pictures else []
        scores, rows = [], []
        for index, soft in enumerate(self._propagation.run(frames, labels, advance)):
            truth = read_objects(truths[index])
            if truth.shape != first.shape:
                raise DatasetError(f"{truths[index]}: expected the size of the first, {first.shape}, got {truth.shape}")
            found = labels_to_mask(soft, values, processing_size=self.image_size, size=first.shape)
            if 0 < index < len(frames) - 1:
                scores.append(frame_scores(truth, found, objects))
            if index in shown:
                image = read_image(frames[index])
                rows.append((painted(image, truth), painted(image, found)))
        j, f = np.array(scores).transpose(1, 2, 0)
        summary = _means(j.tolist(), f.tolist())
        drawn = []
        if rows:
            captions = [f"truth, frame {i}" for i in shown] + [f"propagated, frame {i}" for i in shown]
            caption = f"J&F {100 * summary['jf']:.1f}"
            drawn.append(compared(video, list(zip(*rows, strict=True)), captions, caption))
        return VideoResult(scores={"j": j.tolist(), "f": f.tolist()}, summary=summary, pictures=drawn)

    def aggregate(self, results: Mapping[str, Scores]) -> Aggregate:
        """Means over all objects of all videos."""
        j = [per_object for scores in results.values() for per_object in scores["j"]]
        f = [per_object for scores in results.values() for per_object in scores["f"]]
        return Aggregate(rows=[Row(name="", values=_means(j, f))], notes=[f"{len(j)} objects in {len(results)} videos"])


def read_objects(path: Path) -> Labels:
    """The objects' numbers (H, W), 0 for background and for pixels without a label."""
    labels = read_labels(path)
    return np.where(labels == VOID, np.uint8(0), labels)


def frame_scores(truth: Labels, found: Labels, objects: Sequence[int]) -> list[list[float]]:
    """J and F of one frame, each a list over objects."""
    masks = [(truth == number, found == number) for number in objects]
    return [[float(mask_iou(a, b)) for a, b in masks], [boundary_f(a, b) for a, b in masks]]


def _means(j: Sequence[Sequence[float]], f: Sequence[Sequence[float]]) -> dict[str, float]:
    """The metrics of objects, each a list over frames; videos differ in their number of frames."""
    j_mean, f_mean = (float(np.mean([np.mean(frames) for frames in values])) for values in (j, f))
    j_recall, f_recall = (
        float(np.mean([np.mean(np.asarray(frames) > _GOOD) for frames in values])) for values in (j, f)
    )
    return {"jf": (j_mean + f_mean) / 2, "j": j_mean, "f": f_mean, "j_recall": j_recall, "f_recall": f_recall}
