"""`rvm eval pose`: the relative pose of two cameras by a trained readout, on RealEstate10K, as the end-point error.

After 4DS (arXiv 2412.15212): of a clip the features of the first and the last frame are read, the numbers for the
rotation are projected on rotations, and the error is the mean distance between where the two poses put the corners of
a cube. A clip is 16 frames in the middle of a video, and seen as the start of one. Frames are cut to a square in their
middle and resized.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rvm_core.heads import PoseHead
from rvm_core.preprocess import Preprocess
from rvm_core.visualize import side_by_side
from rvm_training.datasets.clips import clip_indices
from rvm_training.datasets.images import read_image, read_images
from rvm_training.datasets.realestate import CameraVideo, RealEstateFolder, relative_pose
from rvm_training.evaluation.benchmark import (
    Advance,
    Aggregate,
    DatasetError,
    Metric,
    Picture,
    Row,
    Scores,
    VideoResult,
)
from rvm_training.evaluation.features import Encoder
from rvm_training.evaluation.readouts import clip_features, head_hash, load_head, read
from rvm_training.evaluators.pose import end_point_error

SIZE = (256, 256)
FRAMES = 16
METRICS = (
    Metric(
        key="end_point_error",
        title="EPE",
        scale=1,
        form=".4f",
        description="mean end-point error of a cube's corners, in the unit of the cameras, less is better",
    ),
)


def create(args: argparse.Namespace, encoder: Encoder) -> PoseReadout:
    """See `rvm_training.evaluation.benchmark`; args has `data`, `head`, `frames`, `stride` and `size`."""
    return PoseReadout(
        RealEstateFolder(args.data),
        encoder,
        head=args.head,
        frames=args.frames,
        stride=args.stride,
        image_size=args.size or SIZE,
    )


class PoseReadout:
    """A `Benchmark`."""

    name = "pose"
    title = "relative pose of cameras of RealEstate10K by a trained readout"
    metrics = METRICS
    published: Sequence[Row] = ()

    def __init__(
        self,
        dataset: RealEstateFolder,
        encoder: Encoder,
        *,
        head: Path,
        frames: int = FRAMES,
        stride: int = 1,
        image_size: tuple[int, int] = SIZE,
    ) -> None:
        if frames < 2:
            raise ValueError(f"expected clips of two frames or more, got {frames}")
        self._dataset, self._encoder, self._frames, self._stride = dataset, encoder, frames, stride
        self.image_size = image_size
        self._head = load_head(head, PoseHead, encoder.width)
        self._head_hash = head_hash(head)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Benchmark`."""
        return {"head": self._head_hash, "frames": self._frames, "stride": self._stride, "resize": "center_crop"}

    @property
    def deviations(self) -> Sequence[str]:
        """See `Benchmark`."""
        reasons = [] if self._frames == FRAMES else [f"clips of {self._frames} frames instead of {FRAMES}"]
        if self.image_size != SIZE:
            reasons.append("frames of {}x{} pixels instead of 256x256".format(*self.image_size))
        return reasons

    def videos(self) -> Sequence[str]:
        """See `Benchmark`."""
        return self._dataset.ids

    def files(self, video: str) -> Sequence[Path]:
        """See `Benchmark`: the cameras and the frames of the clip."""
        content = self._dataset.read(video)
        return [self._dataset.text(video), *(content.frames[index] for index in self._indices(content))]

    def evaluate(self, video: str, *, pictures: bool, advance: Advance) -> VideoResult:
        """See `Benchmark`."""
        content = self._dataset.read(video)
        clip = self._indices(content)
        paths = [content.frames[index] for index in clip]
        features = clip_features(self._encoder, read_images(paths), self.image_size, "center_crop")
        pose = read(self._head, features)
        rotation, translation = relative_pose(content.cameras[clip[0]], content.cameras[clip[-1]])
        error = float(
            end_point_error(
                pose.rotation.double().cpu().numpy(),
                pose.translation.double().cpu().numpy(),
                rotation[None],
                translation[None],
            )[0]
        )
        advance(1.0)
        return VideoResult(
            scores={"end_point_error": error},
            summary={"end_point_error": error},
            pictures=[self._picture(paths)] if pictures else (),
        )

    def aggregate(self, results: Mapping[str, Scores]) -> Aggregate:
        """See `Benchmark`: the mean over videos."""
        value = float(np.mean([scores["end_point_error"] for scores in results.values()]))
        notes = [f"{len(results)} clips of {self._frames} frames, every {self._stride}. frame"]
        return Aggregate(rows=[Row(name="", values={"end_point_error": value})], notes=notes)

    def _indices(self, content: CameraVideo) -> list[int]:
        needed = (self._frames - 1) * self._stride + 1
        if len(content.frames) < needed:
            raise DatasetError(f"expected a video of {needed} frames or more, got {len(content.frames)}")
        return clip_indices(len(content.frames), frames=self._frames, stride=self._stride, clips=1)[0]

    def _picture(self, paths: Sequence[Path]) -> Picture:
        preprocess = Preprocess(height=self.image_size[0], width=self.image_size[1], policy="center_crop")
        image = side_by_side([preprocess(read_image(path)) for path in (paths[0], paths[-1])])
        return Picture(name="pose", image=image, caption="first and last frame")
