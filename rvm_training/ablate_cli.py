"""Compare pretraining settings with equal budgets and several seeds, beside no training and raw pixels."""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
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
    from rvm_training.ablation import missing, open_folder, read_results
    from rvm_training.ablation_report import make_report, make_table, write_report
    from rvm_training.train_memory import keep_freed_memory

    keep_freed_memory()
    ablation = _ablation(args)
    open_folder(ablation, args.out)
    with stop_request(lambda: print("rvm-train: saving, then stopping", file=sys.stderr)) as stop:
        if args.jobs > 1:
            _run_at_once(ablation, missing(ablation, args.out), args.out, args.jobs, stop.is_set)
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


def _run_at_once(ablation: Ablation, todo: list[Task], root: Path, jobs: int, is_stopped: Callable[[], bool]) -> None:
    """Each run in a process of its own, which never sees a signal: it is told of the end by a flag, and saves."""
    from tqdm import tqdm

    from rvm_training.data.pool import SPAWN, blocked_signals, start_pool

    flag = SPAWN.RawValue(ctypes.c_bool, False)
    running: dict[Future[bool], int] = {}
    pools = [start_pool(1, _start, index, jobs, flag) for index in range(jobs)]
    try:
        with tqdm(total=len(todo), unit="run", disable=None) as bar:
            while running or (todo and not is_stopped()):
                flag.value = is_stopped()
                for index in sorted(set(range(jobs)) - set(running.values())):
                    if todo and not is_stopped():
                        with blocked_signals():
                            running[pools[index].submit(_task, ablation, todo.pop(0), root)] = index
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    del running[future]
                    bar.update(bool(future.result()))
    finally:
        for pool in pools:
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)


# In the process of a run.

_stopped: Any


def _start(index: int, jobs: int, flag: Any) -> None:
    from rvm_training.ablation import share_of_cores

    global _stopped
    _stopped = flag
    share_of_cores(index, jobs)


def _task(ablation: Ablation, task: Task, root: Path) -> bool:
    from rvm_training.ablation import run_task

    return run_task(ablation, task, root, is_stopped=lambda: bool(_stopped.value))
