"""The recordings in a folder, and the names of their results."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rvm_perception.bag_reader import bag_files, storage_of
from rvm_perception.replay_summary import SUMMARY

_METADATA = "metadata.yaml"


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One recording of several."""

    name: str
    """Also the path of its results in the folder of all results; parts are separated by "/"."""
    path: Path


def is_folder_of_recordings(path: Path) -> bool:
    """Whether this is a folder that is no recording itself but has some in it, at any depth."""
    return path.is_dir() and not _is_bag(path) and next(_bags(path, (), set()), None) is not None


def find_recordings(folder: Path, *, leave_out: Path | None = None) -> list[Recording]:
    """All recordings below a folder, in the order of their names.

    A folder of rosbag2 is one, however many files it is split into; so is a file *.mcap or *.db3 by itself, also with
    .zstd. Hidden folders and the results of replays are passed over, and so is `leave_out`.
    Names mirror the folders. A file's suffix is left out, unless another recording needs the name without.
    """
    left_out = () if leave_out is None else (leave_out.resolve(),)
    found = {path: path.relative_to(folder) for path in _bags(folder, left_out, set())}
    short = {path: _without_suffix(path, name) for path, name in found.items()}
    taken = Counter(short.values())
    parents = {parent for name in short.values() for parent in name.parents}
    names = {path: found[path] if taken[name] > 1 or name in parents else name for path, name in short.items()}
    recordings = [Recording(name=name.as_posix(), path=path) for path, name in names.items()]
    return sorted(recordings, key=lambda recording: PurePosixPath(recording.name).parts)


def _bags(folder: Path, left_out: tuple[Path, ...], seen: set[Path]) -> Iterator[Path]:
    """Paths of the recordings below `folder`. `seen`: folders that were visited, so that links make no circles."""
    real = folder.resolve()
    if real in seen or real in left_out or (folder / SUMMARY).exists():
        return
    seen.add(real)
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if _is_bag(path):
                yield path
            else:
                yield from _bags(path, left_out, seen)
        elif storage_of(path):
            yield path


def _is_bag(folder: Path) -> bool:
    """Whether a folder is a recording of rosbag2, also one that was not recorded to its end and has no metadata.

    Its files are then still named after the folder.
    """
    if (folder / _METADATA).exists():
        return True
    files = bag_files(folder)
    pattern = re.compile(re.escape(folder.name) + r"_\d+\.")
    return bool(files) and all(pattern.match(file.name) for file in files)


def _without_suffix(path: Path, name: Path) -> Path:
    return name if path.is_dir() else name.with_name(name.name.removesuffix(".zstd")).with_suffix("")
