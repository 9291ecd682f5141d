"""A plan with round numbers, for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rvm_training.hlo import Traffic
from rvm_training.plan import Memory, Plan

PLAN = Plan(
    topology="v6e:16x16",
    batch_size=2048,
    parameters=57_300_000,
    memory=Memory(
        arguments=2_000_000_000,
        outputs=1_500_000_000,
        aliased=1_400_000_000,
        temporaries=6_000_000_000,
        program=100_000_000,
    ),
    flops=4_590_000_000_000,
    flops_bodies_once=500_000_000_000,
    xla_flops=520e9,
    model_flops=3.672e12,
    collectives={"all-gather": Traffic(count=100, bytes=4_000_000_000), "all-reduce": Traffic(count=3, bytes=4_000)},
    lower_seconds=20.0,
    compile_seconds=100.0,
    versions={"jax": "1.2.3", "libtpu": "0.0.1"},
)


def plan(**changes: Any) -> Plan:
    return replace(PLAN, **changes)
