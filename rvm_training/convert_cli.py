"""Turn public datasets into the folders that `rvm eval` reads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NAMES = ("davis", "kinetics", "robotap", "perception_test", "rgb_stacking", "other")


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `rvm convert-data`."""
    parser = subparsers.add_parser("convert-data", help=__doc__, description=__doc__)
    kinds = parser.add_subparsers(title="datasets", metavar="DATASET", required=True)
    tapvid = _add(
        kinds,
        "tapvid",
        _tapvid,
        "TAP-Vid's pickles: DAVIS, Kinetics, RoboTAP, RGB-stacking, Perception Test",
        "a pickle, or a folder of pickles of one dataset",
        "Reads the pickles as data: plain containers and numpy arrays; one that asks for anything else is refused, and "
        "nothing of it is run.",
    )
    tapvid.add_argument("--name", choices=_NAMES, help="of the dataset; default: by the names of the files")
    _add(kinds, "mot", _mot, "boxes of MOTChallenge", "folder with SEQUENCE/seqinfo.ini, or one sequence")
    _add(
        kinds,
        "waymo",
        _waymo,
        "boxes of the front camera of Waymo Open, version 2",
        "folder with camera_image/*.parquet and camera_box/*.parquet",
    )


def _add(
    kinds: argparse._SubParsersAction[Any],
    name: str,
    convert: Callable[[argparse.Namespace, Callable[[str, int, int], None]], int],
    help: str,
    source: str,
    more: str = "",
) -> argparse.ArgumentParser:
    parser = kinds.add_parser(name, help=help, description=f"Converts {help}. {more}".strip())
    parser.add_argument("source", type=Path, metavar="SOURCE", help=source)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new folder")
    parser.set_defaults(run=lambda args: _run(args, convert))
    return parser


def _run(
    args: argparse.Namespace, convert: Callable[[argparse.Namespace, Callable[[str, int, int], None]], int]
) -> int:
    from rvm_core.exit_codes import DISK_FULL, DiskFullError, disk_full_errors

    try:
        with _progress() as progress, disk_full_errors(str(args.out)):
            videos = convert(args, progress)
    except DiskFullError as error:
        print(f"rvm: error: {error}", file=sys.stderr)
        return DISK_FULL
    print(f"{videos} video{'s' if videos != 1 else ''} written to {args.out}")
    return 0


def _tapvid(args: argparse.Namespace, progress: Callable[[str, int, int], None]) -> int:
    from rvm_training.converters.tapvid import convert_tapvid

    return convert_tapvid(args.source, args.out, args.name, progress)


def _mot(args: argparse.Namespace, progress: Callable[[str, int, int], None]) -> int:
    from rvm_training.converters.mot import convert_mot

    return convert_mot(args.source, args.out, progress)


def _waymo(args: argparse.Namespace, progress: Callable[[str, int, int], None]) -> int:
    from rvm_training.converters.waymo import convert_waymo

    return convert_waymo(args.source, args.out, progress)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    with tqdm(unit="video", disable=None, leave=False) as bar:

        def advance(text: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description_str(text[:40], refresh=False)
            bar.n = done
            bar.refresh()

        yield advance
