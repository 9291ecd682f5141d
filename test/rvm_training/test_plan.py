"""Plans of training steps: their arithmetic, what is said where there is none, and real ones of the TPU's compiler."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import Any

import pytest

from plan_examples import PLAN, plan
from rvm_core.config import DecoderConfig, RVMConfig
from rvm_training import plan as plan_module
from rvm_training.config_files import load_config
from rvm_training.plan import PlanError, hours, make_plan, plan_from_dict
from rvm_training.pretrain_config import PretrainConfig, SamplingConfig
from rvm_training.tpu_topology import Topology

HIGHEST_RATIO = 1.4
"""Of compiled FLOPs to those of the formula: what the paper's sizes may take with what is computed again."""
TINY = PretrainConfig(
    model=RVMConfig(
        width=64, encoder_depth=3, encoder_heads=2, encoder_mlp_width=128, core_depth=2, core_heads=2,
        core_mlp_width=128, decoder=DecoderConfig(width=64, depth=2, num_heads=2, mlp_width=128),
    ),
    sampling=SamplingConfig(image_size=64),
    batch_size=8,
)  # fmt: skip
needs_compiler = pytest.mark.skipif(
    find_spec("libtpu") is None or find_spec("torchax") is None, reason="the extras `train` and `tpu` are not installed"
)


def test_memory_counts_what_takes_the_place_of_arguments_once() -> None:
    assert PLAN.memory.total == 8_200_000_000


def test_hours() -> None:
    """3.672e12 FLOP at 40% of 918e12 a second are 10 ms; 2 billion examples are 976,562.5 steps."""
    assert hours(PLAN, 2e9, 0.4) == pytest.approx(976_562.5 * 0.01 / 3600)
    assert hours(PLAN, 4e9, 0.2) == pytest.approx(4 * hours(PLAN, 2e9, 0.4))
    assert PLAN.flops_ratio == pytest.approx(1.25)
    for examples, mfu in ((2e9, 0.0), (2e9, 1.1), (0.0, 0.4)):
        with pytest.raises(ValueError, match="MFU in"):
            hours(PLAN, examples, mfu)


def test_plans_survive_json() -> None:
    assert plan_from_dict(json.loads(json.dumps(asdict(PLAN)))) == PLAN


def answer(monkeypatch: pytest.MonkeyPatch, values: dict[str, Any] | None, stderr: str = "", status: int = 1) -> None:
    """Has the child process answer that; None: nothing."""
    monkeypatch.setattr(plan_module, "find_spec", lambda name: name)

    def run(command: list[str], *, input: str, **options: Any) -> subprocess.CompletedProcess[str]:
        assert options["env"]["TPU_ACCELERATOR_TYPE"] == "v6e-4"
        if values is not None:
            with open(json.loads(input)["result"], "w", encoding="utf-8") as file:
                json.dump(values, file)
        return subprocess.CompletedProcess(command, 0 if values else status, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)


def test_the_plan_comes_from_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, asdict(PLAN))
    assert make_plan(TINY, Topology("v6e:2x2")) == PLAN


def test_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "JaxRuntimeError: RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 41.50G of 31.25G hbm."
    answer(monkeypatch, {"failure": message})
    with pytest.raises(
        PlanError, match="does not fit: a step needs 44.6 GB on each device of v6e:2x2, which has 32 GB"
    ):
        make_plan(TINY, Topology("v6e:2x2"))
    large = plan(memory=replace(PLAN.memory, temporaries=31_000_000_000))
    answer(monkeypatch, asdict(large))
    with pytest.raises(PlanError, match="does not fit: a step needs 33.2 GB"):
        make_plan(TINY, Topology("v6e:2x2"))


def test_other_failures_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, {"failure": "TypeError: no such thing"})
    with pytest.raises(PlanError, match="does not compile for v6e:2x2: TypeError: no such thing"):
        make_plan(TINY, Topology("v6e:2x2"))
    answer(monkeypatch, None, "Traceback\nMemoryError")
    with pytest.raises(PlanError, match="v6e:2x2: its process ended with exit status 1: MemoryError"):
        make_plan(TINY, Topology("v6e:2x2"))
    answer(monkeypatch, None, "at work\nLLVM ERROR: Cannot select: x\n  y\nRaising signal 6", status=-6)
    with pytest.raises(PlanError, match="its process ended with signal 6: LLVM ERROR: Cannot select: x$"):
        make_plan(TINY, Topology("v6e:2x2"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "find_spec", lambda name: None if name == "libtpu" else name)
    with pytest.raises(ImportError, match=r"libtpu.*rvm_perception\[tpu\]"):
        make_plan(TINY, Topology("v6e:2x2"))


def test_the_devices_must_divide_the_batch() -> None:
    with pytest.raises(ValueError, match="multiple of the 4 devices, got 6"):
        make_plan(replace(TINY, batch_size=6), Topology("v6e:2x2"))


@pytest.mark.slow
@needs_compiler
def test_a_loop_counts_as_much_as_its_unrolled_form() -> None:
    """The same tiny step twice: counting loops from the program agrees with a program that has none."""
    looped, unrolled = (make_plan(replace(TINY, scan_layers=scan), Topology("v6e:2x2")) for scan in (True, False))
    assert looped.flops == pytest.approx(unrolled.flops, rel=0.02)
    # Without loops the compiler's own count, which has sums and activations too, is the same but for those.
    assert unrolled.flops == unrolled.flops_bodies_once
    assert unrolled.flops == pytest.approx(unrolled.xla_flops, rel=0.15)
    assert looped.flops_bodies_once < 0.8 * looped.flops
    assert 1 < looped.flops_ratio < HIGHEST_RATIO


@pytest.mark.slow
@needs_compiler
def test_rvm_s_fits_the_papers_hardware() -> None:
    made = make_plan(load_config("rvm_s16"), Topology("v6e:16x16"))
    assert made.batch_size == 2048
    assert made.memory.total < 32e9
    assert 1 < made.flops_ratio < HIGHEST_RATIO
    # Gradients of all parameters, float32, are summed over the devices, however the compiler writes it.
    assert sum(traffic.bytes for traffic in made.collectives.values()) > 4 * made.parameters
