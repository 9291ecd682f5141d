"""What a training step costs on a slice of TPUs: memory, FLOPs, collectives, hours; needs no TPU."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rvm_training.plan import Plan
    from rvm_training.pretrain_config import PretrainConfig

_SIZES = ("S", "B", "L", "H")


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `rvm-train plan`."""
    parser = subparsers.add_parser(
        "plan",
        help=__doc__,
        description="Compiles the step of `rvm-train pretrain` with the TPU's compiler, which runs on any machine, and "
        "prints what it takes: memory, FLOPs as compiled and by the model's formula, collectives, and the hours of a "
        "training run at an assumed utilisation. Takes minutes a size. Several sizes make a Markdown table.",
        epilog="exit status: 1 if none of them fits into the memory of a device, 3 if only some do",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--size", nargs="+", choices=_SIZES, metavar="SIZE", help=f"{', '.join(_SIZES)}: the paper's")
    which.add_argument("--config", nargs="+", metavar="NAME", help="experiments or YAML files")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="changes of the configurations"
    )
    parser.add_argument("--topology", default="v6e:16x16", metavar="NAME", help="slice; default: %(default)s")
    parser.add_argument("--batch", type=int, metavar="N", help="examples of a step; default: the configuration's")
    parser.add_argument(
        "--mfu", type=float, default=0.4, metavar="SHARE",
        help="assumed share of the peak at which the model's FLOPs are done; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--examples", type=float, default=2e9, metavar="N", help="of the run; default: %(default)g")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write it there too")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from rvm_core.atomic import atomic_file
    from rvm_core.exit_codes import DONE, ERROR, INCOMPLETE
    from rvm_training.plan_report import Budget, make_report, make_table

    budget = Budget(args.examples, args.mfu)
    if not 0 < budget.mfu <= 1 or budget.examples <= 0:
        raise ValueError(f"expected --mfu in (0, 1] and --examples over 0, got {budget.mfu} and {budget.examples}")
    plans, failures = _plan(args)
    if args.json:
        text = json.dumps(make_report(plans, failures, budget), indent=2)
    else:
        text = make_table(plans, {name: f"has no plan: {failure}" for name, failure in failures.items()}, budget)
    print(text)
    if args.out:
        with atomic_file(args.out) as path:
            path.write_text(text + "\n", encoding="utf-8")
    for name, failure in failures.items():
        print(f"rvm-train plan: {name} {failure}", file=sys.stderr)
    if not failures:
        return DONE
    return INCOMPLETE if plans else ERROR


def _plan(args: argparse.Namespace) -> tuple[dict[str, Plan], dict[str, str]]:
    """Plans by the names of their configurations, and why others have none. Wrong arguments are errors at once."""
    from rvm_training.plan import PlanError, make_plan
    from rvm_training.tpu_topology import Topology

    topology = Topology(args.topology)
    configs = {name: _config(name, args) for name in args.config or [f"rvm_{size.lower()}16" for size in args.size]}
    plans, failures = {}, {}
    for name, config in configs.items():
        print(f"rvm-train plan: compiling {name} for {topology.name}, minutes", file=sys.stderr)
        try:
            plans[name] = make_plan(config, topology)
        except PlanError as error:
            failures[name] = str(error)
    return plans, failures


def _config(name: str, args: argparse.Namespace) -> PretrainConfig:
    from rvm_training.config_files import load_config

    config = load_config(name, args.set)
    return replace(config, batch_size=args.batch) if args.batch is not None else config
