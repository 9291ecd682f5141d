"""Build engines, list those kept, compare them with the model, delete them."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rvm_core.arguments import BACKENDS, parse_size

if TYPE_CHECKING:
    from rvm_core.engines.cache import CacheEntry
    from rvm_core.streaming import StreamingEncoder


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `rvm engine`. Its functions import torch only when they run."""
    engine = subparsers.add_parser("engine", help=__doc__, description=__doc__)
    actions = engine.add_subparsers(title="actions", metavar="ACTION", required=True)

    build = actions.add_parser("build", help="build an engine and compare it with the model, as the node does at start")
    _add_choice(build, weights_required=True)
    build.add_argument("--fallback", action="store_true", help="try the next backend if one fails, with a warning")
    build.set_defaults(run=_build)

    entries = actions.add_parser("list", help="list the engines that are kept on this machine")
    entries.set_defaults(run=_list)

    check = actions.add_parser(
        "check", help="show how engines compared with float32 torch; with --weights, compare one anew"
    )
    _add_choice(check, weights_required=False)
    check.set_defaults(run=_check)

    clear = actions.add_parser("clear", help="delete all engines that are kept on this machine")
    clear.set_defaults(run=_clear)


def _add_choice(parser: argparse.ArgumentParser, *, weights_required: bool) -> None:
    parser.add_argument(
        "--weights",
        metavar="FILE_OR_NAME",
        required=weights_required,
        help="a checkpoint, or the name of fetched weights",
    )
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="default: %(default)s")
    parser.add_argument("--precision", default="auto", help="fp32, bf16, fp16, int8 or auto; default: %(default)s")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N; default: the backend's best")
    parser.add_argument(
        "--size", metavar="HxW", type=parse_size, default=(256, 256), help="of the frames, pixels; default: 256x256"
    )
    parser.add_argument("--batch", metavar="N", type=int, default=1, help="streams stepped at once; default: 1")


def _build(args: argparse.Namespace) -> int:
    from rvm_core.engines import create_engine

    with _shown() as (say, on_step):
        create_engine(
            _model(args.weights),
            backend=args.backend,
            precision=args.precision,
            image_size=args.size,
            batch_size=args.batch,
            device=args.device,
            fallback=args.fallback,
            progress=say,
            on_gate_step=on_step,
        )
    print("the engine is ready")
    return 0


def _list(args: argparse.Namespace) -> int:
    from rvm_core.engines.cache import EngineCache

    cache = EngineCache()
    entries = cache.list()
    for entry in entries:
        print(_line(entry))
    print(f"{len(entries)} engine{'' if len(entries) == 1 else 's'} in {cache.root}")
    return 0


def _check(args: argparse.Namespace) -> int:
    if args.weights:
        return _check_anew(args)
    from rvm_core.engines.cache import EngineCache

    failed = False
    cache = EngineCache()
    entries = cache.list()
    for entry in entries:
        report = entry.read_gate()
        failed |= report is not None and not report.passed
        print(f"{_line(entry)}\n    {report.figures() if report else 'not compared yet'}")
    if not entries:
        print(f"no engines in {cache.root}")
    return int(failed)


def _check_anew(args: argparse.Namespace) -> int:
    from rvm_core.checkpoint import weights_hash
    from rvm_core.engines import EngineCache, check_engine, create_engine
    from rvm_core.engines.create import keep_report, make_key

    model = _model(args.weights)
    with _shown() as (say, on_step):
        engine = create_engine(
            model,
            backend=args.backend,
            precision=args.precision,
            image_size=args.size,
            batch_size=args.batch,
            device=args.device,
            checked=False,
            progress=say,
        )
        report = check_engine(engine, model, progress=say, on_step=on_step)
        keep_report(EngineCache(), make_key(report.spec, model, weights_hash(model)), report, say)
    print(report.figures())
    return int(not report.passed)


def _clear(args: argparse.Namespace) -> int:
    from rvm_core.engines.cache import EngineCache

    cache = EngineCache()
    count, size = cache.clear()
    print(f"deleted {count} folder{'' if count == 1 else 's'}, {size / 1e6:.1f} MB, from {cache.root}")
    return 0


def _model(weights: str) -> StreamingEncoder:
    from rvm_core.checkpoint import load_encoder
    from rvm_core.weights import find_weights

    return load_encoder(find_weights(weights))


def _line(entry: CacheEntry) -> str:
    key = entry.key
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.created))
    report = entry.read_gate()
    verdict = "not compared" if report is None else "passed" if report.passed else "REFUSED"
    return (
        f"{key.backend} {key.precision} {key.image_size[0]}x{key.image_size[1]} batch {key.batch_size}, "
        f"weights {key.weights[:12]}, {entry.file_bytes / 1e6:.1f} MB, {made}, {verdict}: "
        f"{key.runtime} on {key.hardware}"
    )


@contextmanager
def _shown() -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """Lines of progress on stderr, and a bar for the steps of a comparison on a terminal."""
    from tqdm import tqdm

    # What is logged is shown as progress already; without a handler Python would print warnings once more.
    logging.getLogger("rvm_core").addHandler(logging.NullHandler())
    start = time.monotonic()
    with tqdm(desc="comparing", unit="step", disable=None, leave=False, delay=0.5) as bar:

        def say(line: str) -> None:
            tqdm.write(f"[{time.monotonic() - start:6.1f} s] {line}", file=sys.stderr)

        def on_step(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield say, on_step
