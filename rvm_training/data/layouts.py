"""Which videos of a folder are there to train on, in the layouts in which the datasets of the mixture are stored.

    HowTo100M                FOLDER/ANYTHING/ID.mp4, .webm or .mkv: all are there to train on
    Kinetics-700             FOLDER/train/CLASS/ID_000010_000020.mp4 or FOLDER/train/ID_000010_000020.mp4; val, test
    Something-Something v2   FOLDER/20bn-something-something-v2/ID.webm; FOLDER/labels/train.json says which
    YouTube-BB               FOLDER/yt_bb_detection_train/CLASS/ID.mp4; yt_bb_detection_validation
    YouTube-8M               FOLDER/train/ID.mp4; validate, test

So two rules do for all: what is in a folder for evaluation is left out, and so is what the list of a folder of
Something-Something does not name.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rvm_training.data.video_files import SUFFIXES

_HELD_OUT = re.compile(r"(^|[_-])(val|valid|validate|validation|test)($|[_-])")
"""Names of folders with videos for evaluation, as Kinetics (val), YT-BB (yt_bb_detection_validation) have them."""

_LISTED_VIDEOS = ("20bn-something-something-v2", "videos")
_LIST_PREFIX = "something-something-v2-"


@dataclass(frozen=True)
class FoundVideos:
    """What a folder holds."""

    videos: tuple[Path, ...]
    """Files to train on, sorted by name."""
    held_out: int
    """Files for evaluation, which are left out."""


def find_videos(folder: Path) -> FoundVideos:
    """All videos below a folder, at any depth, but for those of an evaluation split.

    Raises `ValueError` if there is none, or the list of those to train on cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"looked for videos in {folder}: it is no folder")
    listed = _listed(folder)
    videos, held_out = [], 0
    for path in _files(folder):
        if path.suffix.lower() not in SUFFIXES:
            continue
        if path.parent.name in _LISTED_VIDEOS and listed is not None and path.stem not in listed:
            held_out += 1
        elif any(_HELD_OUT.search(part.lower()) for part in path.relative_to(folder).parts[:-1]):
            held_out += 1
        else:
            videos.append(path)
    if not videos:
        more = f"; {held_out} in folders for evaluation are not used" if held_out else ""
        raise ValueError(f"looked for videos ({', '.join(sorted(SUFFIXES))}) in {folder}: there is none{more}")
    return FoundVideos(tuple(sorted(videos)), held_out)


def _listed(folder: Path) -> set[str] | None:
    """Ids of the videos of Something-Something to train on; None where there is no list."""
    places = [folder / part / f"{prefix}train.json" for part in ("", "labels") for prefix in ("", _LIST_PREFIX)]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        return None
    try:
        return {str(entry["id"]) for entry in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f'{path}: expected a list of objects with an "id": {error}') from error


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))
