"""Videos with a class each: Something-Something v2 and Kinetics, in the layouts they are distributed in.

Something-Something v2:

    FOLDER/labels.json and validation.json, or these in FOLDER/labels/, or with something-something-v2- before the name
    FOLDER/20bn-something-something-v2/ID.webm

labels.json gives each template without brackets its number as a text; validation.json is a list of {"id", "template"}.

Kinetics, as it is packed by its mirror:

    FOLDER/annotations/val.csv         label,youtube_id,time_start,time_end,split
    FOLDER/val/ID_000010_000020.mp4    start and end in seconds, six digits

or with a folder for each class: FOLDER/val/CLASS/ANYTHING.mp4. Classes are numbered in the order of their names, or as
FOLDER/classes.txt lists them, one a line.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rvm_training.datasets.images import require_folder
from rvm_training.evaluation.benchmark import DatasetError

DatasetName = Literal["ssv2", "kinetics"]
VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi")
_SSV2_PREFIX = "something-something-v2-"
_SSV2_VIDEOS = ("20bn-something-something-v2", "videos")


@dataclass(frozen=True, kw_only=True)
class ClassifiedVideos:
    """A dataset."""

    name: DatasetName
    classes: tuple[str, ...]
    """By number."""
    videos: dict[str, Path]
    """Files by id."""
    labels: dict[str, int]
    """Number of the class by id."""
    missing: tuple[str, ...] = ()
    """Ids of the list that there is no video of: videos of Kinetics vanish from where they were."""


def open_classes(folder: Path, name: DatasetName | None = None, *, split: str | None = None) -> ClassifiedVideos:
    """The dataset in a folder; None: whichever it is. Raises `DatasetError` for a folder that is none of them.

    split: None: the one for validation ("validation" of Something-Something v2, "val" of Kinetics).
    """
    require_folder(folder, "Something-Something v2 or Kinetics")
    if name is None:
        name = "ssv2" if _find_json(folder, "labels") else "kinetics"
    return _open_ssv2(folder, split or "validation") if name == "ssv2" else _open_kinetics(folder, split or "val")


def _open_ssv2(folder: Path, split: str) -> ClassifiedVideos:
    numbers = _ssv2_labels(folder)
    entries = _read_json(_need_json(folder, split), list)
    videos = next((folder / name for name in _SSV2_VIDEOS if (folder / name).is_dir()), None)
    if videos is None:
        raise DatasetError(f"looked for the videos of Something-Something v2 in {folder / _SSV2_VIDEOS[0]}: not there")
    labels: dict[str, int] = {}
    for entry in entries:
        try:
            labels[str(entry["id"])] = numbers[str(entry["template"]).replace("[", "").replace("]", "")]
        except (KeyError, TypeError) as error:
            raise DatasetError(
                f"{split}.json in {folder}: an entry without id or with no known template: {error}"
            ) from error
    files = {id: videos / f"{id}.webm" for id in labels}
    absent = [id for id, path in files.items() if not path.is_file()]
    if absent or not files:
        raise DatasetError(
            f"looked for {len(files)} videos ID.webm of {split}.json in {videos}: {len(absent)} are missing"
            + (f", the first is {absent[0]}.webm" if absent else "")
        )
    classes = tuple(sorted(numbers, key=lambda label: numbers[label]))
    return ClassifiedVideos(name="ssv2", classes=classes, videos=files, labels=labels)


def _ssv2_labels(folder: Path) -> dict[str, int]:
    path = _need_json(folder, "labels")
    try:
        numbers = {str(label): int(number) for label, number in _read_json(path, dict).items()}
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{path}: expected templates with numbers: {error}") from error
    if sorted(numbers.values()) != list(range(len(numbers))):
        raise DatasetError(f"{path}: expected the numbers 0 to {len(numbers) - 1}, each once")
    return numbers


def _find_json(folder: Path, name: str) -> Path | None:
    places = [folder / part / f"{prefix}{name}.json" for part in ("", "labels") for prefix in ("", _SSV2_PREFIX)]
    return next((path for path in places if path.is_file()), None)


def _need_json(folder: Path, name: str) -> Path:
    if (path := _find_json(folder, name)) is None:
        raise DatasetError(
            f"looked for {name}.json or {_SSV2_PREFIX}{name}.json of Something-Something v2 in {folder} and "
            f"{folder / 'labels'}: there is none"
        )
    return path


def _read_json(path: Path, kind: type) -> Any:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, kind) or not data:
        raise DatasetError(f"{path}: expected a {kind.__name__} that is not empty")
    return data


def _open_kinetics(folder: Path, split: str) -> ClassifiedVideos:
    videos = folder / split
    if not videos.is_dir():
        raise DatasetError(
            f"looked for videos of Kinetics in {videos} (and for labels.json of Something-Something v2 in {folder}): "
            "neither is there"
        )
    table = folder / "annotations" / f"{split}.csv"
    listed = _kinetics_csv(table) if table.is_file() else _kinetics_folders(videos)
    present = {id: label for id, label in listed.items() if (videos / id).is_file()}
    if not present:
        raise DatasetError(
            f"looked for {videos}/ID_000000_000010.mp4 as {table} lists them, or for {videos}/CLASS/*.mp4: found none"
        )
    classes = _class_names(folder, set(listed.values()))
    numbers = {label: number for number, label in enumerate(classes)}
    unknown = {label for label in present.values() if label not in numbers}
    if unknown:
        raise DatasetError(f"{folder / 'classes.txt'} does not list the class {sorted(unknown)[0]!r}")
    return ClassifiedVideos(
        name="kinetics",
        classes=classes,
        videos={id: videos / id for id in present},
        labels={id: numbers[label] for id, label in present.items()},
        missing=tuple(id for id in listed if id not in present),
    )


def _kinetics_csv(path: Path) -> dict[str, str]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {
                f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4": row["label"].strip()
                for row in csv.DictReader(file)
            }
    except (KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise DatasetError(f"{path}: expected columns label, youtube_id, time_start, time_end: {error}") from error


def _kinetics_folders(videos: Path) -> dict[str, str]:
    found = sorted(path for path in videos.glob("*/*") if path.suffix in VIDEO_SUFFIXES)
    return {path.relative_to(videos).as_posix(): path.parent.name for path in found}


def _class_names(folder: Path, labels: set[str]) -> tuple[str, ...]:
    path = folder / "classes.txt"
    if not path.is_file():
        return tuple(sorted(labels))
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
