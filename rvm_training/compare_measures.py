"""The benchmarks that `rvm compare` has beside those of `rvm eval`: synthetic scenes, and the user's own videos.

Each is a `rvm_training.evaluation.benchmark.Benchmark`, so that its results are kept video by video and found again.
T frames, h x w grid, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.clustering import fit_clusters
from rvm_core.config import PATCH_SIZE
from rvm_core.tracking import FeatureTracker
from rvm_core.tracking.labels import labels_to_mask, mask_to_labels
from rvm_core.tracking.propagation import TrackingConfig
from rvm_core.visualize import fit_pca, sample_cells, side_by_side
from rvm_training.data.layouts import find_videos
from rvm_training.data.scenes import SceneConfig, generate_scene
from rvm_training.data.video_files import SUFFIXES, VideoFileError, read_video
from rvm_training.evaluation.benchmark import (
    Advance,
    Aggregate,
    Curve,
    DatasetError,
    Metric,
    Picture,
    Row,
    Scores,
    VideoResult,
)
from rvm_training.evaluation.features import Encoder
from rvm_training.evaluators.davis2017 import frame_scores
from rvm_training.evaluators.label_propagation import propagate_stream
from rvm_training.evaluators.stability import j_and_f
from rvm_training.evaluators.synthetic import Method, follow, score

FIRST_SEED = 2000
"""Of the first scene: others than those that settings were chosen with."""
CLUSTERS = 5
"""Of a video's cells."""
SHOWN = 6
"""Frames of a video that its strips show."""
STRIP_HEIGHT = 112
"""Pixels."""
_LEAST_FRAMES = 3
_STEP = 16

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]


