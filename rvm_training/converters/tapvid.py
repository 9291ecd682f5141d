"""TAP-Vid's pickles (DAVIS, Kinetics, RoboTAP, RGB-stacking, Perception Test) to folders of images and arrays.

The pickles hold a dict by name or a list of videos, each a dict with

    video      uint8 (T, H, W, 3), or T JPEG files as byte strings
    points     float (P, T, 2): x and y as shares of the image
    occluded   bool (P, T)

and are read as data only (`plain_pickle`), a frame at a time. What is written is in `rvm_training.datasets.tapvid`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rvm_training.converters.output import Progress, new_folder, safe_name
from rvm_training.datasets.images import decode_image
from rvm_training.datasets.plain_pickle import LongBytes, PickledArray, read_pickle
from rvm_training.datasets.tapvid import FORMAT, NAMES, VERSION
from rvm_training.evaluation.benchmark import DatasetError

_NAME_IN_FILE = (
    (r"davis", "davis"),
    (r"_of_\d{4}|kinetics", "kinetics"),
    (r"robotap", "robotap"),
    (r"perception", "perception_test"),
    (r"rgb_?stacking", "rgb_stacking"),
)
_SHARD = re.compile(r"(\d{4})_of_(\d{4})")
_JPEG = b"\xff\xd8"
_OUTSIDE = 0.5
"""By how much of the image a visible point may lie outside of it; further out, points are no shares."""
_FAST_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]


def convert_tapvid(source: Path, out: Path, name: str | None, progress: Progress) -> int:
    """Writes the folder `out` and returns the number of videos.

    source: a pickle or a folder of them. name: one of `NAMES`; None: by the names of the files. Raises `DatasetError`
    for a source that is not or not all of a dataset, `PickleError` for a pickle with anything but plain data.
    """
    pickles = find_pickles(source)
    name = name or _guess_name(pickles[0])
    entries: list[dict[str, Any]] = []
    sources = []
    with new_folder(out) as folder:
        for path in pickles:
            videos = list(_videos(path))
            for index, (label, video) in enumerate(videos):
                progress(f"{path.name}: {label}", index, len(videos))
                id = safe_name(len(entries), label)
                try:
                    entries.append({"id": id, "name": label, **_write_video(_checked(video), folder / "videos" / id)})
                except DatasetError as error:
                    raise DatasetError(f"{path}: video {label!r}: {error}") from error
            progress(path.name, len(videos), len(videos))
            sources.append({"name": path.name, "size": path.stat().st_size, "sha256": _sha256(path)})
        manifest = {"format": FORMAT, "version": VERSION, "name": name, "sources": sources, "videos": entries}
        (folder / "dataset.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return len(entries)


def find_pickles(source: Path) -> list[Path]:
    """The pickles of a dataset, in order. Raises `DatasetError` if there are none, or not all of them."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DatasetError(f"looked for a pickle of TAP-Vid, or a folder of them, in {source}: it is not there")
    found = sorted(source.glob("*.pkl"))
    if not found:
        raise DatasetError(
            f"looked for tapvid_davis.pkl, 0000_of_0010.pkl, robotap_split0.pkl or other *.pkl in {source}: "
            "there is none"
        )
    kinds = {_guess_name(path) for path in found}
    if len(kinds) > 1:
        raise DatasetError(
            f"{source} holds pickles of several datasets ({', '.join(sorted(kinds))}); give one of the files"
        )
    shards = [match for path in found if (match := _SHARD.fullmatch(path.stem))]
    if shards:
        total = int(shards[0][2])
        missing = sorted(set(range(total)) - {int(match[1]) for match in shards})
        if missing:
            raise DatasetError(
                f"looked for {total} pickles, 0000_of_{total:04d}.pkl to {total - 1:04d}_of_{total:04d}.pkl, in "
                f"{source}: {len(missing)} are missing, the first is {missing[0]:04d}_of_{total:04d}.pkl"
            )
    return found


@dataclass(frozen=True)
class _Video:
    """A video of a pickle, checked but for its frames."""

    frames: int
    frame: Callable[[int], tuple[bytes, str]]
    """The file of a frame, and its suffix."""
    points: npt.NDArray[np.float32]
    """(P, T, 2)."""
    occluded: npt.NDArray[np.bool_]
    """(P, T)."""


