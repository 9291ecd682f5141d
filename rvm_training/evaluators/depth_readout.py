"""`rvm eval depth`: depth by a trained readout on ScanNet, as the absolute relative error (AbsRel).

T frames of a clip. A clip is seen as the start of a video; the head says the depth of all of its frames at once. Frames
are cut to the head's shape in their middle and resized; depth maps likewise, to the nearest pixel. The figure is the
mean over scenes of each scene's mean over the pixels whose true depth is between 0.001 and 10 m.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.heads import DepthHead
from rvm_core.preprocess import Preprocess
from rvm_training.datasets.clips import clip_indices
from rvm_training.datasets.images import UInt16Array, read_depth, read_image, read_images
from rvm_training.datasets.scannet import DepthVideo, ScanNetFolder
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
from rvm_training.evaluators.depth import MAX_DEPTH, MIN_DEPTH, abs_rel
from rvm_training.evaluators.drawing import depth_picture

SIZE = (256, 256)
MILLIMETRES = 1000.0
METRICS = (
    Metric(key="abs_rel", title="AbsRel", scale=1, form=".3f", description="|predicted - true| / true, less is better"),
)

Float64Array = npt.NDArray[np.float64]


def create(args: argparse.Namespace, encoder: Encoder) -> DepthReadout:
    """See `rvm_training.evaluation.benchmark`; args has `data`, `head`, `scenes`, `clips`, `stride` and `size`."""
    return DepthReadout(
        ScanNetFolder(args.data, args.scenes),
        encoder,
        head=args.head,
        clips=args.clips,
        stride=args.stride,
        image_size=args.size or SIZE,
    )


class DepthReadout:
    """A `Benchmark`."""

    name = "depth"
    title = "depth of ScanNet by a trained readout"
    metrics = METRICS
    published = (Row(name="RVM-S", values={"abs_rel": 0.120}, source="arXiv 2512.13684"),)

    def __init__(
        self,
        dataset: ScanNetFolder,
        encoder: Encoder,
        *,
        head: Path,
        clips: int = 1,
        stride: int = 1,
        image_size: tuple[int, int] = SIZE,
    ) -> None:
        self._dataset, self._encoder, self._clips, self._stride = dataset, encoder, clips, stride
        self.image_size = image_size
        self._head = load_head(head, DepthHead, encoder.width)
        self._head_hash = head_hash(head)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Benchmark`."""
        return {
            "head": self._head_hash,
            "frames": self._head.config.frames,
            "stride": self._stride,
            "clips": self._clips,
            "resize": "center_crop",
            "valid_depth": [MIN_DEPTH, MAX_DEPTH],
        }

    @property
    def deviations(self) -> Sequence[str]:
        """See `Benchmark`."""
        frames = self._head.config.frames
        reasons = [] if frames == 16 else [f"a head for {frames} frames instead of 16"]
        if self.image_size != SIZE:
            reasons.append("frames of {}x{} pixels instead of 256x256".format(*self.image_size))
        return reasons

    def videos(self) -> Sequence[str]:
        """See `Benchmark`."""
        return self._dataset.ids

    def files(self, video: str) -> Sequence[Path]:
        """See `Benchmark`: those of its clips."""
        scene = self._dataset.read(video)
        used = sorted({index for clip in self._indices(scene) for index in clip})
        return [path for index in used for path in (scene.color[index], scene.depth[index])]

    def evaluate(self, video: str, *, pictures: bool, advance: Advance) -> VideoResult:
        """See `Benchmark`."""
        scene = self._dataset.read(video)
        found, truth, shown = [], [], []
        clips = self._indices(scene)
        for number, clip in enumerate(clips):
            frames = (scene.color[index] for index in clip)
            features = clip_features(self._encoder, read_images(frames), self.image_size, "center_crop")
            found.append(np.exp(read(self._head, features)[0, ..., 0].double().cpu().numpy()))
            truth.append(np.stack([self._fit(read_depth(scene.depth[index])) for index in clip]))
            if pictures and not number:
                shown.append(self._picture(scene.color[clip[0]], found[0][0], truth[0][0]))
            advance((number + 1) / len(clips))
        error = abs_rel(np.stack(found), np.stack(truth))
        value = None if math.isnan(error) else error
        return VideoResult(scores={"abs_rel": value}, summary={"abs_rel": value}, pictures=shown)

    def aggregate(self, results: Mapping[str, Scores]) -> Aggregate:
        """See `Benchmark`: the mean over scenes."""
        known = [scores["abs_rel"] for scores in results.values() if scores["abs_rel"] is not None]
        notes = [
            f"{self._clips} clip(s) of {self._head.config.frames} frames, every {self._stride}. frame, of each of "
            f"{len(known)} scenes; the publication does not say which frames it takes"
        ]
        if len(known) < len(results):
            notes.append(f"{len(results) - len(known)} scenes have no pixel with a known depth, and do not count")
        return Aggregate(rows=[Row(name="", values={"abs_rel": float(np.mean(known)) if known else None})], notes=notes)

    def _indices(self, scene: DepthVideo) -> list[list[int]]:
        frames = self._head.config.frames
        if len(scene.color) < frames:
            raise DatasetError(f"expected a scene of {frames} frames or more, got {len(scene.color)}")
        return clip_indices(len(scene.color), frames=frames, stride=self._stride, clips=self._clips)

    def _fit(self, depth: UInt16Array) -> Float64Array:
        """Depth in metres as the head gives it, (h, w)."""
        return fit_depth(depth, self.image_size, self._head.config.image_size) / MILLIMETRES

    def _picture(self, path: Path, found: Float64Array, truth: Float64Array) -> Picture:
        frame = Preprocess(height=self.image_size[0], width=self.image_size[1], policy="center_crop")(read_image(path))
        return Picture(name="depth", image=depth_picture(frame, found, truth), caption="frame, depth found, true depth")


def fit_depth(depth: npt.NDArray[Any], image_size: tuple[int, int], head_size: tuple[int, int]) -> Float64Array:
    """A depth map (H, W) cut in its middle to the shape of `image_size` and brought to `head_size`, nearest pixels."""
    box = Preprocess(height=image_size[0], width=image_size[1], policy="center_crop").map(*depth.shape)
    part = depth[box.source_box.slices]
    height, width = head_size
    return np.asarray(cv2.resize(part, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), np.float64)