class SceneTracking:
    """Points, boxes and masks followed through synthetic scenes by the features and the tracker that all share."""

    name = "tracking"
    title = "Synthetic scenes: points, boxes and masks followed by the features alone"
    metrics = (
        Metric(key="average_jaccard", title="points AJ", description="Average Jaccard as of TAP-Vid, in %"),
        Metric(key="box_iou", title="box IoU", description="of what is seen of objects, after the first frame, in %"),
        Metric(key="mask_iou", title="mask IoU", description="the same of masks, in %"),
    )
    published = ()
    deviations = ()

    def __init__(self, encoder: Encoder, config: SceneConfig, *, scenes: int) -> None:
        self.image_size = (config.height, config.width)
        self._encoder, self._config, self._scenes = encoder, config, scenes

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Benchmark`."""
        return dict(vars(self._config))

    def videos(self) -> Sequence[str]:
        """See `Benchmark`."""
        return [f"scene_{seed}" for seed in range(FIRST_SEED, FIRST_SEED + self._scenes)]

    def files(self, video: str) -> Sequence[Path]:
        """See `Benchmark`."""
        return []

    def evaluate(self, video: str, *, pictures: bool, advance: Advance) -> VideoResult:
        """Scores: the metrics of the scene."""
        scene = generate_scene(self._config, _seed(video))
        tracker = FeatureTracker(grid=_grid(self.image_size))
        # All frames are handed to the encoder at once, as clip encoders see frames together.
        stream = (tokens.float().cpu() for tokens in self._encoder.encode(iter(scene.video), self.image_size))
        method = Method(self._encoder.name, tracker, lambda frame, features: (next(features), features), lambda: stream)
        done = 0

        def on_frame(count: int) -> None:
            nonlocal done
            done += count
            advance(done / len(scene.video))

        found = score(follow(method, scene, on_frame), scene)
        values = {
            "average_jaccard": _finite(found.points.average_jaccard),
            "box_iou": _finite(found.box_iou),
            "mask_iou": _finite(found.mask_iou),
        }
        return VideoResult(scores=values, summary=values)

    def aggregate(self, results: Mapping[str, Scores]) -> Aggregate:
        """Means over scenes."""
        return Aggregate(rows=[Row(name="", values=_means(results, [metric.key for metric in self.metrics]))])


class ScenePropagation:
    """Masks of the first frame propagated through synthetic scenes, as on DAVIS; J&F, also by number of frames."""

    name = "propagation"
    title = "Synthetic scenes: masks of the first frame propagated by the features alone"
    published = ()
    deviations = ()

    def __init__(self, encoder: Encoder, config: SceneConfig, *, scenes: int) -> None:
        """Raises `ValueError` if scenes are too short to count."""
        if config.num_frames < _LEAST_FRAMES:
            raise ValueError(f"expected {_LEAST_FRAMES} frames or more, got {config.num_frames}")
        self.image_size = (config.height, config.width)
        self.lengths = curve_lengths(config.num_frames)
        self.metrics = (
            Metric(key="jf", title="J&F", description="of propagated masks, as on DAVIS, in %"),
            *(Metric(key=f"jf_{n}", title=f"J&F {n}") for n in self.lengths),
        )
        self._encoder, self._config, self._scenes = encoder, config, scenes
        self._tracking = TrackingConfig()

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Benchmark`."""
        return {**vars(self._config), **vars(self._tracking)}

    def videos(self) -> Sequence[str]:
        """See `Benchmark`."""
        return [f"scene_{seed}" for seed in range(FIRST_SEED, FIRST_SEED + self._scenes)]

    def files(self, video: str) -> Sequence[Path]:
        """See `Benchmark`."""
        return []

    def evaluate(self, video: str, *, pictures: bool, advance: Advance) -> VideoResult:
        """Scores: j and f, each a list of frames for each object, as of davis2017."""
        scene = generate_scene(self._config, _seed(video))
        first = scene.labels[0]
        objects = [int(number) for number in np.unique(first) if number]
        if not objects:
            raise DatasetError(f"{video} shows no object in its first frame")
        labels, values = mask_to_labels(first, processing_size=self.image_size, grid=_grid(self.image_size))
        features = self._encoder.encode(iter(scene.video), self.image_size)
        scores = []
        for index, soft in enumerate(propagate_stream(features, labels, self._tracking)):
            found = labels_to_mask(soft, values, processing_size=self.image_size, size=first.shape)
            if 0 < index < len(scene.video) - 1:
                scores.append(frame_scores(scene.labels[index], found, objects))
            advance((index + 1) / len(scene.video))
        j, f = np.array(scores).transpose(1, 2, 0)
        kept = {"j": j.tolist(), "f": f.tolist()}
        return VideoResult(scores=kept, summary={"jf": j_and_f({video: kept}, self._config.num_frames)})

    def aggregate(self, results: Mapping[str, Scores]) -> Aggregate:
        """Means over objects, of all frames and by number of frames."""
        values: dict[str, float | None] = {"jf": j_and_f(results, self._config.num_frames)}
        curve = stability_curve(results, self.lengths)
        return Aggregate(
            rows=[Row(name="", values=values | {f"jf_{int(n)}": value for n, value in curve.lines["J&F"]})],
            curves=[curve],
        )


def curve_lengths(frames: int) -> list[int]:
    """The numbers of frames at which stability is told."""
    return list(range(_STEP, frames + 1, _STEP)) or [frames]


def stability_curve(results: Mapping[str, Scores], lengths: Sequence[int]) -> Curve:
    """J&F of the first so many frames, of the videos that have as many as the greatest number."""
    long = {video: scores for video, scores in results.items() if len(scores["j"][0]) + 2 >= lengths[-1]}
    points = [(float(n), j_and_f(long, n)) for n in lengths] if long else []
    return Curve(title="Stability", x_title="frames", y_title="J&F", lines={"J&F": points})


class VideoStrips:
    """What the features of the user's videos look like: PCA colours and k-means clusters of some frames."""

    name = "videos"
    title = "The given videos: PCA and k-means of the features"
    metrics = (
        Metric(
            key="changes",
            title="cluster changes",
            description="cells that change their k-means cluster from one frame to the next, in %; moving things and "
            "flicker alike",
        ),
        Metric(
            key="similarity",
            title="similarity",
            scale=1,
            form=".3f",
            description="cosine of the features of a cell in one frame and the next, mean",
        ),
    )
    published = ()
    deviations = ()

    def __init__(
        self, encoder: Encoder, files: Mapping[str, Path], *, size: tuple[int, int], frames: int, stride: int
    ) -> None:
        self.image_size = size
        self._encoder, self._files, self._frames, self._stride = encoder, files, frames, stride

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Benchmark`."""
        return {"frames": self._frames, "stride": self._stride, "clusters": CLUSTERS, "policy": "center_crop"}

    def videos(self) -> Sequence[str]:
        """See `Benchmark`."""
        return list(self._files)

    def files(self, video: str) -> Sequence[Path]:
        """See `Benchmark`."""
        return [self._files[video]]

    def evaluate(self, video: str, *, pictures: bool, advance: Advance) -> VideoResult:
        """Scores: the metrics of the video, and which frames are shown."""
        shown: list[UInt8Array] = []
        features = self._features(video, shown, advance)
        count = len(features)
        if count < _LEAST_FRAMES:
            raise DatasetError(f"{video}: expected {_LEAST_FRAMES} frames or more, found {count}")
        cells = features.reshape(count, -1, features.shape[-1])
        number, place = sample_cells(count, np.arange(cells.shape[1]))
        assigned = fit_clusters(cells[number, place], min(CLUSTERS, len(number)))
        clusters = assigned.assign(features)
        units = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
        values = {
            "changes": float((clusters[1:] != clusters[:-1]).mean()),
            "similarity": float((units[1:] * units[:-1]).sum(axis=-1).mean()),
        }
        drawn = []
        if pictures:
            indices = shown_indices(count)
            colours = fit_pca(features)
            strips = {
                "input": [shown[index] for index in indices],
                "pca": [colours.color(features[index]) for index in indices],
                "kmeans": [assigned.color(features[index]) for index in indices],
            }
            drawn = [Picture(name=name, image=_strip(images)) for name, images in strips.items()]
        return VideoResult(scores=values | {"frames": count}, summary=values, pictures=drawn)

    def aggregate(self, results: Mapping[str, Scores]) -> Aggregate:
        """Means over videos."""
        return Aggregate(rows=[Row(name="", values=_means(results, [metric.key for metric in self.metrics]))])

    def _features(self, video: str, shown: list[UInt8Array], advance: Advance) -> Float32Array:
        """(T, h, w, D); `shown` gets the frames as the encoder sees them."""
        frames = self._frames_of(video, shown)
        kept = []
        for tokens in self._encoder.encode(frames, self.image_size, policy="center_crop"):
            kept.append(tokens[1:].float().cpu().numpy())
            advance(len(kept) / (self._frames + 1))
        if not kept:
            raise DatasetError(f"{video}: there are no frames in it")
        return np.stack(kept).reshape(len(kept), *_grid(self.image_size), -1)

    def _frames_of(self, video: str, shown: list[UInt8Array]) -> Iterator[UInt8Array]:
        from rvm_core.preprocess import Preprocess

        fit = Preprocess(height=self.image_size[0], width=self.image_size[1], policy="center_crop")
        found = read_video(self._files[video], size=max(self.image_size), stride=self._stride)
        try:
            for frame in islice(found, self._frames):
                shown.append(fit(frame))
                yield shown[-1]
        except VideoFileError as error:
            raise DatasetError(f"{video}: {error}") from error


def shown_indices(count: int) -> list[int]:
    """Which frames of a video the strips show."""
    return sorted({int(index) for index in np.linspace(0, count - 1, SHOWN).round()})


def _strip(images: Iterable[UInt8Array]) -> UInt8Array:
    """Images (H, W, 3) beside each other; cells stay squares."""
    resized = []
    for image in images:
        width = max(1, round(image.shape[1] * STRIP_HEIGHT / image.shape[0]))
        way = cv2.INTER_AREA if image.shape[0] > STRIP_HEIGHT else cv2.INTER_NEAREST
        resized.append(np.asarray(cv2.resize(image, (width, STRIP_HEIGHT), interpolation=way), np.uint8))
    return side_by_side(resized, gap=2)


def find_user_videos(places: Sequence[Path], limit: int | None = None) -> dict[str, Path]:
    """Videos by the names that the report calls them: files as given, and all below folders.

    Raises `ValueError` for what is neither, and for a folder without any.
    """
    files: list[Path] = []
    for place in places:
        if place.is_dir():
            files += find_videos(place).videos
        elif place.is_file() and place.suffix.lower() in SUFFIXES:
            files.append(place)
        elif place.is_file():
            raise ValueError(f"{place} is no video: expected one of {', '.join(sorted(SUFFIXES))}, or a folder of them")
        else:
            raise ValueError(f"there is nothing at {place}; --data takes videos and folders of videos")
    files = list(dict.fromkeys(path.resolve() for path in files))[:limit]
    names = [path.name for path in files]
    return {path.name if names.count(path.name) == 1 else path.as_posix(): path for path in files}


def _seed(video: str) -> int:
    return int(video.rpartition("_")[2])


def _grid(image_size: tuple[int, int]) -> tuple[int, int]:
    return image_size[0] // PATCH_SIZE, image_size[1] // PATCH_SIZE


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _means(results: Mapping[str, Scores], keys: Sequence[str]) -> dict[str, float | None]:
    """Over the videos in which a figure is known."""
    known = {key: [scores[key] for scores in results.values() if scores[key] is not None] for key in keys}
    return {key: float(np.mean(values)) if values else None for key, values in known.items()}
