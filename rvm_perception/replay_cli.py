"""Run a recording through the model: features, tracks, films and a report from a bag, without ROS."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvm_core.exit_codes import DISK_FULL, DONE, INCOMPLETE, INTERRUPTED, USAGE, is_disk_full
from rvm_core.stop_request import stop_request
from rvm_perception.replay_many_cli import BAD_RECORDING, add_arguments, run_many

if TYPE_CHECKING:
    from rvm_perception.parameters import NodeParameters
    from rvm_perception.replay_summary import ReplaySummary

_DESCRIPTION = """\
Runs every frame of a ROS 2 recording, in the order of its stamps, through the same preprocessing, engine, tracking and
reset rules as the live node, and carries out the TrackQueries that were recorded. Needs no ROS, and is as fast as the
engine. The same recording gives the same bytes each time; only timing.json, timing.csv and the report tell times."""
_EPILOG = """\
BAG is a folder of rosbag2 or one of its files: sqlite3 (.db3) or mcap, compressed or not. Images may be raw or
compressed. Where BAG is a folder with recordings in it, at any depth, each is replayed into a folder of its name in
that of --out, beside recordings.json and index.html about all of them. One that fails does not stop the others, one
whose process is lost is done again, and --resume leaves those alone that are complete.

writes to the folder of --out: replay.mcap (what the node would publish; for Foxglove and `ros2 bag`), summary.json,
timing.json, report.html, and for each camera a folder with frames.csv, features.npz or features.zarr, point_tracks,
box_tracks and mask_tracks as csv or parquet, overlay.mp4 and timing.csv. The folder gets its name when all is there;
earlier results stay as they are until then. Ctrl-C keeps what was done: the same command with --resume goes on.

exit codes: 0 done, 1 an error that is explained, 2 wrong usage, 3 only a part of a damaged recording was evaluated
(--recover) or not all of the recordings, 4 the disk is full, 5 the recording cannot be used, or none of them, 130
interrupted

examples:
  rvm replay drive_0001 --out out/drive_0001 --weights rvm_s16 --params config/rvm.yaml
  rvm replay drives --out out/drives --weights rvm_s16 --jobs 4
  rvm replay /nfs/drives --out /nfs/out --weights /nfs/rvm_l16.npz --ray auto"""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `rvm replay`. Its functions import torch only when they run."""
    parser = subparsers.add_parser(
        "replay",
        help=__doc__,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bag", metavar="BAG", type=Path, help="the recording")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the results")
    _add_input(parser.add_argument_group("what is replayed, and by what"))
    _add_output(parser.add_argument_group("results"))
    add_arguments(parser.add_argument_group("many recordings"))
    parser.set_defaults(run=_run)


def _add_input(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--params", metavar="YAML", type=Path, help="the node's parameters; default: the node's defaults"
    )
    group.add_argument("--weights", metavar="FILE_OR_NAME", help="in place of the parameter weights")
    for name in ("backend", "precision", "device"):
        group.add_argument(f"--{name}", metavar=name.upper(), help=f"in place of the parameter {name}")
    group.add_argument(
        "--topics", metavar="TOPIC", nargs="+", default=[],
        help="cameras, and the queries if there are several; default: camera_topics of the parameters, or the only "
        "camera in the bag",
    )  # fmt: skip
    group.add_argument("--recover", action="store_true", help="evaluate what can be read of a damaged recording")
    group.add_argument("--resume", action="store_true", help="go on with an interrupted run of the same command")


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--features", choices=("auto", "npz", "zarr", "none"), default="auto",
        help="how features are stored beside the mcap; auto: npz up to 1 GiB, zarr above; default: %(default)s",
    )  # fmt: skip
    group.add_argument(
        "--tracks",
        choices=("csv", "parquet"),
        default="csv",
        help="format of the tables of tracks; default: %(default)s",
    )
    group.add_argument("--no-overlay", action="store_true", help="no film")
    group.add_argument("--no-report", action="store_true", help="no report page")


def _run(args: argparse.Namespace) -> int:
    from rvm_core.threads import limit_threads
    from rvm_perception.bag_reader import BagError
    from rvm_perception.recordings import is_folder_of_recordings
    from rvm_perception.replay import Interrupted
    from rvm_perception.replay_job import ReplayOptions, make_stepper, replay_bag

    parameters = _parameters(args)
    options = ReplayOptions(
        topics=tuple(args.topics),
        features=args.features,
        tables=args.tracks,
        film=not args.no_overlay,
        report=not args.no_report,
        recover=args.recover,
        resume=args.resume,
    )
    many = is_folder_of_recordings(args.bag)
    if not many and (args.jobs or args.ray):
        _log(f"error: --jobs and --ray are for a folder of recordings; {args.bag} is none")
        return USAGE
    if args.threads and not many:
        limit_threads(args.threads)
    try:
        with stop_request(lambda: _log("stopping after this frame; once more to stop at once")) as stop:
            if many:
                return run_many(args, parameters, options, stop.is_set, _log)
            summary = replay_bag(
                args.bag, args.out, parameters, lambda: make_stepper(parameters, _log), options, is_stopped=stop.is_set
            )
    except BagError as error:
        _log(f"error: {error}")
        return BAD_RECORDING
    except Interrupted:
        _log("interrupted; the same command with --resume goes on from here")
        return INTERRUPTED
    except Exception as error:
        if not is_disk_full(error):
            raise
        _log(f"error: the disk is full: {args.out} could not be written; earlier results are as they were. Free some "
             "space, and go on with --resume")  # fmt: skip
        return DISK_FULL
    print(_table(summary, args.out))
    if summary.recovered:
        _log(f"warning: only what can be read was evaluated: {summary.recovered}")
        return INCOMPLETE
    return DONE


def _parameters(args: argparse.Namespace) -> NodeParameters:
    from rvm_perception.parameters import NodeParameters, load_parameters

    given = {name: getattr(args, name) for name in ("weights", "backend", "precision", "device")}
    changes = {name: value for name, value in given.items() if value is not None}
    return load_parameters(args.params, changes) if args.params else replace(NodeParameters(), **changes)


def _log(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"rvm replay: {line}", file=sys.stderr)


def _table(summary: ReplaySummary, out: Path) -> str:
    from rvm_perception.replay_summary import read_timing

    timing, engine = read_timing(out), summary.engine
    height, width = engine.image_size
    rows = {
        "model": f"{engine.model}, {height}x{width}, {engine.backend} {engine.precision} on {engine.device}",
        "speed": f"{timing.frames_per_s:.1f} frames/s through engine and tracking, {timing.real_time_factor:.2f} times "
        "real time",
    }
    for camera in summary.cameras:
        rejected = sum(camera.rejected.values())
        rows[f"camera {camera.name}"] = (
            f"{camera.processed} of {camera.received} frames processed, {rejected} rejected, "
            f"{len(camera.resets)} resets, {sum(camera.tracks.values())} tracks"
        )
    width = max(map(len, rows))
    return "\n".join([*(f"  {name:<{width}}  {value}" for name, value in rows.items()), f"  written to {out}"])
