"""`rvm eval classes`: classes of videos by a trained readout, top-1, on Something-Something v2 and Kinetics.

After 4DS (arXiv 2412.15212): clips of 16 frames, every second one; of Something-Something v2 the clip in the middle, of
Kinetics 7 clips spread over the video, whose probabilities are averaged. Each clip is seen as the start of a video.
Frames are cut to a square in their middle and resized.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rvm_core.checkpoint import CheckpointError
from rvm_core.heads import ClassHead
from rvm_core.preprocess import Preprocess
from rvm_core.visualize import side_by_side
from rvm_training.datasets.clips import clip_indices, count_frames, read_video_frames
from rvm_training.datasets.video_classes import ClassifiedVideos, DatasetName, open_classes
from rvm_training.evaluation.benchmark import Advance, Aggregate, Metric, Picture, Row, Scores, VideoResult
from rvm_training.evaluation.features import Encoder
from rvm_training.evaluation.readouts import clip_features, head_hash, load_head, read
from rvm_training.evaluators.classification import average_clips, top_1

SIZE = (256, 256)
STRIDE = 2
CLIPS: dict[DatasetName, int] = {"ssv2": 1, "kinetics": 7}
METRICS = (Metric(key="top_1", title="top-1", description="videos whose class is the likeliest, %"),)
TITLES: dict[DatasetName, str] = {"ssv2": "Something-Something v2", "kinetics": "Kinetics"}
_SOURCE = "arXiv 2512.13684"
_PUBLISHED: dict[DatasetName, tuple[tuple[str, float], ...]] = {
    "ssv2": (("RVM-S", 0.597), ("RVM-L", 0.667), ("RVM-H", 0.687)),
    "kinetics": (("RVM-S", 0.496),),
}


def create(args: argparse.Namespace, encoder: Encoder) -> ClassReadout:
    """See `rvm_training.evaluation.benchmark`; args has `data`, `head`, `dataset` and `size`."""
    return ClassReadout(open_classes(args.data, args.dataset), encoder, head=args.head, image_size=args.size or SIZE)


class ClassReadout:
    """A `Benchmark`."""

    name = "classes"
    metrics = METRICS

    def __init__(
        self, dataset: ClassifiedVideos, encoder: Encoder, *, head: Path, image_size: tuple[int, int] = SIZE
    ) -> None:
        self._dataset, self._encoder = dataset, encoder
        self.image_size = image_size
        self._head = load_head(head, ClassHead, encoder.width)
        self._head_hash = head_hash(head)
        if self._head.config.classes != len(dataset.classes):
            raise CheckpointError(
                head,
                f"expected a head for the {len(dataset.classes)} classes there are, got {self._head.config.classes}",
            )

    @property
    def title(self) -> str:
        """See `Benchmark`."""
        return f"classes of {TITLES[self._dataset.name]} by a trained readout"

    @property
    def published(self) -> Sequence[Row]:
        """See `Benchmark`."""
        values = _PUBLISHED[self._dataset.name]
        return [Row(name=name, values={"top_1": value}, source=_SOURCE) for name, value in values]

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Benchmark`."""
        return {
            "dataset": self._dataset.name,
            "classes": list(self._dataset.classes),
            "head": self._head_hash,
            "frames": self._head.config.frames,
            "stride": STRIDE,
            "clips": CLIPS[self._dataset.name],
            "resize": "center_crop",
        }

    @property
    def deviations(self) -> Sequence[str]:
        """See `Benchmark`."""
        frames = self._head.config.frames
        reasons = [] if frames == 16 else [f"a head for {frames} frames instead of 16"]
        if self.image_size != SIZE:
            reasons.append("frames of {}x{} pixels instead of 256x256".format(*self.image_size))
        if self._dataset.missing:
            every = len(self._dataset.missing) + len(self._dataset.videos)
            reasons.append(f"{len(self._dataset.missing)} of {every} videos of the list are missing")
        return reasons

    def videos(self) -> Sequence[str]:
        """See `Benchmark`."""
        return list(self._dataset.videos)

    def files(self, video: str) -> Sequence[Path]:
        """See `Benchmark`."""
        return [self._dataset.videos[video]]

    def evaluate(self, video: str, *, pictures: bool, advance: Advance) -> VideoResult:
        """See `Benchmark`."""
        path, label = self._dataset.videos[video], self._dataset.labels[video]
        count = CLIPS[self._dataset.name]
        clips = clip_indices(count_frames(path), frames=self._head.config.frames, stride=STRIDE, clips=count)
        preprocess = Preprocess(height=self.image_size[0], width=self.image_size[1], policy="center_crop")
        wanted = sorted({index for clip in clips for index in clip})
        frames = {index: preprocess(frame) for index, frame in read_video_frames(path, wanted)}
        logits = []
        for number, clip in enumerate(clips):
            features = clip_features(self._encoder, (frames[index] for index in clip), self.image_size, "stretch")
            logits.append(read(self._head, features)[0].double().cpu().numpy())
            advance((number + 1) / len(clips))
        probabilities = average_clips(np.stack(logits)[None])[0]
        guess = int(probabilities.argmax())
        right = top_1(probabilities[None], [label])
        return VideoResult(
            scores={"label": label, "guess": guess, "probability": float(probabilities[guess]), "right": right},
            summary={"top_1": right},
            pictures=[self._picture([frames[index] for index in clips[0]], label, guess)] if pictures else (),
        )

    def aggregate(self, results: Mapping[str, Scores]) -> Aggregate:
        """See `Benchmark`: the share of videos."""
        value = float(np.mean([scores["right"] for scores in results.values()]))
        return Aggregate(rows=[Row(name="", values={"top_1": value})], notes=[f"{len(results)} videos"])

    def _picture(self, frames: Sequence[Any], label: int, guess: int) -> Picture:
        shown = np.linspace(0, len(frames) - 1, 4).astype(int)
        classes = self._dataset.classes
        return Picture(
            name="clip",
            image=side_by_side([frames[index] for index in shown]),
            caption=f"{classes[label]}; said to be: {classes[guess]}",
        )
