"""`rvm eval jhmdb`: joints of JHMDB's test videos propagated by features alone; PCK at 0.1 to 0.5.

A joint is found if it is within a share of 0.6 times the diagonal of the box of the person's joints. The protocol
counts, and draws that box around, only the joints that the propagation says anything of; it leaves the first frames
out, takes all frames of all videos together for each joint, and then the mean over the 15 joints.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.draw_tracks import draw_tracks
from rvm_core.tracking.base import PointTracks, Status
from rvm_core.tracking.labels import joints_to_labels, labels_to_joints
from rvm_core.tracking.pixels import PixelTracks
from rvm_core.tracking.propagation import TrackingConfig
from rvm_training.datasets.folder import unusual_count
from rvm_training.datasets.images import read_image
from rvm_training.datasets.jhmdb import JOINTS, VIDEOS, Jhmdb
from rvm_training.evaluation.benchmark import Advance, Aggregate, DatasetError, Metric, Row, Scores, VideoResult
from rvm_training.evaluation.features import Encoder
from rvm_training.evaluators.label_propagation import Propagation, compared, deviations, make_config, shown_frames

IMAGE_SIZE = (320, 320)
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
_BOX_SHARE = 0.6
_PROTOCOL_SPLIT = 1
_DRAWN_WIDTH = 640

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]


def create(args: argparse.Namespace, encoder: Encoder) -> JhmdbBenchmark:
    """See `rvm_training.evaluation.benchmark`."""
    return JhmdbBenchmark(Jhmdb(args.data, args.split), encoder, make_config(args), args.split)


class JhmdbBenchmark:
    """See the module's docstring and `Benchmark`."""

    name = "jhmdb"
    image_size = IMAGE_SIZE
    metrics = tuple(
        Metric(key=f"pck_{threshold}", title=f"PCK@{threshold}", description=description)
        for threshold, description in zip(
            THRESHOLDS,
            ("joints found within this share of 0.6 times the person's diagonal, in %", *[""] * 4),
            strict=True,
        )
    )
    published = ()

    def __init__(self, dataset: Jhmdb, encoder: Encoder, config: TrackingConfig, split: int = _PROTOCOL_SPLIT) -> None:
        self._dataset, self._split = dataset, split
        self._propagation = Propagation(encoder, self.image_size, config)

    @property
    def title(self) -> str:
        """See `Benchmark`."""
        return f"JHMDB, test videos of split {self._split}: joints of the first frame propagated by features alone"

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Benchmark`."""
        return {**self._propagation.settings, "split": self._split}

    @property
    def deviations(self) -> Sequence[str]:
        """See `Benchmark`."""
        if self._split == _PROTOCOL_SPLIT:
            other = unusual_count(self._dataset.videos, VIDEOS)
        else:
            other = [f"split {self._split} is used, not {_PROTOCOL_SPLIT}"]
        return [*deviations(self._propagation.config), *other]

    def videos(self) -> Sequence[str]:
        """See `Benchmark`."""
        return self._dataset.videos

    def files(self, video: str) -> Sequence[Path]:
        """See `Benchmark`."""
        return [*self._dataset.frames(video), self._dataset.joints_file(video)]

    def evaluate(self, video: str, *, pictures: bool, advance: Advance) -> VideoResult:
        """Scores: found, 5 rows (thresholds) of 15 joints, and counted, 15 joints."""
        truth = self._dataset.joints(video)
        frames = self._dataset.frames(video)
        if len(frames) < len(truth):
            raise DatasetError(f"{video}: {len(truth)} frames have joints, but there are only {len(frames)} images")
        # Some folders have images beyond the part that was annotated.
        frames = frames[: len(truth)]
        image = read_image(frames[0])
        size = (image.shape[0], image.shape[1])
        labels = joints_to_labels(truth[0], size=size, grid=self._propagation.grid)
        joints = np.stack(
            [labels_to_joints(soft, size=size) for soft in self._propagation.run(frames, labels, advance)]
        )
        found, counted = joint_hits(truth, joints)
        summary = pck(found, counted)
        drawn = []
        if pictures:
            shown = shown_frames(len(frames))
            rows = [[_drawn(read_image(frames[i]), where[i]) for i in shown] for where in (truth, joints)]
            captions = [f"truth, frame {i}" for i in shown] + [f"propagated, frame {i}" for i in shown]
            drawn.append(compared(video, rows, captions, f"PCK@0.1 {100 * summary['pck_0.1']:.1f}"))
        return VideoResult(
            scores={"found": found.tolist(), "counted": counted.tolist()}, summary=summary, pictures=drawn
        )

    def aggregate(self, results: Mapping[str, Scores]) -> Aggregate:
        """PCK from the sums of all videos."""
        found = np.sum([np.array(scores["found"], np.int64) for scores in results.values()], axis=0)
        counted = np.sum([np.array(scores["counted"], np.int64) for scores in results.values()], axis=0)
        return Aggregate(rows=[Row(name="", values=pck(found, counted))])


def joint_hits(truth: Float32Array, joints: Float32Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Counts of a video by joint: how many were found (5, 15) within each threshold, and how many count (15,).

    Both arguments (T, 15, 2), pixels; a joint of which nothing is said has x under 0 in `joints`.
    """
    said = joints[..., 0] >= 0
    found, counted = np.zeros((len(THRESHOLDS), JOINTS), np.int64), np.zeros(JOINTS, np.int64)
    for true, guess, known in zip(truth[1:].astype(np.float64), joints[1:], said[1:], strict=True):
        counted += known
        if not known.any():
            continue
        reach = _BOX_SHARE * float(np.linalg.norm(np.ptp(true[known], axis=0)))
        distance = np.linalg.norm(guess - true, axis=-1)
        if reach > 0:
            found += known & (distance / reach <= np.array(THRESHOLDS)[:, None])
    return found, counted


def pck(found: npt.NDArray[np.int64], counted: npt.NDArray[np.int64]) -> dict[str, float]:
    """PCK by threshold: the mean over joints that count at all; NaN if none does."""
    known = counted > 0
    shares = found[:, known] / counted[known]
    values = shares.mean(axis=1) if known.any() else np.full(len(THRESHOLDS), np.nan)
    return {f"pck_{threshold}": float(value) for threshold, value in zip(THRESHOLDS, values, strict=True)}


def _drawn(image: UInt8Array, joints: Float32Array) -> UInt8Array:
    """An image with the joints (15, 2) that are in it, enlarged, so that they can be told apart."""
    factor = _DRAWN_WIDTH / image.shape[1]
    large = np.asarray(cv2.resize(image, None, fx=factor, fy=factor), np.uint8)
    known = np.flatnonzero(joints[:, 0] >= 0)
    points = PointTracks(
        ids=known.astype(np.uint64),
        # The dataset's pixels have their centres at whole numbers.
        xy=((joints[known] + 0.5) * factor).astype(np.float32),
        status=np.full(len(known), Status.VISIBLE, np.uint8),
        confidence=np.ones(len(known), np.float32),
    )
    return draw_tracks(large, PixelTracks(points=points))
