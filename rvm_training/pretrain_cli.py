"""Pretrain a model: masked reconstruction of video, on a TPU pod, a GPU or a CPU."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvm_core.exit_codes import DISK_FULL, DIVERGED, DONE, INTERRUPTED, USAGE, is_disk_full
from rvm_core.stop_request import stop_request
from rvm_training.pretrain_config import PretrainConfig, SourceConfig
from rvm_training.run_folder import RunFolder
from rvm_training.train_extra import needs_train_extra
from rvm_training.train_memory import keep_freed_memory

if TYPE_CHECKING:
    from rvm_training.pretrain import RunOptions
    from rvm_training.train_log import Row

_EPILOG = """\
The same command on every host of a TPU pod, or under Slurm or Open MPI, trains on all their devices; elsewhere the
processes are told of each other with --coordinator, --num-processes and --process-id. All of them need the folder of
--out and the data at the same path.

writes to the folder of --out: config.json, checkpoints/STEP, scalars.jsonl, pictures/STEP.png (the last source frame,
the target as it was shown, as it was reconstructed, as it is), tensorboard/ and loss.png. Ctrl-C or SIGTERM ends the
run after the step with a checkpoint, and --resume goes on with it, also after a crash; the weights are those of a run
that was never interrupted. --resume begins a run where there is none, so that one command can be repeated until done.

