"""What a folder of shards is to be made of: which videos or scenes go into which shard, and how they are cut.

Which videos share a shard is decided by the sizes of their files before anything is decoded. So a shard is a piece of
work of its own, which one process makes whole, and its bytes depend neither on the other shards nor on their number.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rvm_training.data.layouts import find_videos

Kind = Literal["videos", "scenes", "mujoco"]

_SCENES_PER_SHARD = 64
_MAX_VIDEOS_PER_SHARD = 512


@dataclass(frozen=True, kw_only=True)
class CutConfig:
    """How clips are cut. Raises `ValueError` for values that make no clip."""

    size: int = 256
    """Length of the frames' shorter side, pixels; smaller videos keep their size."""
    clip_frames: int = 64
    """Frames of a clip; the clips of a video do not overlap."""
    min_frames: int = 52
    """What is left at a video's end, or a whole video, is a clip too if it has so many frames."""
    stride: int = 1
    """Every so many-th frame of a video is taken."""
    quality: int = 90
    """Of the JPEG images, 1 to 100."""
    shard_mb: float = 256.0
    """Files of so many megabytes together make a shard."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("size", 16, 4096),
            ("clip_frames", 1, 100_000),
            ("min_frames", 1, self.clip_frames),
            ("stride", 1, 10_000),
            ("quality", 1, 100),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"expected {name} of {low} to {high}, got {getattr(self, name)}")
        if not 0 < self.shard_mb < float("inf"):
            raise ValueError(f"expected shard_mb over 0, got {self.shard_mb}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a folder of shards is made of."""

    kind: Kind
    config: CutConfig
    root: Path
    """Folder that the names of videos are relative to."""
    shards: tuple[tuple[str, ...], ...]
    """For each shard, names of videos or seeds of scenes: its items."""
    sizes: tuple[tuple[int, ...], ...] = ()
    """For each shard, bytes of its videos; another file under the same name would be noticed."""

    @property
    def items(self) -> int:
        """Number of videos or scenes."""
        return sum(map(len, self.shards))

    def to_dict(self) -> dict[str, Any]:
        """What decides on the bytes of the shards, for JSON."""
        shards = [list(items) for items in self.shards]
        job = {"kind": self.kind, "config": dataclasses.asdict(self.config), "shards": shards}
        return job | {"sizes": [list(sizes) for sizes in self.sizes]} if self.sizes else job


def plan_videos(places: Sequence[Path], config: CutConfig) -> Job:
    """A job for video files and for all videos to train on in folders, in the order of their names.

    Raises `ValueError` for a place without videos.
    """
    videos: set[Path] = set()
    for place in places:
        videos |= {place.resolve()} if place.is_file() else {path.resolve() for path in find_videos(place).videos}
    root = Path(os.path.commonpath([path.parent for path in videos]))
    shards: list[list[str]] = []
    sizes: list[list[int]] = []
    room = 0.0
    for path in sorted(videos):
        size = path.stat().st_size
        if not shards or room < size or len(shards[-1]) == _MAX_VIDEOS_PER_SHARD:
            shards.append([])
            sizes.append([])
            room = config.shard_mb * 1e6
        shards[-1].append(path.relative_to(root).as_posix())
        sizes[-1].append(size)
        room -= size
    return Job(
        kind="videos", config=config, root=root, shards=tuple(map(tuple, shards)), sizes=tuple(map(tuple, sizes))
    )


def plan_scenes(kind: Literal["scenes", "mujoco"], count: int, first_seed: int, config: CutConfig) -> Job:
    """A job for `count` synthetic scenes, one clip each, of the seeds from `first_seed` on."""
    if count < 1 or first_seed < 0:
        raise ValueError(f"expected one scene or more, and a seed of 0 or more; got {count} and {first_seed}")
    seeds = [str(seed) for seed in range(first_seed, first_seed + count)]
    shards = tuple(tuple(seeds[i : i + _SCENES_PER_SHARD]) for i in range(0, count, _SCENES_PER_SHARD))
    return Job(kind=kind, config=config, root=Path(), shards=shards)
