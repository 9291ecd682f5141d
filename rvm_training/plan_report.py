"""Plans of training steps as a Markdown table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rvm_training.hlo import Traffic
from rvm_training.plan import Plan, hours
from rvm_training.tpu_topology import Topology


@dataclass(frozen=True)
class Budget:
    """What the hours are for."""

    examples: float
    mfu: float
    """Share of the peak at which the model's FLOPs are done."""


def make_report(plans: Mapping[str, Plan], failures: Mapping[str, str], budget: Budget) -> dict[str, Any]:
    """For JSON: plans by the names of their configurations, and why others have none."""
    return {
        "budget": asdict(budget),
        "plans": {
            name: {
                **asdict(plan),
                "memory_total": plan.memory.total,
                "flops_ratio": plan.flops_ratio,
                "hours": hours(plan, budget.examples, budget.mfu),
            }
            for name, plan in plans.items()
        },
        "failures": dict(failures),
    }


def make_table(plans: Mapping[str, Plan], failures: Mapping[str, str], budget: Budget) -> str:
    """Markdown: a column for each plan, below it what is assumed; then what could not be planned, and why."""
    blocks = []
    for topology in dict.fromkeys(plan.topology for plan in plans.values()):
        here = {name: plan for name, plan in plans.items() if plan.topology == topology}
        blocks.append(_block(here, Topology(topology), budget))
    blocks += [f"{name} {failure}" for name, failure in failures.items()]
    return "\n\n".join(blocks)


def _block(plans: Mapping[str, Plan], topology: Topology, budget: Budget) -> str:
    kinds = sorted({kind for plan in plans.values() for kind in plan.collectives})
    rows = {name: _rows(plan, kinds, topology, budget) for name, plan in plans.items()}
    labels = list(next(iter(rows.values())))
    lines = [f"| {topology.name} | " + " | ".join(rows) + " |", "|---|" + "---:|" * len(rows)]
    lines += [f"| {label} | " + " | ".join(column[label] for column in rows.values()) + " |" for label in labels]
    first = next(iter(plans.values()))
    versions = ", ".join(f"{name} {number}" for name, number in first.versions.items())
    lines += [
        "",
        f"Each device has {topology.memory / 1e9:g} GB and a peak of {topology.peak.flops / 1e12:g} TFLOP/s "
        f"(bfloat16). Hours: {budget.examples / 1e9:g} billion examples at an assumed MFU of {budget.mfu:.0%}: the "
        f"model's FLOPs by its formula, where nothing is counted that is computed again, take {1 / budget.mfu:.3g} "
        f"times as long as at the peak. Nothing was run: the program is what the TPU's compiler makes of the step "
        f"({versions}).",
    ]
    return "\n".join(lines)


def _rows(plan: Plan, kinds: Sequence[str], topology: Topology, budget: Budget) -> dict[str, str]:
    memory = plan.memory
    rows = {
        "parameters with the decoder, M": f"{plan.parameters / 1e6:.1f}",
        "examples of a step": f"{plan.batch_size}",
        "memory: parameters, moments, batch, GB": _gb(memory.arguments),
        "memory: temporaries, GB": _gb(memory.temporaries),
        "memory: program, and outputs of their own, GB": _gb(memory.program + memory.outputs - memory.aliased),
        f"memory: all of it, of {topology.memory / 1e9:g} GB": f"**{_gb(memory.total)}**",
        "TFLOP of a device in a step, as compiled": f"{plan.flops / 1e12:.2f}",
        "TFLOP by the model's formula": f"{plan.model_flops / 1e12:.2f}",
        "ratio of the two": f"**{plan.flops_ratio:.2f}**",
    }
    for kind in kinds:
        traffic = plan.collectives.get(kind, Traffic(0, 0))
        rows[f"{kind} of a device in a step: times, GB"] = f"{traffic.count}, {traffic.bytes / 1e9:.3g}"
    rows |= {
        f"hours for {budget.examples / 1e9:g} billion examples": f"**{hours(plan, budget.examples, budget.mfu):.1f}**",
        "seconds to trace and compile": f"{plan.lower_seconds + plan.compile_seconds:.0f}",
    }
    return rows


def _gb(number: float) -> str:
    return f"{number / 1e9:.2f}"
