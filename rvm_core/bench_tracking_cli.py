"""Measure tracking beside its plain computation and beside the engine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvm_core.arguments import BACKENDS, parse_size
from rvm_core.bench_cli import show_progress
from rvm_core.config import ENCODER_NAMES

if TYPE_CHECKING:
    from rvm_core.bench import Progress
    from rvm_core.bench_tracking import SizeMeasurement, TrackingOptions
    from rvm_core.engines import Engine
    from rvm_core.streaming import StreamingEncoder

_DESCRIPTION = """\
Measures, in one process and in turns from frame to frame: a frame of label propagation as the protocol states it and as
it is computed frame by frame, with a check that both give the same; and a frame of the training-free tracker beside a
step of the engine. Writes bench_tracking.json; Ctrl-C writes what is there."""
_FILE = "bench_tracking.json"


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `rvm bench-tracking`. Its functions import torch only when they run."""
    parser = subparsers.add_parser("bench-tracking", help=__doc__, description=_DESCRIPTION)
    parser.add_argument("--weights", metavar="FILE", help="a checkpoint, or the name of fetched weights")
    parser.add_argument(
        "--model", choices=ENCODER_NAMES, default="rvm_s16",
        help="without --weights: the size, with random weights (default: rvm_s16)",
    )  # fmt: skip
    parser.add_argument(
        "--features", choices=("model", "random"), default="model",
        help="of the bundled clip by the model, or normal random ones, which is quicker (default: model)",
    )  # fmt: skip
    parser.add_argument(
        "--sizes", nargs="+", metavar="HxW", type=parse_size, default=[(256, 256), (480, 880)],
        help="heights and widths in pixels, multiples of 16 (default: 256x256 480x880)",
    )  # fmt: skip
    parser.add_argument("--context", type=int, default=20, metavar="N", help="newest frames matched with (default: 20)")
    parser.add_argument("--points", type=int, default=256, metavar="N", help="(default: 256)")
    parser.add_argument("--boxes", type=int, default=32, metavar="N", help="(default: 32)")
    parser.add_argument("--steps", type=int, default=30, metavar="N", help="measured frames of each (default: 30)")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="(default: auto)")
    parser.add_argument("--precision", default="auto", help="of the engine (default: the backend's native one)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the backend's best)")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), metavar="DIR", help="(default: out/bench)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from rvm_core.bench_report import describe_machine, write_json
    from rvm_core.bench_tracking import SizeMeasurement, TrackingOptions, count_turns
    from rvm_core.bench_tracking_report import make_report, make_tables

    options = TrackingOptions(
        context=args.context,
        points=args.points,
        boxes=args.boxes,
        steps=args.steps,
        random_features=args.features == "random",
    )
    machine = describe_machine()
    sizes = [SizeMeasurement(image_size=size) for size in dict.fromkeys(args.sizes)]
    model, text = _load_model(args)
    args.out.mkdir(parents=True, exist_ok=True)
    interrupted = False
    with show_progress(count_turns(len(sizes), options)) as progress:
        try:
            _measure(sizes, model, args, options, progress)
        except KeyboardInterrupt:
            interrupted = True
    report = make_report(sizes, options, text, machine, interrupted=interrupted)
    write_json(report, args.out / _FILE)
    print(f"{machine['cpu']} ({' '.join(machine['cpu_flags'])}), {report['machine']['threads']} threads; {text}")
    print(f"\n{make_tables(report)}\n")
    if interrupted:
        print("rvm: interrupted; the rest was not measured", file=sys.stderr)
    print(f"written: {args.out / _FILE}")
    if wrong := [size for size in sizes if not size.propagation.identical]:
        height, width = wrong[0].image_size
        raise RuntimeError(f"at {height}x{width} the two ways of label propagation do not give the same")
    return 130 if interrupted else 0


def _measure(
    sizes: list[SizeMeasurement],
    model: StreamingEncoder,
    args: argparse.Namespace,
    options: TrackingOptions,
    progress: Progress,
) -> None:
    from rvm_core.bench_tracking import measure_size

    for size in sizes:
        progress("loading the engine")
        measure_size(size, _make_engine(model, size.image_size, args), options, progress)


def _make_engine(model: StreamingEncoder, image_size: tuple[int, int], args: argparse.Namespace) -> Engine:
    from rvm_core.engines import create_engine

    return create_engine(
        model,
        backend=args.backend,
        precision=args.precision,
        image_size=image_size,
        device=args.device,
        checked=False,
    )


def _load_model(args: argparse.Namespace) -> tuple[StreamingEncoder, str]:
    """The model, and whose features these are."""
    from rvm_core.encoders import open_encoder
    from rvm_core.weights import find_weights

    weights = "given weights" if args.weights else "random weights"
    model = open_encoder(args.model, find_weights(args.weights) if args.weights else None)
    features = "random features" if args.features == "random" else "features of the bundled clip"
    return model, f"{model.config.name or 'a model'} with {weights}, {features}"
