"""What a training step costs on a slice of TPUs, from the program that the TPU's compiler makes of it.

No TPU is needed. The step is that of `Trainer`, compiled for the devices of a topology. Memory is what the compiler
lays out. FLOPs and collectives are counted in the compiled program, each loop as often as it runs (see `hlo`); the
compiler's own `cost_analysis` counts the body of a loop once, so it is too small here by about the depth of the model.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from rvm_core.atomic import atomic_file
from rvm_training.hlo import Traffic, count_work
from rvm_training.pretrain_config import PretrainConfig, from_dict, to_dict
from rvm_training.pretrain_model import build_model
from rvm_training.tpu_topology import Topology
from rvm_training.train_flops import train_flops

_FULL = "RESOURCE_EXHAUSTED"
"""How the compiler says that a program does not fit into a device's memory."""


class PlanError(RuntimeError):
    """The step cannot be planned for these devices."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of one device while a step runs, bytes."""

    arguments: int
    """Parameters, moments and batch."""
    outputs: int
    """New parameters and moments, and metrics."""
    aliased: int
    """Of the outputs, what takes the place of arguments."""
    temporaries: int
    """What the backward pass needs again, gathered parameters, buffers."""
    program: int

    @property
    def total(self) -> int:
        """All that lies in memory at once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.program


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a step costs."""

    topology: str
    batch_size: int
    parameters: int
    """Of the model with its decoder."""
    memory: Memory
    flops: int
    """Of matrix products of a device in a step, as compiled, what is computed again included."""
    flops_bodies_once: int
    """The same with the bodies of loops counted once."""
    xla_flops: float
    """What the compiler's `cost_analysis` says: bodies of loops once, and what is not a product too."""
    model_flops: float
    """By the model's formula, a device's share."""
    collectives: dict[str, Traffic]
    """Of a device in a step, by kind."""
    lower_seconds: float
    compile_seconds: float
    versions: dict[str, str]

    @property
    def flops_ratio(self) -> float:
        """Compiled FLOPs over those of the formula."""
        return self.flops / self.model_flops


def hours(plan: Plan, examples: float, mfu: float) -> float:
    """For so many examples if the model's FLOPs are done at a share `mfu` of the devices' peak. Raises `ValueError`."""
    if not 0 < mfu <= 1 or examples <= 0:
        raise ValueError(f"expected an MFU in (0, 1] and examples over 0, got {mfu} and {examples}")
    seconds = plan.model_flops / (Topology(plan.topology).peak.flops * mfu)
    return examples / plan.batch_size * seconds / 3600


def make_plan(config: PretrainConfig, topology: Topology) -> Plan:
    """Compiles the step in a process of its own, which takes minutes for the released sizes.

    Raises `PlanError` if the step does not fit into memory or does not compile, `ImportError` without jax or libtpu,
    `ValueError` if the devices do not divide the batch.
    """
    if config.batch_size % topology.devices:
        raise ValueError(f"batch must be a multiple of the {topology.devices} devices, got {config.batch_size}")
    for package, extra in (("jax", "train"), ("torchax", "train"), ("libtpu", "tpu")):
        if find_spec(package) is None:
            raise ImportError(
                f"planning needs {package}, which is not installed: pip install 'rvm_perception[{extra}]'"
            )
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "plan.json"
        request = json.dumps({"config": to_dict(config), "topology": topology.name, "result": str(result)})
        # Variables of the compiler count only if they are set before jax is imported.
        done = subprocess.run(
            [sys.executable, "-m", "rvm_training.plan"],
            env={**os.environ, **topology.environment()},
            input=request,
            capture_output=True,
            text=True,
        )
        if not result.is_file():
            raise PlanError(f"the step does not compile for {topology.name}: {_last_words(done)}")
        answer = json.loads(result.read_text(encoding="utf-8"))
    if "failure" in answer:
        raise PlanError(_explain(answer["failure"], topology))
    plan = plan_from_dict(answer)
    if plan.memory.total > topology.memory:
        raise PlanError(_too_large(f"{plan.memory.total / 1e9:.1f} GB", topology))
    return plan


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    """Why a process gave no answer; the compiler ends a process when it meets a fault of its own."""
    lines = done.stderr.strip().splitlines()
    faults = [line for line in lines if re.search(r"LLVM ERROR|Check failed|^F\d{4} ", line)]
    said = (faults[:1] or lines[-1:] or ["it said nothing"])[0][:300]
    ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
    return f"its process ended with {ended}: {said}"


def plan_from_dict(values: dict[str, Any]) -> Plan:
    """The inverse of `asdict`."""
    collectives = {kind: Traffic(**traffic) for kind, traffic in values["collectives"].items()}
    return Plan(**{**values, "memory": Memory(**values["memory"]), "collectives": collectives})


def _explain(failure: str, topology: Topology) -> str:
    if _FULL not in failure:
        return f"the step does not compile for {topology.name}: {failure}"
    used = re.search(r"Used ([\d.]+)([GMK]) of", failure)
    factors = {"K": 2**10, "M": 2**20, "G": 2**30}
    return _too_large(f"{float(used[1]) * factors[used[2]] / 1e9:.1f} GB" if used else "more", topology)


def _too_large(needs: str, topology: Topology) -> str:
    return (
        f"does not fit: a step needs {needs} on each device of {topology.name}, which has {topology.memory / 1e9:g} "
        "GB; take a smaller batch, more devices, or remat: true"
    )


def _compile(config: PretrainConfig, topology: Topology) -> Plan:
    """In the child process only."""
    from jax.experimental.topologies import get_topology_desc

    from rvm_training.train_step import Trainer

    devices = get_topology_desc(platform="tpu", topology_name=topology.name).devices
    started = time.perf_counter()
    lowered = Trainer(config, devices).lower()
    lower_seconds = time.perf_counter() - started
    started = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - started
    memory: Any = compiled.memory_analysis()
    costs: Any = compiled.cost_analysis()
    text = compiled.as_text()
    if text is None:
        raise PlanError("the compiler gives no text of the program")
    work = count_work(text)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build_model(config, seed=None).parameters())
    return Plan(
        topology=topology.name,
        batch_size=config.batch_size,
        parameters=parameters,
        memory=Memory(
            arguments=memory.argument_size_in_bytes,
            outputs=memory.output_size_in_bytes,
            aliased=memory.alias_size_in_bytes,
            temporaries=memory.temp_size_in_bytes,
            program=memory.generated_code_size_in_bytes,
        ),
        flops=work.flops,
        flops_bodies_once=work.flops_bodies_once,
        xla_flops=float(costs["flops"]),
        model_flops=train_flops(config) / topology.devices,
        collectives=work.collectives,
        lower_seconds=lower_seconds,
        compile_seconds=compile_seconds,
        versions={name: version(name) for name in ("jax", "libtpu", "torch", "torchax")},
    )


def _main() -> int:
    """The child process: reads a request, writes a plan or why there is none."""
    request = json.loads(sys.stdin.read())
    try:
        answer = asdict(_compile(from_dict(PretrainConfig, request["config"]), Topology(request["topology"])))
    except Exception as error:
        # A failure of the compiler is an answer too; its type is only known where jax is imported.
        answer = {"failure": f"{type(error).__name__}: {error}"}
    with atomic_file(Path(request["result"])) as path:
        path.write_text(json.dumps(answer), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
