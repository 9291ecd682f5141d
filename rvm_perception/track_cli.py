"""Follow points, boxes and masks through a video."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvm_core.config import PATCH_SIZE
from rvm_perception.model_arguments import (
    add_model_arguments,
    count,
    describe_model,
    load_model,
    make_engine,
    not_negative,
    positive,
)
from rvm_perception.output_folder import folder_at_the_end
from rvm_perception.track_arguments import make_queries, parse_box, parse_point, read_label_image

if TYPE_CHECKING:
    from rvm_core.engines import Engine
    from rvm_core.preprocess import Preprocess
    from rvm_core.streaming import StreamingEncoder
    from rvm_core.tracking.base import Tracker
    from rvm_perception.track_video import TrackedFrame, TrackPlan, TrackWriter
    from rvm_perception.video import VideoInfo

_DESCRIPTION = """\
Follows points, boxes and masks, given in one frame of a video, through the frames after it, by the model's features
alone or by trained readouts. Needs no ROS."""
_EPILOG = """\
coordinates are pixels, x to the right, y down, centres of pixels at .5: the image covers [0, width] x [0, height]

writes to the folder of --out: tracks.csv (a row for each frame and track), overlay.mp4 (the video with the tracks),
masks/*.png (label images, with --mask) and summary.json; all at the end, so that a run that fails or is interrupted
leaves what was there before

exit codes: 0 done, 1 an error that is explained, 2 wrong usage, 130 interrupted

example: rvm track ride.mp4 --points 320,120 341,98,helmet --boxes 355,53,540,272,cyclist --weights rvm_s16"""
_OUTPUTS = ("masks", "tracks.csv", "overlay.mp4", "summary.json")
"""In the order in which they get their names; the last one tells that the others are there."""

_DEFAULT_RATE = 25.0


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `rvm track`. Its functions import torch only when they run."""
    parser = subparsers.add_parser(
        "track",
        help=__doc__,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("video", metavar="VIDEO", type=Path, help="file that OpenCV can decode")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("out/track"), help="for the results; default: %(default)s"
    )
    _add_queries(parser.add_argument_group("what is followed"))
    _add_model(parser.add_argument_group("by what it is followed"))
    parser.set_defaults(run=_run, refuse=parser.error)


def _add_queries(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--points", nargs="+", metavar="X,Y[,NAME]", type=parse_point, default=[], help="points")
    group.add_argument("--boxes", nargs="+", metavar="X1,Y1,X2,Y2[,NAME]", type=parse_box, default=[], help="boxes")
    group.add_argument(
        "--mask",
        metavar="PNG",
        type=Path,
        help="label image of the video's size; every value but 0 is followed, as its id",
    )
    group.add_argument(
        "--at",
        metavar="SECONDS",
        type=not_negative,
        default=0.0,
        help="when these positions hold; default: at the start",
    )
    group.add_argument("--seconds", type=positive, help="how long they are followed; default: to the end")


def _add_model(group: argparse._ArgumentGroup) -> None:
    add_model_arguments(group)
    group.add_argument(
        "--context", metavar="N", type=count, help="newest frames that tracks are matched with; default: 20"
    )
    for kind, plural in (("point", "points"), ("box", "boxes")):
        group.add_argument(
            f"--{kind}-head", metavar="FILE_OR_NAME",
            help=f"trained readout that follows the {plural}, such as rvm_nano_{plural}, which ships",
        )  # fmt: skip


def _run(args: argparse.Namespace) -> int:
    if not (args.points or args.boxes or args.mask):
        args.refuse("nothing to follow: give at least one of --points, --boxes and --mask")

    from rvm_core.preprocess import Preprocess
    from rvm_perception.demo_clip import image_size
    from rvm_perception.track_video import TrackPlan, TrackWriter, follow
    from rvm_perception.video import require_video_writer, video_info

    # What is quick to find out comes before what is slow.
    require_video_writer()
    info = video_info(args.video)
    height, width = args.size or image_size(info.height, info.width)
    preprocess = Preprocess(height=height, width=width, policy="letterbox")
    mask = read_label_image(args.mask) if args.mask else None
    queries, labels = make_queries(args.points, args.boxes, mask, preprocess.map(info.height, info.width))
    rate = info.rate or _DEFAULT_RATE
    plan = TrackPlan(
        video=args.video, rate=rate, queries=queries, labels=labels, at=args.at, seconds=args.seconds
    )  # fmt: skip
    _check_time(plan, info)
    model = load_model(args, random_means="its tracks mean little")
    tracker = _tracker(args, model, preprocess)
    engine = make_engine(args, model, (preprocess.height, preprocess.width))
    with folder_at_the_end(args.out, _OUTPUTS) as folder:
        writer = TrackWriter(folder, plan)
        writer.write(_shown(follow(plan, engine, preprocess, tracker), plan, info))
        summary = _summary(plan, info, writer) | _summary_of_model(args, model, engine, tracker)
        (folder / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(_table(summary))
    print(f"  written to {args.out}: {', '.join(_OUTPUTS if mask is not None else _OUTPUTS[1:])}")
    return 0


def _check_time(plan: TrackPlan, info: VideoInfo) -> None:
    """A file may announce too few or too many frames, so what it says decides only where nothing would be followed."""
    if info.frames and plan.query_frame >= info.frames:
        raise ValueError(f"{plan.video} has {info.frames / plan.rate:.2f} s: there is no frame at --at {plan.at:g} s")


def _tracker(args: argparse.Namespace, model: StreamingEncoder, preprocess: Preprocess) -> Tracker[Any]:
    from rvm_core.tracking import TrackingConfig, create_tracker

    return create_tracker(
        (preprocess.height // PATCH_SIZE, preprocess.width // PATCH_SIZE),
        width=model.config.width,
        config=TrackingConfig(n_context=args.context) if args.context else TrackingConfig(),
        point_head=args.point_head,
        box_head=args.box_head,
    )


def _shown(frames: Iterable[TrackedFrame], plan: TrackPlan, info: VideoInfo) -> Iterator[TrackedFrame]:
    """The frames, with a bar on a terminal."""
    from tqdm import tqdm

    ends = [end for end in (info.frames, plan.end_frame) if end]
    return iter(tqdm(frames, total=min(ends, default=None), desc="tracking", unit="frame", disable=None))


def _summary(plan: TrackPlan, info: VideoInfo, writer: TrackWriter) -> dict[str, Any]:
    from rvm_perception.track_video import kind_of

    tracks = [
        {
            "id": query.id,
            "kind": kind_of(query),
            "label": plan.labels.get(query.id, ""),
            "frames_visible": writer.visible[query.id],
        }
        for query in plan.queries
    ]
    return {
        "video": plan.video.name,
        "video_size": f"{info.height}x{info.width}",
        "rate_hz": plan.rate,
        "query_frame": plan.query_frame,
        "frames_read": len(writer.engine_ms),
        "frames_tracked": writer.frames,
        "tracks": tracks,
        "engine_ms": _milliseconds(writer.engine_ms),
        "tracking_ms": _milliseconds(writer.tracking_ms),
    }


def _summary_of_model(
    args: argparse.Namespace, model: StreamingEncoder, engine: Engine, tracker: Tracker[Any]
) -> dict[str, Any]:
    from rvm_core.tracking import TrackingConfig

    return {
        "tracker": tracker.name,
        "context": args.context or TrackingConfig().n_context,
        "point_head": args.point_head,
        "box_head": args.box_head,
        **describe_model(args, model, engine),
    }


def _milliseconds(values: Sequence[float]) -> dict[str, float]:
    """Of a step: median, and what all but one in twenty stay below."""
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered), 2),
        "p95": round(ordered[math.ceil(0.95 * len(ordered)) - 1], 2),
    }


def _table(summary: dict[str, Any]) -> str:
    """The summary for a terminal."""
    rows = {
        "frames": f"{summary['frames_tracked']} of {summary['frames_read']} read, tracked from frame "
        f"{summary['query_frame']} on ({summary['video']})",
        "model": f"{summary['model']}, weights {summary['weights']}, {summary['image_size']}, {summary['backend']} "
        f"{summary['precision']} on {summary['device']}",
        "tracker": f"{summary['tracker']}, median {summary['tracking_ms']['p50']} ms a frame, beside the engine's "
        f"{summary['engine_ms']['p50']} ms",
    }
    for track in summary["tracks"]:
        name = f"{track['kind']} {track['id']} {track['label']}".rstrip()
        rows[name] = f"reported visible in {track['frames_visible']} of {summary['frames_tracked']} frames"
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items())
