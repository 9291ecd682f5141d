"""The part of `rvm replay` that is about folders of recordings."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rvm_core.exit_codes import DISK_FULL, DONE, ERROR, INCOMPLETE, INTERRUPTED

if TYPE_CHECKING:
    from rvm_perception.parameters import NodeParameters
    from rvm_perception.recording_worker import Outcome
    from rvm_perception.replay_job import ReplayOptions

BAD_RECORDING = 5
"""Exit code for recordings none of which can be used."""


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds the options for a BAG that is a folder of recordings, and --threads."""
    group.add_argument(
        "--jobs", metavar="N", type=_positive,
        help="recordings replayed at a time, each in a process; default: by the processors or GPUs there are",
    )  # fmt: skip
    group.add_argument(
        "--threads", metavar="N", type=_positive,
        help="of each process; results may depend on it, never on --jobs; default: 4, or as many as there are "
        "processors; for a single recording: what the runtime takes",
    )  # fmt: skip
    group.add_argument(
        "--ray", metavar="ADDRESS",
        help="on a Ray cluster: host:port, auto for the one this machine is part of, or local for one that is started "
        "here; all machines need rvm_perception, and the same paths",
    )  # fmt: skip


def run_many(
    args: argparse.Namespace,
    parameters: NodeParameters,
    options: ReplayOptions,
    is_stopped: Callable[[], bool],
    log: Callable[[str], None],
) -> int:
    """Replays the recordings in the folder `args.bag`, prints the table, and returns the exit code."""
    from rvm_perception.recordings_page import table_text
    from rvm_perception.replay_many import replay_many

    outcomes = replay_many(
        args.bag, args.out, parameters, options,
        jobs=args.jobs, threads=args.threads, ray=args.ray, is_stopped=is_stopped, log=log,
    )  # fmt: skip
    print(table_text(args.out))
    code = exit_code(outcomes)
    if code in (INTERRUPTED, DISK_FULL):
        log("not all was done; the same command with --resume goes on from here")
    return code


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """What the command returns: how bad the worst is, and whether there is any result at all."""
    counts = Counter(outcome.status for outcome in outcomes)
    if counts["full"]:
        return DISK_FULL
    if counts["interrupted"]:
        return INTERRUPTED
    if counts["done"] == len(outcomes):
        return DONE
    if counts["done"] or counts["recovered"]:
        return INCOMPLETE
    return BAD_RECORDING if counts["bad"] == len(outcomes) else ERROR


def _positive(text: str) -> int:
    if not (text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, got {text!r}")
    return int(text)
