"""Clips of real and rendered datasets, by the loaders that the benchmarks use.

Clip i of a source is of video i modulo the number of videos, in an order that depends on the seed, and begins at a
random frame that depends on the seed and i; held-out clips begin in the middle. V videos, T frames of a clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rvm_core.preprocess import Preprocess, ResizePolicy
from rvm_training.datasets.boxes import BoxFolder
from rvm_training.datasets.clips import count_frames, read_video_frames
from rvm_training.datasets.images import read_depth, read_image
from rvm_training.datasets.movi import MoviFolder
from rvm_training.datasets.realestate import RealEstateFolder, relative_pose
from rvm_training.datasets.scannet import ScanNetFolder
from rvm_training.datasets.tapvid import TapVidFolder
from rvm_training.datasets.video_classes import open_classes
from rvm_training.evaluation.benchmark import DatasetError
from rvm_training.evaluators.box_tracking import RATE, SIZE, SMALLEST, make_task, middle
from rvm_training.evaluators.depth_readout import MILLIMETRES, fit_depth
from rvm_training.readouts.clips import Clip, Truth, UInt8Array
from rvm_training.readouts.movi_tracks import point_tracks
from rvm_training.readouts.scene_clips import BORDER, MOST
from rvm_training.readouts.sources import SourceRequest

HELD_OUT_PART = 10
"""Where training and held-out clips are of one split, every so many-th video is held out."""


@dataclass(frozen=True, kw_only=True)
class DatasetClips:
    """What the sources of datasets share: which video and which frames a clip is of. `clip` is theirs."""

    request: SourceRequest

    @property
    def name(self) -> str:
        """See `ClipSource.name`."""
        return f"{self.request.path}" + (f" ({self.request.split})" if self.request.split else "")

    @property
    def identity(self) -> Mapping[str, Any]:
        """See `ClipSource.identity`."""
        request = self.request
        return {
            "source": type(self).__name__,
            "path": str(request.folder.resolve()),
            "videos": [str(video) for video in self.videos],
            "task": request.task,
            "held_out": request.held_out,
            **{name: getattr(request, name) for name in ("frames", "stride", "points", "objects", "seed", "split")},
            "image_size": list(request.image_size),
        }

    @property
    def all_videos(self) -> Sequence[Any]:
        """Of the split, in order."""
        raise DatasetError("a source without videos")

    @cached_property
    def videos(self) -> list[Any]:
        """Those of this source, in its own order."""
        videos = list(self.all_videos)
        if self.request.set_aside:
            held = videos[::HELD_OUT_PART]
            kept = held if self.request.held_out else [video for n, video in enumerate(videos) if n % HELD_OUT_PART]
            if not kept:
                raise DatasetError(
                    f"{self.name} has {len(videos)} videos, too few to hold one out; use --held-out-data"
                )
            videos = kept
        order = np.random.default_rng([self.request.seed, 0xDA7A]).permutation(len(videos))
        return [videos[index] for index in order]

    def __len__(self) -> int:
        count = self.request.count or len(self.videos)
        return min(count, len(self.videos)) if self.request.held_out else count

    def draw(self, index: int) -> tuple[Any, np.random.Generator]:
        """The video of a clip, and what its random choices come from."""
        rng = np.random.default_rng([self.request.seed, int(self.request.held_out), index])
        return self.videos[index % len(self.videos)], rng

    def frames_of(self, total: int, rng: np.random.Generator) -> list[int]:
        """Frames of a clip in a video of so many. Raises `DatasetError` if it is too short."""
        request = self.request
        needed = (request.frames - 1) * request.stride + 1
        if total < needed:
            raise DatasetError(f"expected a video of {needed} frames or more, got {total}")
        last = total - needed
        start = last // 2 if request.held_out else int(rng.integers(last + 1))
        return list(range(start, start + needed, request.stride))

    def fit(self, frames: Sequence[UInt8Array] | UInt8Array, policy: ResizePolicy) -> UInt8Array:
        """Frames (T, H, W, 3) of the size that the encoder takes."""
        height, width = self.request.image_size
        preprocess = Preprocess(height=height, width=width, policy=policy)
        return np.stack([preprocess(frame) for frame in frames])


class MoviClips(DatasetClips):
    """MOVi-E for points, boxes, depth and poses."""

    @cached_property
    def _folder(self) -> MoviFolder:
        return MoviFolder(self.request.folder, self.request.split or "train")

    @property
    def all_videos(self) -> Sequence[int]:
        """Numbers of the videos."""
        return range(len(self._folder))

    def clip(self, index: int) -> Clip:
        """See `ClipSource.clip`."""
        number, rng = self.draw(index)
        video = self._folder.read(number)
        chosen = self.frames_of(len(video.video), rng)
        video = replace(
            video,
            **{
                name: getattr(video, name)[chosen]
                for name in ("video", "labels", "depth", "boxes", "object_to_world", "world_to_camera")
            },
        )
        truth: Truth
        if self.request.task == "depth":
            size = self.request.image_size
            truth = {"depth.metres": np.stack([fit_depth(depth, size, size) for depth in video.depth])}
            return Clip(video=self.fit(video.video, "center_crop"), truth=_float32(truth))
        if self.request.task == "pose":
            truth = _pose(video.world_to_camera[0], video.world_to_camera[-1])
            return Clip(video=self.fit(video.video, "center_crop"), truth=truth)
        positions, visible = point_tracks(video, self.request.points, rng)
        truth = _point_truth(positions, visible, self.request.points, rng)
        truth |= _box_truth(video.boxes.astype(np.float64), self.request.objects)
        return Clip(video=self.fit(video.video, "stretch"), truth=truth)


class TapVidClips(DatasetClips):
    """Points of a folder that `rvm convert-data tapvid` wrote."""

    @cached_property
    def _folder(self) -> TapVidFolder:
        return TapVidFolder(self.request.folder)

    @property
    def all_videos(self) -> Sequence[str]:
        """Ids."""
        return self._folder.ids

    def clip(self, index: int) -> Clip:
        """See `ClipSource.clip`."""
        id, rng = self.draw(index)
        video = self._folder.read(id)
        chosen = self.frames_of(len(video.frames), rng)
        frames = [read_image(video.frames[t]) for t in chosen]
        truth = _point_truth(video.points[chosen], ~video.occluded[chosen], self.request.points, rng)
        return Clip(video=self.fit(frames, "stretch"), truth=truth)


class BoxClips(DatasetClips):
    """Boxes of a folder that `rvm convert-data` made of Waymo Open or MOT, by the rules of `rvm eval boxes`."""

    @cached_property
    def _folder(self) -> BoxFolder:
        folder = self.request.folder
        return BoxFolder(folder / self.request.split if self.request.split else folder)

    @property
    def all_videos(self) -> Sequence[str]:
        """Ids."""
        return self._folder.ids

    def clip(self, index: int) -> Clip:
        """See `ClipSource.clip`."""
        id, rng = self.draw(index)
        video = self._folder.read(id)
        step = video.rate / RATE
        last = int(len(video.frames) - 1 - (self.request.frames - 1) * step)
        if last < 0:
            raise DatasetError(
                f"expected {self.request.frames} frames at {RATE:g} a second, in a video of {len(video.frames)}"
            )
        start = last // 2 if self.request.held_out else int(rng.integers(last + 1))
        task = make_task(replace(video, frames=video.frames[start:], boxes=video.boxes[start:]), self.request.frames)
        boxes = task.boxes / ([SIZE[1], SIZE[0]] * 2)
        frames = [middle(read_image(path)) for path in task.frames]
        return Clip(video=self.fit(frames, "stretch"), truth=_box_truth(boxes, self.request.objects))


class ScanNetClips(DatasetClips):
    """Depth of ScanNet."""

    @cached_property
    def _folder(self) -> ScanNetFolder:
        listed = self.request.folder / f"scannetv2_{self.request.split or 'train'}.txt"
        return ScanNetFolder(self.request.folder, listed if listed.is_file() else None)

    @property
    def all_videos(self) -> Sequence[str]:
        """Ids of scenes."""
        return self._folder.ids

    def clip(self, index: int) -> Clip:
        """See `ClipSource.clip`."""
        id, rng = self.draw(index)
        video = self._folder.read(id)
        chosen = self.frames_of(len(video.color), rng)
        size = self.request.image_size
        depth = [fit_depth(read_depth(video.depth[t]), size, size) / MILLIMETRES for t in chosen]
        frames = [read_image(video.color[t]) for t in chosen]
        return Clip(video=self.fit(frames, "center_crop"), truth=_float32({"depth.metres": np.stack(depth)}))


@dataclass(frozen=True, kw_only=True)
class VideoClassClips(DatasetClips):
    """Classes of Something-Something v2 and Kinetics."""

    @cached_property
    def _dataset(self) -> Any:
        return open_classes(self.request.folder, split=self.request.split)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by number."""
        names: tuple[str, ...] = self._dataset.classes
        return names

    @property
    def all_videos(self) -> Sequence[str]:
        """Ids."""
        return list(self._dataset.videos)

    def clip(self, index: int) -> Clip:
        """See `ClipSource.clip`. The last frame of a video that is too short is repeated, as in the evaluation."""
        id, rng = self.draw(index)
        path: Path = self._dataset.videos[id]
        total = count_frames(path)
        request = self.request
        last = max(0, total - ((request.frames - 1) * request.stride + 1))
        start = last // 2 if request.held_out else int(rng.integers(last + 1))
        chosen = np.minimum(start + np.arange(request.frames) * request.stride, total - 1).tolist()
        frames = dict(read_video_frames(path, chosen))
        video = self.fit([frames[t] for t in chosen], "center_crop")
        return Clip(video=video, truth={"class.label": np.array(self._dataset.labels[id], np.int64)})


