"""Folders of small recordings, and the bytes of their results."""

from __future__ import annotations

from pathlib import Path

from bag_files import PARAMETERS, Shot, query, write_bag
from rvm_perception.replay_job import ReplayOptions, make_stepper, replay_bag

OPTIONS = ReplayOptions(report=False, quiet=True)
TIMES = ("timing.json", "timing.csv", "index.html")
"""Files that tell times."""


def folder_of_bags(folder: Path, frames: dict[str, int]) -> Path:
    """A recording with a query for each name, which may have folders in it."""
    for number, (name, count) in enumerate(frames.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        first = 10 * number
        shots = [Shot(stamp=first + i).raw() for i in range(count)]
        write_bag(path, [*shots, query(first + 0.5, point_x=[30.0], point_y=[20.0])])
    return folder


def single_runs(folder: Path, names: list[str], out: Path) -> None:
    """Replays each recording by itself, with an engine of its own, as `rvm replay BAG` does."""
    for name in names:
        replay_bag(folder / name, out / name, PARAMETERS, lambda: make_stepper(PARAMETERS, lambda _: None), OPTIONS)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that must be the same in every run, by its path."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in TIMES)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(paths)}
