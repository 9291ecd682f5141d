"""Where the clips of a training come from, by the name that --data gives. Light: what a source needs comes late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rvm_training.evaluation.benchmark import DatasetError

if TYPE_CHECKING:
    from rvm_training.readouts.clips import ClipSource, Task


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """What clips are wanted."""

    task: Task
    path: Path | None
    """Of the dataset; None for synthetic clips."""
    split: str | None
    """Of the dataset; None: the one for training, or for held-out clips the one for validation if there is one."""
    held_out: bool
    """Whether these are the held-out clips."""
    count: int | None
    """How many clips; None: one of each video, or of synthetic clips `DEFAULT_COUNT`."""
    image_size: tuple[int, int]
    """(height, width)."""
    frames: int
    """Of a clip."""
    stride: int
    """Every how many-th frame of a video is taken."""
    points: int
    """Tracked points of a clip, at most."""
    objects: int
    """Of a synthetic scene; of a dataset followed boxes of a clip, at most."""
    seed: int
    """Which clips of a video, and which points."""
    set_aside: bool = False
    """Whether training and held-out clips are of the same split, of which a part of the videos is held out."""

    @property
    def folder(self) -> Path:
        """`path`. Raises `ValueError` if there is none."""
        if self.path is None:
            raise ValueError("expected the path of a dataset")
        return self.path


@dataclass(frozen=True)
class SourceEntry:
    """A name that --data takes."""

    name: str
    tasks: tuple[Task, ...]
    open: Callable[[SourceRequest], ClipSource]
    needs_path: bool
    help: str
    splits: tuple[str | None, str | None] = (None, None)
    """For training and held-out clips; None: there are no splits, and a part of the videos is held out."""


DEFAULT_COUNT = 1000
"""Synthetic clips."""
DEFAULT_HELD_OUT = 64


def parse_data(text: str) -> tuple[str, Path | None]:
    """NAME or NAME:PATH. Raises `ValueError` for an unknown name, and for a path that is missing or not wanted."""
    name, colon, path = text.partition(":")
    entry = ENTRIES.get(name)
    if entry is None:
        raise ValueError(f"unknown data {name!r}; known: {', '.join(ENTRIES)}")
    if entry.needs_path != bool(path):
        wanted = f"{name}:PATH, the {entry.help}" if entry.needs_path else name
        raise ValueError(f"expected --data {wanted}; got {text!r}")
    return name, Path(path).expanduser() if colon else None


def open_source(name: str, request: SourceRequest) -> ClipSource:
    """Raises `ValueError` for a task that these clips have no truth for, and what opening them raises."""
    entry = ENTRIES[name]
    if request.task not in entry.tasks:
        able = [other.name for other in ENTRIES.values() if request.task in other.tasks]
        raise ValueError(f"{name} has no truth for {request.task}; these have: {', '.join(able)}")
    source = entry.open(request)
    if not len(source):
        raise DatasetError(f"{source.name} has no clip")
    return source


def _synthetic(request: SourceRequest) -> ClipSource:
    from rvm_training.data.scenes import SceneConfig
    from rvm_training.readouts.motion_clips import MotionClips
    from rvm_training.readouts.scene_clips import HELD_OUT_SEED, TRAINING_SEED, SceneClips

    height, width = request.image_size
    count = request.count or DEFAULT_COUNT
    first_seed = (HELD_OUT_SEED if request.held_out else TRAINING_SEED) + request.seed * 10_000_000
    if request.task == "class":
        return MotionClips(height=height, width=width, frames=request.frames, count=count, first_seed=first_seed)
    config = SceneConfig(
        height=height,
        width=width,
        num_frames=request.frames,
        num_points=request.points,
        num_objects=request.objects,
    )
    return SceneClips(config=config, count=count, first_seed=first_seed)


def _mujoco(request: SourceRequest) -> ClipSource:
    from rvm_training.data.mujoco_scenes_config import MujocoSceneConfig
    from rvm_training.readouts.mujoco_clips import MujocoClips
    from rvm_training.readouts.scene_clips import HELD_OUT_SEED, TRAINING_SEED

    height, width = request.image_size
    config = MujocoSceneConfig(height=height, width=width, num_frames=request.frames, num_points=request.points)
    first_seed = (HELD_OUT_SEED if request.held_out else TRAINING_SEED) + request.seed * 10_000_000
    count = request.count or DEFAULT_COUNT
    return MujocoClips(config=config, task=request.task, count=count, first_seed=first_seed)


def _dataset(name: str) -> Callable[[SourceRequest], ClipSource]:
    def open_clips(request: SourceRequest) -> ClipSource:
        from rvm_training.readouts import dataset_clips

        source: ClipSource = getattr(dataset_clips, name)(request=request)
        return source

    return open_clips


def _entries(*entries: SourceEntry) -> dict[str, SourceEntry]:
    return {entry.name: entry for entry in entries}


ENTRIES: dict[str, SourceEntry] = _entries(
    SourceEntry("synthetic", ("points", "boxes", "class"), _synthetic, False, "flat shapes that move over each other"),
    SourceEntry("mujoco", ("points", "boxes", "depth", "pose"), _mujoco, False, "simulated rooms with things in them"),
    SourceEntry(
        "movi", ("points", "boxes", "depth", "pose"), _dataset("MoviClips"), True,
        "folder of MOVi-E by TensorFlow Datasets", ("train", "validation"),
    ),
    SourceEntry("tapvid", ("points",), _dataset("TapVidClips"), True, "folder of `rvm convert-data tapvid`"),
    SourceEntry("waymo", ("boxes",), _dataset("BoxClips"), True, "folder of `rvm convert-data waymo`"),
    SourceEntry("boxes", ("boxes",), _dataset("BoxClips"), True, "folder with SEQUENCE/boxes.json"),
    SourceEntry("scannet", ("depth",), _dataset("ScanNetClips"), True, "folder of ScanNet", ("train", "val")),
    SourceEntry(
        "ssv2", ("class",), _dataset("VideoClassClips"), True, "folder of Something-Something v2",
        ("train", "validation"),
    ),
    SourceEntry("kinetics", ("class",), _dataset("VideoClassClips"), True, "folder of Kinetics", ("train", "val")),
    SourceEntry(
        "realestate", ("pose",), _dataset("RealEstateClips"), True, "folder of RealEstate10K", ("train", "test")
    ),
)  # fmt: skip
"""By name."""