class RealEstateClips(DatasetClips):
    """Poses of RealEstate10K."""

    @cached_property
    def _folder(self) -> RealEstateFolder:
        return RealEstateFolder(self.request.folder, split=self.request.split or "train")

    @property
    def all_videos(self) -> Sequence[str]:
        """Ids."""
        return self._folder.ids

    def clip(self, index: int) -> Clip:
        """See `ClipSource.clip`."""
        id, rng = self.draw(index)
        video = self._folder.read(id)
        chosen = self.frames_of(len(video.frames), rng)
        frames = [read_image(video.frames[t]) for t in chosen]
        truth = _pose(video.cameras[chosen[0]], video.cameras[chosen[-1]])
        return Clip(video=self.fit(frames, "center_crop"), truth=truth)


# Truth


def _point_truth(
    positions: npt.NDArray[np.float64], visible: npt.NDArray[np.bool_], count: int, rng: np.random.Generator
) -> Truth:
    """Of `count` points of those that are seen in two frames or more, drawn at random; fewer are padded."""
    useful = np.flatnonzero(visible.sum(axis=0) >= 2)
    if not len(useful):
        raise DatasetError("no point is seen in two frames of this clip")
    chosen = rng.permutation(useful)[:count]
    inner = np.all((positions > BORDER) & (positions < 1 - BORDER), axis=-1)
    return {
        "points.positions": _padded(np.nan_to_num(positions[:, chosen]).astype(np.float32), count),
        "points.visible": _padded(visible[:, chosen], count),
        "points.valid": _padded(np.ones((len(visible), len(chosen)), bool), count),
        "points.startable": _padded((visible & inner)[:, chosen], count),
    }