exit codes: 0 done, 1 an error that is explained, 2 wrong usage, 4 the disk is full, 6 a loss, gradient or weight is
not finite, 130 interrupted"""
_PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `rvm-train pretrain`. Its functions import jax and torch only when they run."""
    parser = subparsers.add_parser(
        "pretrain",
        help=__doc__,
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", metavar="NAME_OR_FILE",
        help="an experiment, such as rvm_nano, or a .yaml file; default with --resume: that of the run",
    )  # fmt: skip
    parser.add_argument(
        "--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[], dest="changes",
        help="changes of the configuration, such as optimizer.learning_rate=2e-4",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in DIR, if there is one")
    parser.add_argument(
        "--steps", metavar="N", type=int, help="stop after step N; the learning rate falls as for optimizer.steps"
    )
    for name, what in (("data", "to train on"), ("held-out", "of the evaluation loss")):
        parser.add_argument(
            f"--{name}", metavar="[NAME=]PATH[:WEIGHT]", nargs="+", type=parse_source, default=[],
            help=f"clips {what}, in place of those of the configuration",
        )  # fmt: skip
    parser.add_argument("--platform", choices=sorted(_PLATFORMS), help="default: the best that jax finds")
    parser.add_argument(
        "--peak", metavar="NAME", help="accelerator to measure the arithmetic against, such as v6e or h200; default: "
        "the one that is there, by its maker's figure, or a matrix product on it",
    )  # fmt: skip
    hosts = parser.add_argument_group("several processes, where nothing else tells")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    hosts.add_argument("--num-processes", metavar="N", type=int)
    hosts.add_argument("--process-id", metavar="N", type=int)
    parser.set_defaults(run=_run)


def parse_source(text: str) -> SourceConfig:
    """[NAME=]PATH[:WEIGHT]; the name is the last part of the path if it is left out."""
    name, equals, rest = text.partition("=")
    if not equals:
        name, rest = "", text
    match = re.fullmatch(r"(?P<path>.+?)(:(?P<weight>\d+(\.\d*)?))?", rest)
    if not match:
        raise argparse.ArgumentTypeError(f"expected [NAME=]PATH[:WEIGHT], got {text!r}")
    path = match["path"]
    try:
        return SourceConfig(name=name or Path(path).name or path, path=path, weight=float(match["weight"] or 1))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _run(args: argparse.Namespace) -> int:
    folder = RunFolder(args.out)
    if not args.config and not (args.resume and folder.config.is_file()):
        _log("error: --config is missing; only with --resume the configuration of the run in --out is taken")
        return USAGE
    config = _config(args, folder)
    if args.steps is not None and args.steps < 1:
        _log(f"error: --steps must be positive, got {args.steps}")
        return USAGE
    if args.platform:
        os.environ["JAX_PLATFORMS"] = _PLATFORMS[args.platform]
    keep_freed_memory()
    with needs_train_extra():
        from rvm_training import train_devices

        # torchax uses the devices when it is imported, and then it is too late.
        train_devices.join(
            train_devices.Hosts(coordinator=args.coordinator, processes=args.num_processes, process=args.process_id)
        )
        from rvm_training.pretrain import DivergedError, pretrain
    try:
        with _options(args, folder) as options:
            outcome = pretrain(config, options)
    except DivergedError as error:
        _log(f"error: stopped at {error}. {_newest(folder)} A lower learning rate or clip_norm may help")
        return DIVERGED
    except Exception as error:
        if not is_disk_full(error):
            raise
        _log(f"error: the disk is full: {args.out} could not be written. {_newest(folder)} Free some space and go on "
             "with --resume")  # fmt: skip
        return DISK_FULL
    if outcome.interrupted:
        _log(f"interrupted after step {outcome.step}; --resume goes on from there")
        return INTERRUPTED
    if train_devices.is_main():
        print(f"{args.out}: {outcome.step} steps done; `rvm-train export {args.out} --out FILE` writes the weights")
    return DONE


def _config(args: argparse.Namespace, folder: RunFolder) -> PretrainConfig:
    from rvm_training.config_files import changed, load_config

    config = load_config(args.config, args.changes) if args.config else changed(folder.read_config(), args.changes)
    data = config.data
    if args.data:
        data = replace(data, sources=tuple(args.data))
    if args.held_out:
        data = replace(data, held_out=tuple(args.held_out))
    return replace(config, data=data)


@contextmanager
def _options(args: argparse.Namespace, folder: RunFolder) -> Iterator[RunOptions]:
    from rvm_training.data.loader import make_loader
    from rvm_training.peaks import named_peak
    from rvm_training.pretrain import Hooks, RunOptions

    with (
        _progress() as show,
        stop_request(lambda: _log("stopping after this step with a checkpoint; once more to stop at once")) as stop,
    ):
        yield RunOptions(
            folder=folder,
            make_loader=make_loader,
            resume=args.resume,
            stop_after=args.steps,
            peak=named_peak(args.peak) if args.peak else None,
            hooks=Hooks(is_stopped=stop.is_set, say=_say, show=show),
        )


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar on a terminal; elsewhere a line for each row of the log."""
    from tqdm import tqdm

    with tqdm(unit="step", disable=None, leave=False, dynamic_ncols=True, smoothing=0.05) as bar:
        shown = 0

        def show(step: int, last: int, row: Row) -> None:
            nonlocal shown
            is_new = row.get("step", 0) != shown
            shown = row.get("step", 0)
            if bar.disable:
                if is_new:
                    print(f"step {shown}/{last}: {_numbers(row)}", flush=True)
                return
            if bar.total is None:
                bar.total, bar.initial, bar.n = last, step - 1, step - 1
            if is_new:
                bar.set_postfix_str(_numbers(row), refresh=False)
            bar.update(1)

        yield show


_SHOWN = (
    ("loss", "loss {:.5f}"),
    ("eval_loss", "held out {:.5f}"),
    ("gradient_norm", "gradient {:.3g}"),
    ("learning_rate", "rate {:.2e}"),
    ("examples_per_s", "{:.1f} examples/s"),
    ("mfu", "MFU {:.1%}"),
    ("data_wait", "waits {:.0%} for data"),
    ("skipped_clips", "{} clips not readable"),
)


def _numbers(row: Row) -> str:
    return ", ".join(text.format(row[key]) for key, text in _SHOWN if key in row)


def _newest(folder: RunFolder) -> str:
    steps = folder.steps()
    return f"The newest checkpoint is that of step {steps[-1]}." if steps else "There is no checkpoint."


def _say(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def _log(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"rvm-train pretrain: {line}", file=sys.stderr)
