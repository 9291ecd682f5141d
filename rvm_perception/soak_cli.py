"""Run the node on this machine under thousands of random faults and measure how it stands them.

Frames that are late, doubled, damaged, of other sizes; engines that raise, return NaN or run out of memory; calls,
stops, kill -9: the real node in a process of its own, over real DDS. Every output is then computed again from the
accepted frames alone and compared bit for bit.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvm_core.arguments import parse_size

if TYPE_CHECKING:
    from rvm_perception.soak_run import Soak, SoakPlan

FRAMES = 20_000
_KILL_SHARE = 0.1
"""Part of the frames that are sent between the kills."""
_EPILOG = """\
writes to the folder of --out: soak.json, and the logs of every process of the node

exit codes: 0 no crash, no silent change of the state, and all counts add up; 1 otherwise, or it could not be measured;
130 interrupted"""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the subcommand `soak` to `rvm`."""
    parser = subparsers.add_parser(
        "soak",
        help=(__doc__ or "").splitlines()[0],
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--frames", type=int, default=FRAMES, help="to be sent; default: %(default)s")
    parser.add_argument("--kills", type=int, default=5, help="so often kill -9; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the faults; default: %(default)s")
    parser.add_argument(
        "--weights", default="", metavar="FILE_OR_NAME",
        help="default: a tiny model made on the spot, as it is the node that is tested",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=parse_size, default=(64, 64), metavar="HxW", help="of the model's input; default: 64x64"
    )
    parser.add_argument("--backend", default="torch", help="as the node's parameter; default: %(default)s")
    parser.add_argument("--precision", default="fp32", help="likewise; default: %(default)s")
    parser.add_argument("--device", default="cpu", help="likewise; default: %(default)s")
    parser.add_argument(
        "--overload", type=float, default=20.0, metavar="SECONDS", help="of three times too many frames; 0: none"
    )
    parser.add_argument(
        "--delivery", type=int, default=90, metavar="IMAGES", help="of each size, QoS and profile; 0: none"
    )
    parser.add_argument(
        "--delivery-sizes", nargs="+", type=parse_size, default=[(480, 640), (720, 1280), (1080, 1920)], metavar="HxW",
        help="default: 480x640 720x1280 1080x1920",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("out/soak"), help="default: %(default)s")
    parser.set_defaults(run=run, refuse=parser.error)


def run(options: argparse.Namespace) -> int:
    """Runs the soak test with parsed arguments and returns the exit code."""
    for package in ("rclpy", "rvm_perception.msg"):
        if importlib.util.find_spec(package) is None:
            raise RuntimeError(
                f"{package} is missing: source the workspace, or run `make setup` without a ROS installation"
            )
    if options.frames < 100 or options.kills < 0:
        options.refuse("--frames must be 100 or more, and --kills 0 or more")
    options.out.mkdir(parents=True, exist_ok=True)
    with _environment() as environment:
        report = _measure(options, environment)
    from rvm_core.bench_report import write_json
    from rvm_perception.soak_report import failed, make_table

    write_json(report, options.out / "soak.json")
    print(f"{report['machine']['cpu']}, {report['machine']['cores_allowed']} cores, load {os.getloadavg()[0]:.1f}\n")
    print(make_table(report))
    print(f"\nwritten: {options.out / 'soak.json'}")
    problems = failed(report)
    for line in problems[:20]:
        print(f"rvm soak: {line}", file=sys.stderr)
    return 1 if problems else 0


@contextmanager
def _environment() -> Iterator[dict[str, str]]:
    from rvm_perception.demo_processes import environment_variables, own_domain, ros_environment

    with own_domain() as domain, environment_variables(environment := ros_environment(domain)):
        import torch

        # Sums in another number of threads would have other last bits than those computed again here.
        yield {**environment, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def _measure(options: argparse.Namespace, environment: Mapping[str, str]) -> dict[str, Any]:
    from tqdm import tqdm

    from rvm_core.bench_report import describe_machine
    from rvm_perception.soak_delivery import DeliveryPlan, measure_delivery
    from rvm_perception.soak_report import make_report
    from rvm_perception.soak_run import Soak, SoakPlan

    machine = describe_machine()
    weights = options.weights or str(tiny_weights(options.out / "tiny.safetensors"))
    parameters = {
        "weights": weights,
        "backend": options.backend,
        "precision": options.precision,
        "device": options.device,
        "height": options.size[0],
        "width": options.size[1],
    }
    plan = SoakPlan(
        out=options.out,
        parameters=parameters,
        frames=options.frames,
        kills=options.kills,
        seed=options.seed,
        overload_seconds=options.overload,
        slow=not options.weights,
    )
    with tqdm(total=options.frames, unit="frame", disable=None) as bar:

        def progress(text: str, frames: int) -> None:
            bar.set_description(text, refresh=False)
            bar.update(frames)

        soak = Soak(plan, environment, progress)
        between = round(options.frames * _KILL_SHARE / (options.kills + 1)) if options.kills else 0
        if options.kills:
            soak.kill_and_restart(between)
        soak.run_long(options.frames - between * (options.kills + 1 if options.kills else 0))
    check(soak, plan)
    delivery = []
    if options.delivery:
        profiles = {"shared-memory profile": environment, "Fast DDS defaults": without_profile(environment)}
        delivery_plan = DeliveryPlan(sizes=tuple(options.delivery_sizes), images=options.delivery)
        delivery = measure_delivery(delivery_plan, profiles, options.out)
    settings = {**parameters, "seed": plan.seed, "fault_rate": plan.rate, "kills": plan.kills}
    return make_report(soak.findings, delivery, settings, machine)


def check(soak: Soak, plan: SoakPlan) -> None:
    """Computes every output again."""
    from tqdm import tqdm

    from rvm_core.checkpoint import load_checkpoint
    from rvm_core.engines import create_engine
    from rvm_core.preprocess import Preprocess
    from rvm_core.weights import find_weights
    from rvm_perception.soak_check import Checker

    given = plan.parameters
    engine = create_engine(
        load_checkpoint(find_weights(given["weights"])),
        backend=given["backend"],
        precision=given["precision"],
        image_size=(given["height"], given["width"]),
        device=None if given["device"] == "auto" else given["device"],
    )
    checker = Checker(engine, Preprocess(height=given["height"], width=given["width"], policy="letterbox"))
    with tqdm(total=sum(len(r.outputs) for r in soak.runs), desc="comparing", unit="frame", disable=None) as bar:
        for process in soak.runs:
            soak.findings.verdict.add(checker.check(process.outputs, process.images, bar.update))


def tiny_weights(path: Path) -> Path:
    """A checkpoint of a model that is real but for its size."""
    from rvm_core.checkpoint import save_checkpoint
    from rvm_core.config import RVMConfig
    from rvm_core.model import RVM

    config = RVMConfig(
        width=64,
        encoder_depth=2,
        encoder_heads=2,
        encoder_mlp_width=128,
        core_depth=1,
        core_heads=2,
        core_mlp_width=128,
    )
    save_checkpoint(RVM(config, seed=0), path)
    return path


def without_profile(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables without those that name a profile of Fast DDS."""
    return {name: value for name, value in environment.items() if not name.endswith("_DEFAULT_PROFILES_FILE")}
