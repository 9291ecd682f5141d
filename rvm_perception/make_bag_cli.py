"""Make a small ROS 2 recording from videos, to try replay with."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvm_core.exit_codes import DISK_FULL, DONE, is_disk_full
from rvm_perception.model_arguments import count, not_negative, positive
from rvm_perception.track_arguments import parse_box, parse_point

if TYPE_CHECKING:
    from rvm_perception.make_bag import BagQuery

_DESCRIPTION = """\
Writes a folder of rosbag2 in which each video is a camera, with a request for tracks in the first frame if wanted.
Needs no ROS. The same videos give the same bytes each time."""
_EPILOG = """\
exit codes: 0 done, 1 an error that is explained, 2 wrong usage, 4 the disk is full, 130 interrupted

example: rvm make-bag ride.mp4 --out ride_bag --frames 100 --points 320,120 && rvm replay ride_bag --out out/ride"""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `rvm make-bag`."""
    parser = subparsers.add_parser(
        "make-bag",
        help=__doc__,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("videos", metavar="VIDEO", type=Path, nargs="+", help="files that OpenCV can decode")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the bag; it must not exist yet")
    parser.add_argument(
        "--topics", metavar="TOPIC", nargs="+",
        help="of each video; default: /camera/image_raw, or /camera_0/image_raw, /camera_1/image_raw and so on",
    )  # fmt: skip
    parser.add_argument("--storage", choices=("mcap", "sqlite3"), default="mcap", help="default: %(default)s")
    parser.add_argument(
        "--compression", choices=("none", "file", "message", "chunk"), default="none",
        help="with zstd, chunk for mcap only; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--images", choices=("raw", "jpeg", "png"), default="raw", help="default: %(default)s")
    parser.add_argument(
        "--start", type=not_negative, default=0.0, metavar="SECONDS", help="where in the videos to start"
    )
    parser.add_argument("--frames", type=count, help="of each video; default: to the end")
    parser.add_argument("--rate", type=positive, help="frames per second; default: the videos'")
    parser.add_argument(
        "--points", nargs="+", metavar="X,Y[,NAME]", type=parse_point, default=[], help="to be followed"
    )
    parser.add_argument(
        "--boxes", nargs="+", metavar="X1,Y1,X2,Y2[,NAME]", type=parse_box, default=[], help="to be followed"
    )
    parser.set_defaults(run=_run, refuse=parser.error)


def _run(args: argparse.Namespace) -> int:
    from rvm_perception.make_bag import DEFAULT_RATE, BagCamera, make_bag
    from rvm_perception.video import video_info

    several = len(args.videos) > 1
    topics = args.topics or [
        f"/camera_{i}/image_raw" if several else "/camera/image_raw" for i in range(len(args.videos))
    ]
    if len(topics) != len(args.videos):
        args.refuse(f"expected a topic for each of {len(args.videos)} videos, got {len(topics)}")
    if several and (args.points or args.boxes):
        args.refuse("--points and --boxes are for one video")
    cameras = [
        BagCamera(
            video=video,
            topic=topic,
            form=args.images,
            rate=args.rate,
            first=round(args.start * (video_info(video).rate or DEFAULT_RATE)),
            frames=args.frames,
        )
        for video, topic in zip(args.videos, topics, strict=True)
    ]
    try:
        messages = make_bag(
            args.out, cameras, queries=_queries(args), storage=args.storage, compression=args.compression
        )
    except OSError as error:
        if not is_disk_full(error):
            raise
        print(f"rvm make-bag: error: the disk is full: {args.out} was not written", file=sys.stderr)
        return DISK_FULL
    print(f"  {messages} messages written to {args.out}")
    return DONE


def _queries(args: argparse.Namespace) -> list[BagQuery]:
    """One request, in the frame that comes first and right after it."""
    from rvm_perception.make_bag import RECEIPT_DELAY_NS, BagQuery

    if not (args.points or args.boxes):
        return []
    fields: dict[str, Any] = {"request_id": "make-bag"}
    for kind, names, given in (
        ("point", ("x", "y"), args.points),
        ("box", ("x_min", "y_min", "x_max", "y_max"), args.boxes),
    ):
        for i, name in enumerate(names):
            fields[f"{kind}_{name}"] = [entry.pixels[i] for entry in given]
        fields[f"{kind}_labels"] = [entry.label for entry in given]
    return [BagQuery(received_ns=RECEIPT_DELAY_NS + 1, fields=fields, stamp_ns=0)]
