"""Compare pretraining settings with equal budgets and several seeds, beside no training and raw pixels."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rvm_training.ablation import Ablation, Task

_VARIANTS = ("nano_4_frames", "nano_2_frames", "nano_1_frame", "nano_self_attention")


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `rvm-train ablate`."""
    parser = subparsers.add_parser(
        "ablate",
        help=__doc__,
        description="Pretrains each configuration with each seed and measures on held-out data: reconstruction loss, "
        "points, boxes and masks followed by the features alone, and a square of noise that only motion shows. The "
        "same command goes on where it was interrupted, and with more seeds adds those.",
        epilog="writes to DIR: ablation.md, ablation.json, ablation.png, and a folder for each run",
    )
    parser.add_argument(
        "--configs", nargs="+", default=list(_VARIANTS), metavar="NAME",
        help=f"experiments or YAML files; default: {' '.join(_VARIANTS)}",
    )  # fmt: skip
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="changes of all of them, such as batch_size=8",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, metavar="N", help="of each run; the learning rate falls over them")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many; default: %(default)s")
    parser.add_argument("--scenes", type=int, default=10, metavar="N", help="held-out scenes; default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once, each on its part of the cores")
    parser.add_argument("--out", type=Path, default=Path("out/ablation"), metavar="DIR", help="default: %(default)s")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from rvm_core.bench_plot import PlotError
    from rvm_core.bench_report import describe_machine
    from rvm_core.exit_codes import DONE, INTERRUPTED
    from rvm_core.stop_request import stop_request
    from rvm_training.ablation import missing, open_folder, read_results, run_task
    from rvm_training.ablation_report import make_report, make_table, write_report
    from rvm_training.run_at_once import run_at_once
    from rvm_training.train_memory import keep_freed_memory

    keep_freed_memory()
    ablation = _ablation(args)
    open_folder(ablation, args.out)
    with stop_request(lambda: print("rvm-train: saving, then stopping", file=sys.stderr)) as stop:
        if args.jobs > 1:
            runs = [partial(run_task, ablation, task, args.out) for task in missing(ablation, args.out)]
            run_at_once(runs, args.jobs, stop.is_set)
        else:
            _run_in_turn(ablation, missing(ablation, args.out), args.out, stop.is_set)
    report = make_report(ablation, read_results(ablation, args.out), describe_machine())
    print(make_table(report))
    try:
        written = write_report(report, args.out)
        print("written: " + ", ".join(map(str, written)))
    except PlotError as error:
        print(f"rvm-train: {error}", file=sys.stderr)
    return DONE if report["complete"] else INTERRUPTED


def _ablation(args: argparse.Namespace) -> Ablation:
    from rvm_training.ablation import Ablation
    from rvm_training.config_files import load_config

    variants = {}
    for name in args.configs:
        config = load_config(name, args.set)
        if args.steps is not None:
            config = replace(config, optimizer=replace(config.optimizer, steps=args.steps))
        variants[Path(name).stem] = config
    return Ablation(variants=variants, seeds=tuple(range(args.seeds)), scenes=args.scenes)


def _run_in_turn(ablation: Ablation, todo: list[Task], root: Path, is_stopped: Callable[[], bool]) -> None:
    from tqdm import tqdm

    from rvm_training.ablation import run_task

    with tqdm(todo, unit="run", disable=None) as bar:
        for task in bar:
            bar.set_description(f"{task.name}, seed {task.seed}")
            if is_stopped() or not run_task(ablation, task, root, is_stopped=is_stopped):
                return
