"""Measure features on benchmarks, beside published values or simple baselines."""

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
from rvm_training.evaluation.command import add_benchmarks, add_model_options, load_model

if TYPE_CHECKING:
    from rvm_training.evaluators.synthetic import Evaluation, Method

FIRST_SEED = 1000
"""Scenes before it are there to choose settings and to calibrate confidences with."""
_LEAST_FRAMES = 2


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `rvm eval`. Its functions import torch only when they run."""
    parser = subparsers.add_parser("eval", help=__doc__, description=__doc__)
    kinds = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    add_benchmarks(kinds)
    synthetic = kinds.add_parser(
        "synthetic",
        help="points, boxes and masks in synthetic scenes with exact ground truth",
        description="Follows points, boxes and masks through synthetic scenes by RVM's features, by raw pixels and "
        "histograms of colours in their place, and by optical flow. Writes synthetic.json, synthetic.png and "
        "tracks.png; Ctrl-C writes what is there.",
    )
    add_model_options(synthetic)
    synthetic.add_argument("--scenes", type=_count(1), default=10, metavar="N", help="default: %(default)s")
    synthetic.add_argument(
        "--frames", type=_count(_LEAST_FRAMES), default=24, metavar="N", help="of each scene; default: %(default)s"
    )
    synthetic.add_argument("--points", type=_count(1), default=32, metavar="N", help="default: %(default)s")
    synthetic.add_argument("--objects", type=_count(1), default=4, metavar="N", help="default: %(default)s")
    synthetic.add_argument(
        "--size", metavar="HxW", type=parse_size, default=(256, 256), help="of the frames, pixels; default: 256x256"
    )
    synthetic.add_argument(
        "--seed", type=_count(0), default=FIRST_SEED, metavar="N", help="of the first scene; default: %(default)s"
    )
    synthetic.add_argument(
        "--out", type=Path, default=Path("out/eval"), metavar="DIR", help="for the results; default: %(default)s"
    )
    synthetic.set_defaults(run=_synthetic)


def _count(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of {least} or more, got {text!r}")
        return int(text)

    return parse


def _synthetic(args: argparse.Namespace) -> int:
    from rvm_training.data.scenes import SceneConfig
    from rvm_training.evaluators.synthetic import Evaluation, evaluate

    height, width = args.size
    config = SceneConfig(
        height=height, width=width, num_frames=args.frames, num_points=args.points, num_objects=args.objects
    )
    # Before an hour is spent on figures that cannot be kept.
    _check_writable(args.out)
    methods = _methods(args)
    evaluation = Evaluation(config, [method.name for method in methods])
    interrupted = False
    with _progress(args.scenes * args.frames * len(methods)) as progress:
        try:
            evaluate(methods, evaluation, range(args.seed, args.seed + args.scenes), progress)
        except KeyboardInterrupt:
            interrupted = True
    if interrupted and not evaluation.scores:
        raise KeyboardInterrupt
    _write(evaluation, args, interrupted=interrupted)
    return 130 if interrupted else 0


def _check_writable(folder: Path) -> None:
    """Raises `OSError` if no files can be made there."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _methods(args: argparse.Namespace) -> list[Method]:
    from rvm_core.config import PATCH_SIZE
    from rvm_core.engines import create_engine
    from rvm_core.tracking import FeatureTracker
    from rvm_training.evaluators.synthetic import baseline_methods, engine_method

    model, name = load_model(args)
    # The comparison with the model is logged; without a handler Python would print warnings of it.
    logging.getLogger("rvm_core").addHandler(logging.NullHandler())
    engine = create_engine(
        model,
        backend=args.backend,
        precision=args.precision,
        image_size=args.size,
        device=args.device,
        progress=lambda line: print(line, file=sys.stderr),
    )
    tracker = FeatureTracker(grid=(args.size[0] // PATCH_SIZE, args.size[1] // PATCH_SIZE))
    return [engine_method(name, engine, tracker), *baseline_methods(tracker)]


def _write(evaluation: Evaluation, args: argparse.Namespace, *, interrupted: bool) -> None:
    from rvm_core.bench_plot import PlotError
    from rvm_core.bench_report import describe_machine
    from rvm_training.eval_picture import write_picture
    from rvm_training.eval_plot import write_plot
    from rvm_training.eval_report import LEGEND, make_report, make_table, write_json

    machine = describe_machine()
    options = {"weights": args.weights, "random_weights": bool(args.model)}
    options |= {name: getattr(args, name) for name in ("backend", "precision", "device")}
    report = make_report(evaluation, machine, options, interrupted=interrupted)
    written = [args.out / "synthetic.json"]
    write_json(report, written[0])
    size = "x".join(map(str, args.size))
    print(f"{len(evaluation.seeds)} scenes of {args.frames} frames of {size}, {machine['cpu']}")
    print(f"{args.points} points, {args.objects} boxes and as many masks in each", end="\n\n")
    print(make_table(report), LEGEND, sep="\n\n", end="\n\n")
    if evaluation.shown:
        written.append(args.out / "tracks.png")
        write_picture(*_shown(evaluation), written[-1])
    try:
        write_plot(report, args.out / "synthetic.png")
        written.append(args.out / "synthetic.png")
    except PlotError as error:
        print(f"rvm: {error}", file=sys.stderr)
    if interrupted:
        print("rvm: interrupted; the other scenes were not measured", file=sys.stderr)
    print("written: " + ", ".join(map(str, written)))


def _shown(evaluation: Evaluation) -> tuple[Any, list[str], Any]:
    assert evaluation.shown
    scene, followed = evaluation.shown
    return scene, evaluation.methods, followed


@contextmanager
def _progress(frames: int) -> Iterator[Callable[[str, int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    with tqdm(total=frames, unit="frame", disable=None, leave=False) as bar:

        def advance(text: str, done: int) -> None:
            bar.set_description(text, refresh=False)
            bar.update(done)

        yield advance
