"""`rvm-train plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plan_examples import PLAN
from rvm_core.exit_codes import DONE, ERROR, INCOMPLETE, USAGE
from rvm_training import plan as plan_module
from rvm_training.plan import Plan, PlanError
from rvm_training.pretrain_config import PretrainConfig
from rvm_training.tpu_topology import Topology
from rvm_training.train_cli import main

Asked = list[tuple[PretrainConfig, str]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What was to be planned; models of width 1280 do not fit."""
    seen: Asked = []

    def make_plan(config: PretrainConfig, topology: Topology) -> Plan:
        seen.append((config, topology.name))
        if config.model.width == 1280:
            raise PlanError("does not fit: a step needs 40.0 GB")
        return PLAN

    monkeypatch.setattr(plan_module, "make_plan", make_plan)
    return seen


def test_sizes_of_the_paper(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--size", "S", "L"]) == DONE
    assert [(c.model.width, c.batch_size, name) for c, name in asked] == [
        (384, 2048, "v6e:16x16"),
        (1024, 2048, "v6e:16x16"),
    ]
    assert capsys.readouterr().out.startswith("| v6e:16x16 | rvm_s16 | rvm_l16 |")


def test_what_does_not_fit_is_told(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--size", "S", "H"]) == INCOMPLETE
    captured = capsys.readouterr()
    assert "rvm_h16 does not fit: a step needs 40.0 GB" in captured.err
    assert "rvm_h16 has no plan: does not fit" in captured.out
    assert main(["plan", "--size", "H"]) == ERROR


def test_options(asked: Asked, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    command = "plan --config rvm_s16 --set remat=false --topology v5e:4x4 --batch 64 --mfu 0.5 --examples 1e9 --json"
    assert main([*command.split(), "--out", str(out)]) == DONE
    ((config, topology),) = asked
    assert (config.remat, config.batch_size, topology) == (False, 64, "v5e:4x4")
    report = json.loads(capsys.readouterr().out)
    assert report["budget"] == {"examples": 1e9, "mfu": 0.5} and list(report["plans"]) == ["rvm_s16"]
    assert json.loads(out.read_text()) == report


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--size", "XL"], "invalid choice", USAGE),
        ([], "required", USAGE),
        (["--size", "S", "--mfu", "1.5"], "--mfu in", ERROR),
        (["--size", "S", "--topology", "v6e"], "expected a topology", ERROR),
        (["--config", "rvm_x16"], "unknown experiment", ERROR),
        (["--size", "S", "--batch", "0"], "batch_size must be at least 1", ERROR),
    ],
)
def test_wrong_use(
    asked: Asked, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str, code: int
) -> None:
    assert main(["plan", *arguments]) == code
    assert message in capsys.readouterr().err
    assert not asked
