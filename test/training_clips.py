"""Small videos and folders of shards for the tests of pretraining's data, whose frames tell their number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from rvm_training.data.jpeg import encode_jpeg
from rvm_training.data.shards import INDEX_DTYPE, JOB, ShardWriter, shard_name, write_json, write_list

UInt8Array = npt.NDArray[np.uint8]

LEVEL_TOLERANCE = 1.4
"""Grey levels by which codecs change the flat frames of these clips."""


def level_of(frame: int) -> int:
    """The grey level that stands for the number of a frame, up to 78."""
    return 20 + 3 * frame


def frame_of(image: npt.NDArray[np.uint8]) -> int:
    """The number of a frame, from its grey level."""
    level = float(image.mean())
    number = round((level - 20) / 3)
    assert abs(level - level_of(number)) < LEVEL_TOLERANCE, level
    return number


def write_numbered_video(path: Path, frames: int, *, height: int = 48, width: int = 64) -> Path:
    """A video of flat grey frames, with a key frame every eighth frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=25, options={"crf": "10", "preset": "veryfast", "g": "8"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(frames):
            image = np.full((height, width, 3), level_of(number), np.uint8)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        film.mux(stream.encode())
    return path


def write_shards(folder: Path, clips: Sequence[Sequence[UInt8Array]], *, per_shard: int = 4) -> Path:
    """A complete folder of shards of these clips, each a list of frames (H, W, 3)."""
    folder.mkdir(parents=True)
    write_json(folder / JOB, {})
    shards = []
    for number, begin in enumerate(range(0, len(clips), per_shard)):
        name = shard_name(number)
        with open(folder / f"{name}.tar", "wb") as file:
            writer = ShardWriter(file)
            for clip in clips[begin : begin + per_shard]:
                writer.add({"made": "by a test"}, [encode_jpeg(frame, 95) for frame in clip])
            index = writer.close()
        assert index.dtype == INDEX_DTYPE
        np.save(folder / f"{name}.npy", index, allow_pickle=False)
        shards.append({"name": name, "clips": writer.clips})
    write_list(folder, shards)
    return folder


def numbered_clips(count: int, *, frames: int = 64, size: int = 32) -> list[list[UInt8Array]]:
    """Clips whose frames tell the number of the frame in red and that of the clip in green."""
    clips = []
    for clip in range(count):
        images = np.full((frames, size, size, 3), 128, np.uint8)
        images[..., 0] = np.array([level_of(frame) for frame in range(frames)])[:, None, None]
        images[..., 1] = level_of(clip)
        clips.append(list(images))
    return clips
