"""Cut videos, or synthetic scenes, into shards of clips to pretrain on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rvm_training.data.run_job import Progress, Summary
    from rvm_training.data.shard_job import Job

_NAMED = 10
"""So many of the skipped videos are named on the screen."""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `rvm-train shards`."""
    parser = subparsers.add_parser(
        "shards",
        help=__doc__,
        description="Cuts videos, or synthetic scenes, into clips of JPEG frames, packed in tar files with an index. "
        "The same command goes on where it was interrupted. With --measure, reads a folder as pretraining does and "
        "prints how fast that is.",
    )
    parser.add_argument("videos", nargs="*", type=Path, metavar="VIDEOS", help="files, or folders of videos")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the shards")
    parser.add_argument("--scenes", type=int, metavar="N", help="make N scenes of moving textured shapes")
    parser.add_argument("--mujoco", type=int, metavar="N", help="make N scenes of falling bodies in a room (MuJoCo)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the first scene (1000000)")
    parser.add_argument("--size", type=int, default=256, help="shorter side of the frames, pixels (256)")
    parser.add_argument("--clip-frames", type=int, default=64, metavar="N", help="frames of a clip (64)")
    parser.add_argument("--min-frames", type=int, metavar="N", help="what is shorter is no clip (52, or --clip-frames)")
    parser.add_argument("--stride", type=int, default=1, metavar="N", help="take every N-th frame of a video (1)")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEG images (90)")
    parser.add_argument("--shard-mb", type=float, default=256, metavar="MB", help="size of the videos of a shard (256)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (1)")
    parser.add_argument("--index", type=Path, metavar="DIR", help="make a folder of other WebDataset shards readable")
    parser.add_argument("--measure", type=Path, metavar="DIR", help="read shards or videos of this folder")
    parser.add_argument("--image-size", type=int, default=256, help="of the examples for --measure, pixels (256)")
    parser.add_argument("--seconds", type=float, default=10, help="how long --measure reads (10)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    choices = (args.videos or None, args.scenes, args.mujoco, args.index, args.measure)
    if sum(choice is not None for choice in choices) != 1:
        raise ValueError("expected one of: VIDEOS, --scenes N, --mujoco N, --index DIR, --measure DIR")
    if args.index is not None:
        return _index(args)
    return _measure(args) if args.measure is not None else _make(args)


def _make(args: argparse.Namespace) -> int:
    from rvm_core.exit_codes import DISK_FULL, INCOMPLETE, DiskFullError, disk_full_errors
    from rvm_training.data.run_job import run_job

    if args.out is None:
        raise ValueError("expected --out DIR, the folder of the shards")
    job = _plan(args)
    try:
        with disk_full_errors(str(args.out)), _progress(job) as progress:
            summary = run_job(job, args.out, workers=args.workers, progress=progress)
    except DiskFullError as error:
        print(f"rvm-train: error: {error}", file=sys.stderr)
        return DISK_FULL
    _report(args.out, job, summary)
    return INCOMPLETE if summary.skipped else 0


def _plan(args: argparse.Namespace) -> Job:
    from rvm_training.data.scene_clips import FIRST_SEED
    from rvm_training.data.shard_job import CutConfig, plan_scenes, plan_videos

    config = CutConfig(
        size=args.size,
        clip_frames=args.clip_frames,
        min_frames=min(52, args.clip_frames) if args.min_frames is None else args.min_frames,
        stride=args.stride,
        quality=args.quality,
        shard_mb=args.shard_mb,
    )
    count = args.scenes if args.scenes is not None else args.mujoco
    if count is None:
        return plan_videos(args.videos, config)
    first_seed = FIRST_SEED if args.seed is None else args.seed
    return plan_scenes("scenes" if args.mujoco is None else "mujoco", count, first_seed, config)


def _report(out: Path, job: Job, summary: Summary) -> None:
    print(
        f"{out}: {summary.clips} clips, {summary.frames} frames, {summary.bytes / 1e6:.1f} MB in {len(job.shards)} "
        f"shard{'s' if len(job.shards) != 1 else ''}"
    )
    if summary.made:
        print(f"made now: {summary.made} clips, {summary.made / summary.seconds:.2f} clips/s a core")
    if summary.skipped:
        print(f"skipped, or used in part: {len(summary.skipped)} videos")
        for skip in summary.skipped[:_NAMED]:
            print(f"  {skip.video}: {skip.reason}")
        if len(summary.skipped) > _NAMED:
            print(f"  and {len(summary.skipped) - _NAMED} more, see shard-*.json in {out}")


def _index(args: argparse.Namespace) -> int:
    from rvm_training.data.index_shards import index_shards

    shards, clips, frames = index_shards(args.index)
    print(f"{args.index}: {clips} clips, {frames} frames in {shards} shard{'s' if shards != 1 else ''}")
    return 0


def _measure(args: argparse.Namespace) -> int:
    from rvm_training.data.measure import measure

    speed = measure(args.measure, image_size=args.image_size, seconds=args.seconds)
    for line in speed.lines():
        print(line)
    return 0


@contextmanager
def _progress(job: Job) -> Iterator[Progress]:
    """A bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    unit = "video" if job.kind == "videos" else "scene"
    with tqdm(total=job.items, unit=unit, disable=None, leave=False) as bar:

        def advance(items: int, clips: int, skipped: int) -> None:
            bar.set_postfix_str(f"{clips} clips, {skipped} skipped", refresh=False)
            bar.n = items
            bar.refresh()

        yield advance
