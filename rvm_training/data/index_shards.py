"""Makes the index of WebDataset shards of JPEG frames that others wrote, so that single frames of them can be read.

A clip is what has the same name up to the first point; its frames are its members that end in .jpg or .jpeg, in the
order of the rest of their names: 000012.000.jpg, 000012.001.jpg, ...
"""

from __future__ import annotations

import re
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rvm_core.atomic import atomic_file
from rvm_training.data.shards import INDEX_DTYPE, LIST, ShardError, write_list

_SUFFIXES = (".jpg", ".jpeg")


def index_shards(folder: Path) -> tuple[int, int, int]:
    """Writes an index beside each tar file of a folder, and the list of all. Returns numbers of shards, clips, frames.

    Raises `ShardError` for a folder that has a list already, and for tar files that are none or hold no clips.
    """
    if (folder / LIST).exists():
        raise ShardError(f"{folder} has a {LIST} already")
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise ShardError(f"looked for shards, *.tar, in {folder}: there is none")
    shards: list[dict[str, Any]] = []
    frames = clips = 0
    for path in paths:
        index = _index(path)
        with atomic_file(path.with_suffix(".npy")) as part, open(part, "wb") as file:
            np.save(file, index, allow_pickle=False)
        shards.append({"name": path.stem, "clips": int(index["clip"][-1]) + 1})
        frames, clips = frames + len(index), clips + shards[-1]["clips"]
    write_list(folder, shards)
    return len(shards), clips, frames


def _index(path: Path) -> npt.NDArray[Any]:
    clips: dict[str, list[tuple[tuple[Any, ...], int, int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile() or not member.name.lower().endswith(_SUFFIXES):
                    continue
                stem, _, rest = Path(member.name).name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                row = (_natural(rest), member.offset_data, member.size, zlib.crc32(file.read()))
                clips.setdefault(str(Path(member.name).parent / stem), []).append(row)
    except (tarfile.TarError, OSError) as error:
        raise ShardError(f"{path} cannot be read as a tar file: {error}") from error
    if not clips:
        raise ShardError(f"{path} holds no JPEG frames (*.jpg, *.jpeg)")
    rows = [(number, *row[1:]) for number, clip in enumerate(clips.values()) for row in sorted(clip)]
    return np.array(rows, INDEX_DTYPE)


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """For sorting: 2.jpg comes before 10.jpg."""
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part)
