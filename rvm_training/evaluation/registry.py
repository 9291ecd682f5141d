"""The benchmarks of `rvm eval NAME`: which module makes each, and its own options. Light: imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rvm_core.arguments import parse_size


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
        "--groups", type=count, default=2, metavar="N", help="of four clips each to learn from; default: %(default)s"
    )
    parser.add_argument("--frames", type=count, default=32, metavar="N", help="of each clip; default: %(default)s")


def _head(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    without = "" if required else "; default: no training"
    parser.add_argument("--head", metavar="FILE", type=Path, required=required, help=f"a trained readout{without}")


def _size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", metavar="HxW", type=parse_size, help="of the frames, pixels; default: 256x256")


def _tapvid(parser: argparse.ArgumentParser) -> None:
    _head(parser, required=False)
    _size(parser)
    parser.add_argument(
        "--protocol",
        choices=("first", "strided", "4ds"),
        default="first",
        help="which points are asked for: where they are first seen, in every fifth frame, or, of every fourth frame "
        "and 16 in all, in the first, as 4DS does; default: %(default)s",
    )


def _boxes(parser: argparse.ArgumentParser) -> None:
    _head(parser, required=False)
    parser.add_argument("--frames", type=count, metavar="N", help="of each video, at 5 a second; default: 16")


def _depth(parser: argparse.ArgumentParser) -> None:
    _head(parser)
    _size(parser)
    parser.add_argument("--scenes", type=Path, metavar="FILE", help="names of scenes; default: PATH/scannetv2_val.txt")
    parser.add_argument("--clips", type=count, default=1, metavar="N", help="of each scene; default: %(default)s")
    parser.add_argument("--stride", type=count, default=1, metavar="N", help="take every Nth frame; default: 1")


def _classes(parser: argparse.ArgumentParser) -> None:
    _head(parser)
    _size(parser)
    parser.add_argument("--dataset", choices=("ssv2", "kinetics"), help="which it is; default: by what is in PATH")


def _pose(parser: argparse.ArgumentParser) -> None:
    _head(parser)
    _size(parser)
    parser.add_argument("--frames", type=count, default=16, metavar="N", help="of a clip; default: %(default)s")
    parser.add_argument("--stride", type=count, default=1, metavar="N", help="take every Nth frame; default: 1")


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
    Entry(
        name="tapvid",
        module="point_tracking",
        help="AJ, position and occlusion accuracy of points followed through TAP-Vid's videos",
        data="folder of `rvm convert-data tapvid`",
        options=_tapvid,
    ),
    Entry(
        name="boxes",
        module="box_tracking",
        help="mean IoU of boxes followed through videos by the rules of 4DS",
        data="folder with SEQUENCE/boxes.json, such as `rvm convert-data` makes of Waymo Open and MOT",
        options=_boxes,
    ),
    Entry(
        name="depth",
        module="depth_readout",
        help="AbsRel of depth by a trained readout on ScanNet",
        data="folder of ScanNet with scans/SCENE/color and scans/SCENE/depth",
        options=_depth,
    ),
    Entry(
        name="classes",
        module="class_readout",
        help="top-1 of classes by a trained readout on Something-Something v2 or Kinetics",
        data="folder of Something-Something v2 (labels, videos) or Kinetics (val, annotations)",
        options=_classes,
    ),
    Entry(
        name="pose",
        module="pose_readout",
        help="end-point error of relative poses by a trained readout on RealEstate10K",
        data="folder of RealEstate10K with test/ID.txt and frames/test/ID",
        options=_pose,
    ),
)
