"""The command of every benchmark in the registry: `rvm eval NAME --data PATH`. Torch is imported only when it runs."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvm_core.arguments import BACKENDS
from rvm_core.config import ENCODER_NAMES
from rvm_core.exit_codes import DISK_FULL, DONE, INCOMPLETE, INTERRUPTED, DiskFullError
from rvm_training.evaluation.registry import ENTRIES, Entry, count

if TYPE_CHECKING:
    from rvm_core.streaming import StreamingEncoder
    from rvm_training.evaluation.features import EngineEncoder
    from rvm_training.evaluation.runner import Run

_DEFAULT_WEIGHTS = "rvm_nano"
_EPILOG = """\
writes to DIR/NAME: report.html, report.json, report.csv, pictures/, and videos/, a file with the result of each video
as soon as it is done: the same command again goes on where it was stopped, and does again only what has changed

exit codes: 0 done, 1 an error that one line explains, 2 wrong usage, 3 some videos could not be used, 4 the disk is
full, 130 interrupted; what was done is kept in all cases"""


def add_benchmarks(kinds: argparse._SubParsersAction[Any]) -> None:
    """Adds a parser for each benchmark."""
    for entry in ENTRIES:
        parser = kinds.add_parser(
            entry.name,
            help=entry.help,
            description=f"{entry.help[0].upper()}{entry.help[1:]}.",
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if entry.data:
            parser.add_argument("--data", metavar="PATH", type=Path, required=True, help=entry.data)
        add_model_options(parser)
        own = parser.add_argument_group("of this benchmark")
        entry.options(own)
        parser.add_argument(
            "--out", type=Path, default=Path("out/eval"), metavar="DIR", help="for the results; default: %(default)s"
        )
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--videos", nargs="+", metavar="ID", help="only these videos")
        which.add_argument("--limit", type=count, metavar="N", help="only the first N videos")
        if entry.data:
            parser.add_argument(
                "--hash-data",
                action="store_true",
                help="tell the data by what is in its files instead of by when they were changed",
            )
        parser.set_defaults(run=partial(_run, entry))


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds what chooses the model and the engine."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--weights", metavar="FILE_OR_NAME",
        help=f"a checkpoint, or the name of fetched weights (default: {_DEFAULT_WEIGHTS}, which ship)",
    )  # fmt: skip
    which.add_argument(
        "--model", metavar="NAME", choices=ENCODER_NAMES,
        help="a model with random weights, which show what training is worth",
    )  # fmt: skip
    parser.add_argument(
        "--image", action="store_true", help="RVM without memory, an image encoder: its state is reset at every frame"
    )
    parser.add_argument("--backend", choices=BACKENDS, default="torch", help="default: %(default)s")
    parser.add_argument("--precision", default="auto", help="fp32, bf16, fp16 or auto; default: %(default)s")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N; default: the backend's best")


def load_model(args: argparse.Namespace) -> tuple[StreamingEncoder, str]:
    """The model and what its row is called."""
    from rvm_core.encoders import make_encoder, without_memory

    if args.model:
        if args.image:
            model = without_memory(make_encoder(args.model))
            return model, f"{model.config.name} (random weights)"
        return make_encoder(args.model), f"{args.model} (random weights)"
    from rvm_core.checkpoint import load_encoder
    from rvm_core.weights import find_weights

    path = find_weights(args.weights or _DEFAULT_WEIGHTS)
    model = without_memory(load_encoder(path)) if args.image else load_encoder(path)
    return model, f"{model.config.name} ({path.name})"


def _run(entry: Entry, args: argparse.Namespace) -> int:
    from rvm_training.evaluation.runner import run

    folder = args.out / entry.name
    root = args.data.resolve() if entry.data else None
    try:
        # Before an hour is spent on figures that cannot be kept.
        _check_writable(folder)
        create = import_module(f"rvm_training.evaluators.{entry.module}").create
        if root is not None and not root.is_dir() and not root.is_file():
            raise ValueError(f"there is nothing at {args.data}; --data is the {entry.data}")
        encoder = _encoder(args)
        benchmark = create(argparse.Namespace(**(vars(args) | {"data": root})), encoder)
        videos = args.videos or benchmark.videos()[: args.limit]
        with _progress(len(videos)) as progress:
            done = run(
                benchmark,
                encoder,
                folder,
                root=root,
                videos=videos,
                hash_contents=getattr(args, "hash_data", False),
                progress=progress,
            )
        return _show(done, folder)
    except DiskFullError as error:
        print(f"rvm: error: {error}", file=sys.stderr)
        return DISK_FULL


def _check_writable(folder: Path) -> None:
    """Raises `OSError` if no files can be made there, `DiskFullError` if there is no room."""
    from rvm_core.exit_codes import disk_full_errors

    with disk_full_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"rvm")


def _encoder(args: argparse.Namespace) -> EngineEncoder:
    from rvm_training.evaluation.features import EngineEncoder

    # The comparison with the model is logged; without a handler Python would print warnings of it.
    logging.getLogger("rvm_core").addHandler(logging.NullHandler())
    return EngineEncoder(
        lambda: load_model(args),
        random=bool(args.model),
        backend=args.backend,
        precision=args.precision,
        device=args.device,
        progress=lambda line: print(line, file=sys.stderr),
    )


def _show(done: Run, folder: Path) -> int:
    """Writes and prints the report. Returns the exit code."""
    from rvm_core.bench_report import describe_machine
    from rvm_training.evaluation.report import legend, make_table, report_run, warnings

    for video, why in done.failed.items():
        print(f"rvm: {video} could not be used: {why}", file=sys.stderr)
    if not done.results:
        if done.interrupted:
            raise KeyboardInterrupt
        raise ValueError("no video could be evaluated")
    report, written = report_run(done, folder, describe_machine())
    kept = f", {done.reused} of them by an earlier run" if done.reused else ""
    print(f"{report['title']}: {len(done.results)} of {done.all_videos} videos{kept}", end="\n\n")
    print(make_table(report), end="\n\n")
    for line in [*legend(report), *report["notes"], *warnings(report)]:
        print(line)
    print(f"fingerprint: {report['fingerprint']['all']}")
    print("written: " + ", ".join(map(str, written)))
    if done.interrupted:
        print("rvm: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    return INCOMPLETE if done.failed else DONE


@contextmanager
def _progress(videos: int) -> Iterator[Callable[[str, float], None]]:
    """A bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    form = "{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total} videos [{elapsed}<{remaining}]"
    with tqdm(total=videos, disable=None, leave=False, bar_format=form) as bar:

        def advance(text: str, done: float) -> None:
            bar.set_description_str(text, refresh=False)
            bar.update(done)

        yield advance
