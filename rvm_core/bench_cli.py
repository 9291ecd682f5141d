"""Measure engines beside plain torch: time, memory, share of the peak."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvm_core.arguments import parse_size
from rvm_core.config import ENCODER_NAMES

if TYPE_CHECKING:
    from rvm_core.bench import EngineChoice, Group, Options, Progress


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `rvm bench`. Its functions import torch only when they run."""
    parser = subparsers.add_parser(
        "bench",
        help=__doc__,
        description="Measures engines beside the plain eager torch step in fp32 and bf16 and beside a large matrix "
        "product, in turns. Writes bench.json and bench.png; Ctrl-C writes what is there.",
    )
    parser.add_argument(
        "--models", nargs="+", metavar="NAME", choices=ENCODER_NAMES, default=["rvm_s16"],
        help="named sizes, measured with random weights (default: rvm_s16)",
    )  # fmt: skip
    parser.add_argument("--weights", metavar="FILE", help="a checkpoint, or the name of fetched weights, not --models")
    parser.add_argument(
        "--engines", nargs="+", metavar="ENGINE", default=["auto"],
        help="RUNTIME:PRECISION, as torch:bf16; RUNTIME in its native precision; auto: every runtime here (default)",
    )  # fmt: skip
    parser.add_argument("--device", help="cpu or cuda:N (default: the best that each runtime sees)")
    parser.add_argument(
        "--sizes", nargs="+", metavar="HxW", type=parse_size, default=[(256, 256)],
        help="heights and widths in pixels, multiples of 16 (default: 256x256)",
    )  # fmt: skip
    parser.add_argument(
        "--cameras", nargs="+", metavar="N", type=int, default=[1],
        help="numbers of cameras; several are measured as a batch and in turns (default: 1)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=60, metavar="N", help="measured steps of each (default: 60)")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="then N steps for the growth of memory")
    parser.add_argument("--cores", type=int, metavar="N", help="use so many processor cores (default: all)")
    parser.add_argument("--check", action="store_true", help="have each engine pass the numeric gate first")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), metavar="DIR", help="(default: out/bench)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from rvm_core.bench import Options, choose_engines, count_turns, measure_group, preprocess_group
    from rvm_core.bench_report import describe_machine

    options = Options(steps=args.steps, soak=args.soak, check=args.check, cores=args.cores)
    machine = describe_machine()
    groups = [preprocess_group(args.sizes), *_groups(args, choose_engines(args.engines, args.device), options)]
    args.out.mkdir(parents=True, exist_ok=True)
    interrupted = False
    with show_progress(count_turns(groups, options)) as progress:
        try:
            for group in groups:
                measure_group(group, options, progress)
        except KeyboardInterrupt:
            interrupted = True
    _write(groups, options, machine, args.out, interrupted=interrupted)
    return 130 if interrupted else 0


def _groups(args: argparse.Namespace, engines: list[EngineChoice], options: Options) -> Iterator[Group]:
    from rvm_core.bench import Workload, make_group

    weights, models = None, list(dict.fromkeys(args.models))
    if args.weights:
        from rvm_core.checkpoint import read_info
        from rvm_core.weights import find_weights

        weights = find_weights(args.weights)
        models = [read_info(weights).config.name]
    for model in models:
        for size in dict.fromkeys(args.sizes):
            for cameras in dict.fromkeys(args.cameras):
                for arrangement in ("batch", "turns") if cameras > 1 else ("batch",):
                    workload = Workload(
                        model=model, image_size=size, cameras=cameras, arrangement=arrangement, weights=weights
                    )
                    yield make_group(workload, engines, options)


def _write(groups: list[Group], options: Options, machine: dict[str, Any], folder: Path, *, interrupted: bool) -> None:
    from rvm_core.bench_plot import PlotError, write_plot
    from rvm_core.bench_report import make_report, make_table, write_json

    report = make_report(groups, options, machine, interrupted=interrupted)
    write_json(report, folder / "bench.json")
    written = [folder / "bench.json"]
    print(f"{machine['cpu']} ({' '.join(machine['cpu_flags'])}), {report['machine']['threads']} threads")
    print(", ".join(f"{name} {version}" for name, version in machine["packages"].items()), end="\n\n")
    print(make_table(report), end="\n\n")
    try:
        write_plot(report, folder / "bench.png")
        written.append(folder / "bench.png")
    except PlotError as error:
        print(f"rvm: {error}", file=sys.stderr)
    if interrupted:
        print("rvm: interrupted; the rest was not measured", file=sys.stderr)
    print("written: " + ", ".join(map(str, written)))


@contextmanager
def show_progress(turns: int) -> Iterator[Progress]:
    """A bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    with tqdm(total=turns, unit="turn", disable=None, leave=False) as bar:

        def advance(text: str, steps: int = 0) -> None:
            bar.set_description(text, refresh=False)
            bar.update(steps)

        yield advance