def _guess_name(path: Path) -> str:
    known = (name for pattern, name in _NAME_IN_FILE if re.search(pattern, path.stem.lower()))
    name = next(known, "other")
    assert name in NAMES
    return name


def _videos(path: Path) -> Iterator[tuple[str, Any]]:
    data = read_pickle(path)
    if isinstance(data, dict):
        yield from ((str(key), video) for key, video in data.items())
    elif isinstance(data, (list, tuple)):
        yield from ((str(index), video) for index, video in enumerate(data))
    else:
        raise DatasetError(
            f"{path} is no pickle of TAP-Vid: expected a dict or a list of videos, got {_describe(data)}"
        )


def _checked(video: Any) -> _Video:
    needed = ("video", "points", "occluded")
    if not isinstance(video, dict) or not all(key in video for key in needed):
        raise DatasetError(f"expected a dict with {', '.join(needed)}, got {_describe(video)}")
    points, occluded = video["points"], video["occluded"]
    if not isinstance(points, PickledArray) or points.dtype.kind != "f" or len(points.shape) != 3:
        raise DatasetError(f"expected points float (P, T, 2), got {_describe(points)}")
    if not isinstance(occluded, PickledArray) or occluded.dtype.kind not in "bui" or points.shape[2] != 2:
        raise DatasetError(f"expected occluded bool (P, T) and points (P, T, 2), got {_describe(occluded)}")
    if occluded.shape != points.shape[:2]:
        raise DatasetError(f"points are {points.shape} but occluded is {occluded.shape}")
    frames, frame = _frames(video["video"])
    if not frames or frames != points.shape[1]:
        raise DatasetError(f"it has {frames} frames, but points of {points.shape[1]}")
    places, hidden = points.read().astype(np.float32), occluded.read().astype(bool)
    seen = places[~hidden]
    if not np.isfinite(seen).all() or np.any(seen < -_OUTSIDE) or np.any(seen > 1 + _OUTSIDE):
        raise DatasetError("visible points are far outside of the image: expected x and y as shares of it")
    # Where a point is hidden its place is not looked at.
    return _Video(frames, frame, np.nan_to_num(places, nan=0.0, posinf=0.0, neginf=0.0), hidden)


def _frames(video: Any) -> tuple[int, Callable[[int], tuple[bytes, str]]]:
    """How many there are, and a function that gives one."""
    if isinstance(video, PickledArray) and video.dtype == np.uint8 and len(video.shape) == 4 and video.shape[3] == 3:
        return len(video), lambda index: (_png(video.row(index)), ".png")
    if isinstance(video, PickledArray) and video.dtype.kind == "S" and len(video.shape) == 1:
        return len(video), lambda index: (_jpeg(video.byte_string(index), index), ".jpg")
    if isinstance(video, (list, tuple)) and video:
        if all(isinstance(frame, (bytes, LongBytes)) for frame in video):
            return len(video), lambda index: (_jpeg(_read(video[index]), index), ".jpg")
        if all(isinstance(f, PickledArray) and f.dtype == np.uint8 and f.shape[2:] == (3,) for f in video):
            return len(video), lambda index: (_png(video[index].read()), ".png")
    raise DatasetError(f"expected video uint8 (T, H, W, 3) or a list of JPEG files, got {_describe(video)}")


def _read(data: bytes | LongBytes) -> bytes:
    return data if isinstance(data, bytes) else data.read()


def _jpeg(data: bytes, index: int) -> bytes:
    if not data.startswith(_JPEG):
        raise DatasetError(f"frame {index} is no JPEG file")
    return data


def _png(rgb: npt.NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), _FAST_PNG)[1].tobytes()


def _write_video(video: _Video, folder: Path) -> dict[str, int]:
    """Writes a video and returns what the list says of it."""
    (folder / "frames").mkdir(parents=True)
    height = width = 0
    for index in range(video.frames):
        data, suffix = video.frame(index)
        if not index:
            height, width = decode_image(data, "frame 0").shape[:2]
        (folder / "frames" / f"{index:05d}{suffix}").write_bytes(data)
    np.savez(folder / "points.npz", points=video.points, occluded=video.occluded)
    return {"frames": video.frames, "height": height, "width": width, "points": len(video.points)}


def _describe(value: Any) -> str:
    if isinstance(value, PickledArray):
        return f"{value.dtype} {value.shape}"
    if isinstance(value, dict):
        return f"a dict with {', '.join(sorted(map(str, value))[:5]) or 'nothing'}"
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