def _box_truth(boxes: npt.NDArray[np.float64], count: int) -> Truth:
    """Of boxes (T, B, 4) in shares, NaN where nothing is seen: the first `count`; fewer are padded."""
    boxes = boxes[:, :count]
    visible = np.asarray(np.isfinite(boxes).all(axis=-1), bool)
    boxes = np.where(visible[..., None], boxes, 0)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)
    # Where much of it is hidden, a box is small for the object.
    large = areas >= MOST * areas.max(axis=0, initial=0, keepdims=True)
    return {
        "boxes.positions": _padded(boxes.astype(np.float32), count),
        "boxes.visible": _padded(visible, count),
        "boxes.valid": _padded(np.ones_like(visible), count),
        "boxes.startable": _padded(visible & (areas > SMALLEST) & large, count),
    }


def _padded(values: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """(T, Q, ...) to (T, count, ...) with zeros."""
    return np.pad(values, [(0, 0), (0, count - values.shape[1])] + [(0, 0)] * (values.ndim - 2))


def _pose(first: npt.NDArray[np.float64], last: npt.NDArray[np.float64]) -> Truth:
    rotation, translation = relative_pose(first, last)
    return _float32({"pose.rotation": rotation, "pose.translation": translation})


def _float32(truth: Truth) -> Truth:
    return {name: np.asarray(values, np.float32) for name, values in truth.items()}
