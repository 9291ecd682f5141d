"""MOTChallenge's layout to folders of boxes.

    SOURCE/SEQUENCE/seqinfo.ini        name, imDir, frameRate, seqLength, imWidth, imHeight, imExt
    SOURCE/SEQUENCE/img1/000001.jpg
    SOURCE/SEQUENCE/gt/gt.txt          frame, id, left, top, width, height, counts or not[, class, visibility]

Frames and pixels count from 1 there. Lines that do not count (0) are left out, and of those with a class all but
pedestrians (1), as the challenge does it. SOURCE may also be one sequence.
"""

from __future__ import annotations

import configparser
import csv
import math
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from rvm_training.converters.output import Progress, new_folder, safe_name
from rvm_training.converters.write_boxes import write_boxes
from rvm_training.datasets.images import require_file, require_folder
from rvm_training.evaluation.benchmark import DatasetError

PEDESTRIAN = 1


def convert_mot(source: Path, out: Path, progress: Progress) -> int:
    """Writes the folder `out` and returns the number of sequences. Raises `DatasetError` for what is no such layout."""
    require_folder(source, "sequences of MOT (SEQUENCE/seqinfo.ini)")
    found = [source] if (source / "seqinfo.ini").is_file() else sorted(p.parent for p in source.glob("*/seqinfo.ini"))
    if not found:
        raise DatasetError(f"looked for SEQUENCE/seqinfo.ini in {source}: there is none")
    with new_folder(out) as folder:
        for index, sequence in enumerate(found):
            progress(sequence.name, index, len(found))
            _convert(sequence, folder / safe_name(index, sequence.name))
        progress("", len(found), len(found))
    return len(found)


def _convert(sequence: Path, folder: Path) -> None:
    info = _info(sequence / "seqinfo.ini")
    images = sequence / info["imDir"]
    paths = [images / f"{number:06d}{info['imExt']}" for number in range(1, info["seqLength"] + 1)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DatasetError(
            f"looked for {len(paths)} frames in {images}: {len(missing)} are missing, the first is {missing[0].name}"
        )
    boxes = _boxes(require_file(sequence / "gt" / "gt.txt", "the true boxes of a sequence of MOT"), len(paths))
    (folder / "frames").mkdir(parents=True)
    frames = []
    for number, path in enumerate(paths, start=1):
        shutil.copyfile(path, folder / "frames" / path.name)
        frames.append({"image": f"frames/{path.name}", "boxes": boxes[number]})
    write_boxes(folder, rate=info["frameRate"], frames=frames)


def _info(path: Path) -> dict[str, Any]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
        section = parser["Sequence"]
        info: dict[str, Any] = {
            "imDir": section.get("imDir", "img1"),
            "imExt": section.get("imExt", ".jpg"),
            "frameRate": float(section["frameRate"]),
            "seqLength": int(section["seqLength"]),
        }
    except (configparser.Error, KeyError, ValueError) as error:
        raise DatasetError(
            f"{path}: expected [Sequence] with frameRate and seqLength: {' '.join(str(error).split())}"
        ) from error
    if not (math.isfinite(info["frameRate"]) and info["frameRate"] > 0 and 0 < info["seqLength"] <= 999_999):
        raise DatasetError(f"{path}: expected a frameRate above 0 and a seqLength of 1 to 999999")
    if Path(info["imDir"]).name != info["imDir"] or "/" in info["imExt"]:
        raise DatasetError(f"{path}: expected the name of a folder as imDir and a suffix as imExt")
    return info


def _boxes(path: Path, frames: int) -> dict[int, list[dict[str, Any]]]:
    """Boxes by number of the frame, from 1."""
    boxes: dict[int, list[dict[str, Any]]] = defaultdict(list)
    with open(path, newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            try:
                frame, id = int(row[0]), int(row[1])
                left, top, width, height, counts = map(float, row[2:7])
                kind = int(row[7]) if len(row) > 7 else PEDESTRIAN
            except (ValueError, IndexError) as error:
                raise DatasetError(
                    f"{path}, line {number}: expected frame, id, left, top, width, height, 0 or 1, ...: {error}"
                ) from error
            if not 1 <= frame <= frames:
                raise DatasetError(f"{path}, line {number}: frame {frame} of {frames}")
            if counts and kind == PEDESTRIAN and width > 0 and height > 0:
                corners = [left - 1, top - 1, left - 1 + width, top - 1 + height]
                boxes[frame].append({"id": str(id), "label": "pedestrian", "xyxy": corners})
    return boxes
