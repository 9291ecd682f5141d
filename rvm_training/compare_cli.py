"""Compare encoders on your own videos and in benchmarks: quality, stability, latency and memory."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvm_core.arguments import parse_size
from rvm_core.exit_codes import DISK_FULL, DONE, INCOMPLETE, INTERRUPTED, DiskFullError

if TYPE_CHECKING:
    from rvm_training.compare import Comparison, Protocol

_MODELS = """\
models:
  rvm_s16, trecvit_b16, 4ds_b16 ...     a named size, by its fetched weights, or else random ones, which is marked
  FILE                                  a checkpoint of RVM, TRecViT or 4DS, or the name of other fetched weights
  rvm_s16_image, image:FILE             RVM without memory
  dinov2:FOLDER dinov3:FOLDER           image encoders and
  videomae:FOLDER vjepa2:FOLDER         clip encoders of the transformers library: a folder with config.json and
                                        model.safetensors, or with --online a repository of the hub
  random:NAME, random:dinov2 ...        random weights of that size
  pixels                                raw pixels instead of features

writes to DIR: compare.html, compare.json, compare.csv, compare.png, pictures/, and models/, what each model did, as
soon as it is done: the same command again goes on where it was stopped, and does again only what has changed

exit codes: 0 done, 1 an error that one line explains, 2 wrong usage, 3 something could not be measured, 4 the disk is
full, 130 interrupted; what was done is kept in all cases"""
_MEASURES = ("videos", "tracking", "propagation", "davis2017", "noise_square", "growth")


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `rvm compare`. Its functions import torch only when they run."""
    parser = subparsers.add_parser(
        "compare",
        help=__doc__,
        description="Puts encoders through the same measures: label propagation and its stability over time, a square "
        "of noise that only motion shows, points, boxes and masks in synthetic scenes, PCA and k-means of the features "
        "of your videos, and latency and memory of a frame against the number of frames seen.",
        epilog=_MODELS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", metavar="MODEL", required=True, help="see below")
    parser.add_argument(
        "--data", nargs="+", metavar="PATH", type=Path, default=[], help="your videos, or folders of videos"
    )
    parser.add_argument("--davis", metavar="PATH", type=Path, help="DAVIS 2017 at 480p, for label propagation on it")
    parser.add_argument(
        "--measures", nargs="+", metavar="NAME", choices=_MEASURES, default=list(_MEASURES),
        help=f"only these of {', '.join(_MEASURES)}; default: all for which there is data",
    )  # fmt: skip
    parser.add_argument(
        "--size", metavar="HxW", type=parse_size, default=(256, 256), help="of the frames, pixels; default: 256x256"
    )
    add = parser.add_argument_group("how much")
    add.add_argument("--videos", type=_count, metavar="N", help="at most so many of the videos of --data")
    for option, default, text in (
        ("frames", 48, "of each video"),
        ("stride", 1, "take every Nth frame of a video"),
        ("scenes", 4, "synthetic scenes"),
        ("scene-frames", 48, "of each scene"),
        ("noise-clips", 4, "of the noise square, measured"),
        ("noise-groups", 1, "of four more clips each, to learn from"),
        ("noise-frames", 32, "of each clip"),
        ("growth-frames", 64, "seen, up to which latency and memory are measured"),
    ):
        add.add_argument(f"--{option}", type=_count, metavar="N", default=default, help=f"{text}; default: %(default)s")
    how = parser.add_argument_group("how models are run")
    how.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N; default: cuda where there is one")
    how.add_argument(
        "--causal", action="store_true", help="clip encoders see no later frame: a clip for every frame, slow"
    )
    how.add_argument("--window", type=_count, metavar="N", help="frames that V-JEPA 2 sees at once; default: its own")
    how.add_argument("--online", action="store_true", help="models of the hub may be downloaded")
    parser.add_argument(
        "--out", type=Path, default=Path("out/compare"), metavar="DIR", help="for the results; default: %(default)s"
    )
    parser.set_defaults(run=_run)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)


def _run(args: argparse.Namespace) -> int:
    from rvm_core.exit_codes import disk_full_errors
    from rvm_training.compare import compare

    # What happens to models is said in the report; without a handler Python would print warnings of it.
    logging.getLogger("rvm_core").addHandler(logging.NullHandler())
    protocol = _protocol(args)
    try:
        # Before an hour is spent on figures that cannot be kept.
        with disk_full_errors(str(args.out)):
            args.out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=args.out) as file:
                file.write(b"rvm")
        models = list(dict.fromkeys(args.models))
        with _progress(len(models) * len(protocol.chosen)) as progress:
            comparison = compare(models, protocol, args.out, progress)
        return _show(comparison, args.out)
    except DiskFullError as error:
        print(f"rvm: error: {error}", file=sys.stderr)
        return DISK_FULL


def _protocol(args: argparse.Namespace) -> Protocol:
    import torch

    from rvm_training.compare import Protocol
    from rvm_training.compare_measures import find_user_videos
    from rvm_training.compare_models import Source
    from rvm_training.datasets.davis import Davis2017

    videos = find_user_videos(args.data, args.videos) if args.data else {}
    if args.davis is not None:
        # A folder that is not DAVIS is said before anything is measured.
        Davis2017(args.davis)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Protocol(
        measures=tuple(args.measures),
        videos=videos,
        davis=args.davis.resolve() if args.davis is not None else None,
        image_size=args.size,
        video_frames=args.frames,
        stride=args.stride,
        scenes=args.scenes,
        scene_frames=args.scene_frames,
        noise_clips=args.noise_clips,
        noise_groups=args.noise_groups,
        noise_frames=args.noise_frames,
        growth_frames=args.growth_frames,
        source=Source(device=device, causal=args.causal, window=args.window, online=args.online),
    )


def _show(comparison: Comparison, folder: Path) -> int:
    """Writes and prints the report. Returns the exit code."""
    from rvm_core.bench_plot import PlotError
    from rvm_core.bench_report import describe_machine
    from rvm_training.compare_plot import write_plot
    from rvm_training.compare_report import legend, make_report, make_table, warnings, write_report

    opened = [model for model in comparison.models if model.facts]
    if not opened and not comparison.interrupted:
        raise ValueError("; ".join(f"{model.spec}: {model.problems['model']}" for model in comparison.models))
    report = make_report(comparison, describe_machine())
    written = write_report(report, folder)
    try:
        write_plot(report, folder / "compare.png")
        written.append(folder / "compare.png")
    except PlotError as error:
        print(f"rvm: {error}", file=sys.stderr)
    print(make_table(report), end="\n\n")
    for line in legend(report):
        print(line)
    for line in warnings(report):
        print(f"rvm: {line}", file=sys.stderr)
    print("written: " + ", ".join(map(str, written)))
    if comparison.interrupted:
        return INTERRUPTED
    return INCOMPLETE if any(model.problems for model in comparison.models) else DONE


@contextmanager
def _progress(measures: int) -> Iterator[Callable[[str, float], None]]:
    """A bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    form = "{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total} measures [{elapsed}<{remaining}]"
    with tqdm(total=measures, disable=None, leave=False, bar_format=form) as bar:

        def advance(text: str, done: float) -> None:
            bar.set_description_str(text, refresh=False)
            bar.update(done)

        yield advance
