"""Compare how well recurrent cores remember a frame: small models paint the 16th one after many more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvm_training.pretrain_cli import parse_source

if TYPE_CHECKING:
    from rvm_training.frame_memory import Clips, FrameMemory


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `rvm-train frame-memory`. torch is imported only when it runs."""
    parser = subparsers.add_parser(
        "frame-memory",
        help=__doc__,
        description="Trains small models, which differ in their encoder alone, to paint an early frame of a clip from "
        "their newest features, and measures the PSNR after as many frames as in training, fewer and more. Equal "
        "clips, steps, optimiser and readout for all. The same command goes on where it was interrupted.",
        epilog="writes to DIR: frame_memory.md, frame_memory.json, frame_memory.png, and a folder for each training",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the comparison")
    parser.add_argument(
        "--data", nargs="+", type=parse_source, default=[], metavar="[NAME=]PATH",
        help="folders of videos, or of shards of long clips, each measured by itself",
    )  # fmt: skip
    parser.add_argument("--no-scenes", action="store_true", help="without synthetic scenes")
    parser.add_argument("--models", nargs="+", default=["rvm", "trecvit"], metavar="NAME", help="default: rvm trecvit")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many; default: %(default)s")
    numbers = {
        "remembered": (16, "number of the frame that is painted"),
        "train-frames": (64, "frames seen in training"),
        "size": (64, "height and width in pixels, a multiple of 16"),
        "width": (64, "channels of the models"),
        "train-clips": (128, "clips to learn from, of each source"),
        "test-clips": (32, "clips of the test, of each source"),
        "steps": (2400, "of each training, a quarter of them with single frames"),
        "batch": (8, "clips of a step"),
    }
    for name, (default, what) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what}; default: %(default)s")
    parser.add_argument(
        "--test-frames", type=int, nargs="+", default=[32, 64, 80, 96], metavar="N",
        help="frames seen in the test; default: 32 64 80 96",
    )  # fmt: skip
    parser.add_argument("--learning-rate", type=float, default=3e-3, metavar="RATE", help="default: %(default)g")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="trainings at once, each on its part of the cores"
    )
    parser.add_argument("--device", default="cpu", help="of torch, such as cuda; default: %(default)s")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from rvm_core.bench_plot import PlotError
    from rvm_core.bench_report import describe_machine
    from rvm_core.exit_codes import DONE, INTERRUPTED
    from rvm_core.stop_request import stop_request
    from rvm_training.frame_memory import baseline_scores, open_folder, read_results, source_clips
    from rvm_training.frame_memory_report import make_report, make_table, write_report
    from rvm_training.run_folder import RunFolder
    from rvm_training.train_memory import keep_freed_memory

    keep_freed_memory()
    memory = _memory(args)
    clips = {source: source_clips(memory, source) for source in memory.sources}
    open_folder(memory, args.out)
    with (
        RunFolder(args.out).alone(),
        stop_request(lambda: print("rvm-train frame-memory: saving, then stopping", file=sys.stderr)) as stop,
    ):
        if args.jobs > 1:
            _train_at_once(memory, clips, args, stop.is_set)
        else:
            _train_in_turn(memory, clips, args, stop.is_set)
    baselines = {source: baseline_scores(memory, of.test) for source, of in clips.items()}
    report = make_report(memory, read_results(memory, args.out), baselines, describe_machine())
    print(make_table(report))
    try:
        print("written: " + ", ".join(map(str, write_report(report, args.out))))
    except PlotError as error:
        print(f"rvm-train frame-memory: {error}", file=sys.stderr)
    return DONE if report["complete"] else INTERRUPTED


def _memory(args: argparse.Namespace) -> FrameMemory:
    from rvm_training.frame_memory import FrameMemory
    from rvm_training.frame_memory_clips import SCENES

    sources = {} if args.no_scenes else {SCENES: SCENES}
    return FrameMemory(
        sources=sources | {source.name: source.path for source in args.data},
        models=tuple(args.models),
        seeds=tuple(range(args.seeds)),
        remembered=args.remembered,
        train_frames=args.train_frames,
        test_frames=tuple(args.test_frames),
        image_size=args.size,
        width=args.width,
        train_clips=args.train_clips,
        test_clips=args.test_clips,
        steps=args.steps,
        batch_size=args.batch,
        learning_rate=args.learning_rate,
    )


def _train_at_once(
    memory: FrameMemory, clips: dict[str, Clips], args: argparse.Namespace, is_stopped: Callable[[], bool]
) -> None:
    import torch

    from rvm_training.frame_memory import run_task, tasks
    from rvm_training.run_at_once import run_at_once

    device = torch.device(args.device)
    runs = [partial(run_task, memory, task, clips[task.source], args.out, device=device) for task in tasks(memory)]
    run_at_once(runs, args.jobs, is_stopped)


def _train_in_turn(
    memory: FrameMemory, clips: dict[str, Clips], args: argparse.Namespace, is_stopped: Callable[[], bool]
) -> None:
    import torch
    from tqdm import tqdm

    from rvm_training.frame_memory import run_task, tasks

    device = torch.device(args.device)
    for task in tasks(memory):
        with tqdm(total=memory.steps, unit="step", disable=None, leave=False) as bar:
            bar.set_description(f"{task.model}, {task.source}, seed {task.seed}")

            def show(step: int, loss: float, bar: Any = bar) -> None:
                bar.update(step - bar.n)
                bar.set_postfix_str(f"loss {loss:.5f}", refresh=False)

            of_source = clips[task.source]
            if not run_task(memory, task, of_source, args.out, device=device, is_stopped=is_stopped, show=show):
                return
