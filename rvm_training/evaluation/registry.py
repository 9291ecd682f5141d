"""The benchmarks of `rvm eval NAME`: which module makes each, and its own options. Light: imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


def _none(parser: argparse.ArgumentParser) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One benchmark."""

    name: str
    module: str
    """Below rvm_training.evaluators; has `create(args, encoder)`."""
    help: str
    """One line for the list of benchmarks."""
    data: str | None
    """What --data is, such as "folder of DAVIS 2017"; None if it needs no data."""
    options: Callable[[argparse.ArgumentParser], None] = _none
    """Adds its own options to the parser."""


def count(text: str) -> int:
    """A whole number of 1 or more, for `type=` of an option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)


def _propagation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--context", type=count, metavar="N", help="frames in the queue; default: the release's 20")
    parser.add_argument(
        "--top-k", type=count, metavar="N", help="matches of a cell; default: the release's 7, for vip 10"
    )
    parser.add_argument("--radius", type=float, metavar="CELLS", help="of the neighbourhood; default: unrestricted")


def _stability(parser: argparse.ArgumentParser) -> None:
    _propagation(parser)
    parser.add_argument(
        "--lengths",
        type=count,
        nargs="+",
        metavar="N",
        default=[16, 32, 48, 64, 80],
        help="numbers of frames, the first is the one that counts as 1; default: 16 32 48 64 80",
    )


def _jhmdb(parser: argparse.ArgumentParser) -> None:
    _propagation(parser)
    parser.add_argument("--split", type=int, choices=(1, 2, 3), default=1, help="default: %(default)s")


def _noise_square(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clips", type=count, default=8, metavar="N", help="measured; default: %(default)s")
    parser.add_argument(
        "--training-clips", type=count, default=8, metavar="N", help="the probe learns from; default: %(default)s"
    )
    parser.add_argument("--frames", type=count, default=32, metavar="N", help="of each clip; default: %(default)s")


ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="davis2017",
        module="davis2017",
        help="J, F and J&F of masks propagated through DAVIS 2017",
        data="folder DAVIS with JPEGImages, Annotations and ImageSets",
        options=_propagation,
    ),
    Entry(
        name="jhmdb",
        module="jhmdb",
        help="PCK of joints propagated through JHMDB",
        data="folder JHMDB with joint_positions, Rename_Images and splits",
        options=_jhmdb,
    ),
    Entry(
        name="vip",
        module="vip",
        help="mIoU of human parts propagated through VIP",
        data="folder VIP_Fine with Images, Annotations and lists",
        options=_propagation,
    ),
    Entry(
        name="stability",
        module="stability",
        help="J&F on DAVIS 2017 after 16 to 80 frames, relative to 16",
        data="folder DAVIS with JPEGImages, Annotations and ImageSets",
        options=_stability,
    ),
    Entry(
        name="noise_square",
        module="noise_square",
        help="whether features show a square of noise that only its motion gives away",
        data=None,
        options=_noise_square,
    ),
)
