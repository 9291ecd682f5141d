"""The table and the JSON of plans."""

from __future__ import annotations

import json

import pytest

from plan_examples import PLAN, plan
from rvm_training.plan import hours
from rvm_training.plan_report import Budget, make_report, make_table

BUDGET = Budget(examples=2e9, mfu=0.4)


def test_table() -> None:
    lines = make_table({"rvm_s16": PLAN, "rvm_b16": plan(collectives={})}, {}, BUDGET).splitlines()
    assert lines[0] == "| v6e:16x16 | rvm_s16 | rvm_b16 |"
    rows = {
        cells[0]: cells[1:]
        for cells in ([c.strip() for c in line.split("|")[1:-1]] for line in lines[2:] if line.startswith("|"))
    }
    assert rows["memory: all of it, of 32 GB"] == ["**8.20**"] * 2
    assert rows["ratio of the two"] == ["**1.25**"] * 2
    assert rows["all-gather of a device in a step: times, GB"] == ["100, 4", "0, 0"]
    assert rows["hours for 2 billion examples"] == ["**2.7**"] * 2
    assert "MFU of 40%" in lines[-1] and "jax 1.2.3" in lines[-1] and "918 TFLOP/s" in lines[-1]


def test_slices_have_tables_of_their_own_and_failures_are_told() -> None:
    text = make_table({"a": PLAN, "b": plan(topology="v5e:16x16")}, {"c": "does not fit"}, BUDGET)
    assert "| v6e:16x16 | a |" in text and "| v5e:16x16 | b |" in text and text.endswith("c does not fit")


def test_json() -> None:
    report = json.loads(json.dumps(make_report({"rvm_s16": PLAN}, {"rvm_h16": "does not fit"}, BUDGET)))
    made = report["plans"]["rvm_s16"]
    assert made["memory_total"] == PLAN.memory.total and made["flops"] == PLAN.flops
    assert made["hours"] == pytest.approx(hours(PLAN, 2e9, 0.4))
    assert report["failures"] == {"rvm_h16": "does not fit"}
    assert report["budget"] == {"examples": 2e9, "mfu": 0.4}
