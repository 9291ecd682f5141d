"""Makes one shard of clips from videos or synthetic scenes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import numpy as np

from rvm_core.atomic import atomic_file
from rvm_training.data.jpeg import encode_jpeg
from rvm_training.data.shard_job import Job
from rvm_training.data.shards import ShardWriter, shard_name, write_json
from rvm_training.data.video_files import VideoFileError, read_video

Tick = Callable[[int, int], None]
"""Is told after every clip and video how many items of the shard are done and how many clips there are; may raise to
stop the work."""


class Skip(NamedTuple):
    """A video of which nothing, or not all, could be used."""

    video: str
    reason: str


class MadeShard(NamedTuple):
    """What a shard holds."""

    clips: int
    frames: int
    bytes: int
    skipped: tuple[Skip, ...]
    seconds: float = 0.0
    """Of processor time, to make it."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON. Without the time: the same clips make the same files."""
        counts = {"clips": self.clips, "frames": self.frames, "bytes": self.bytes}
        return {**counts, "skipped": [skip._asdict() for skip in self.skipped]}

    @staticmethod
    def from_dict(value: dict[str, Any]) -> MadeShard:
        """Raises `ValueError` for what `to_dict` did not make."""
        try:
            skipped = tuple(Skip(str(skip["video"]), str(skip["reason"])) for skip in value["skipped"])
            return MadeShard(int(value["clips"]), int(value["frames"]), int(value["bytes"]), skipped)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not what is known of a shard: {error}") from error


def make_shard(job: Job, out: Path, number: int, crashes: Collection[str], tick: Tick) -> MadeShard:
    """Makes one shard in the folder `out`; its JSON file comes last. `crashes`: videos not to be opened again."""
    begin = process_time()
    name = shard_name(number)
    skipped: list[Skip] = []
    frames = 0
    with atomic_file(out / f"{name}.tar") as part:
        with open(part, "wb") as file:
            writer = ShardWriter(file)
            for done, item in enumerate(job.shards[number], start=1):
                tick(done - 1, writer.clips)
                if item in crashes:
                    skipped.append(Skip(item, "the process that decoded it crashed, or was killed for its memory"))
                    continue
                for about, images in _clips(job, item, skipped):
                    writer.add(about, images)
                    frames += len(images)
                    tick(done - 1, writer.clips)
            index = writer.close()
        size = part.stat().st_size
    with atomic_file(out / f"{name}.npy") as part, open(part, "wb") as file:
        np.save(file, index, allow_pickle=False)
    made = MadeShard(writer.clips, frames, size, tuple(skipped), process_time() - begin)
    write_json(out / f"{name}.json", made.to_dict())
    tick(len(job.shards[number]), writer.clips)
    return made


def _clips(job: Job, item: str, skipped: list[Skip]) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
    """What to say of each clip, and its frames."""
    if job.kind == "videos":
        yield from _video_clips(job, item, skipped)
        return
    from rvm_training.data.scene_clips import scene_video

    video = scene_video(job.kind, int(item), size=job.config.size, num_frames=job.config.clip_frames)
    images = [encode_jpeg(frame, job.config.quality) for frame in video]
    yield {job.kind: int(item), "height": video.shape[1], "width": video.shape[2]}, images


def _video_clips(job: Job, name: str, skipped: list[Skip]) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
    config = job.config
    images: list[bytes] = []
    about: dict[str, Any] = {}
    total = clips = 0
    reason = ""
    try:
        for frame in read_video(job.root / name, size=config.size, stride=config.stride):
            if images and frame.shape[:2] != (about["height"], about["width"]):
                raise VideoFileError(f"the size of its pictures changes after {total * config.stride} frames")
            if not images:
                about = {"video": name, "frame": total * config.stride, "stride": config.stride}
                about |= {"height": frame.shape[0], "width": frame.shape[1]}
            images.append(encode_jpeg(frame, config.quality))
            total += 1
            if len(images) == config.clip_frames:
                yield about, images
                clips, images = clips + 1, []
    except VideoFileError as error:
        reason = str(error)
    if len(images) >= config.min_frames:
        yield about, images
        clips += 1
    if not clips and not reason:
        reason = f"too short: {total} frames, at least {config.min_frames} are needed"
    if reason:
        skipped.append(Skip(name, f"{reason}; {clips} of its clips are used" if clips else reason))
