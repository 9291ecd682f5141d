"""Statistics, table, JSON and plot of the benchmark, from figures made up so that the results are known."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from rvm_core.bench import Group, Measurement, Options, Workload
from rvm_core.bench_plot import PlotError, write_plot
from rvm_core.bench_report import (
    Summary,
    describe_machine,
    make_report,
    make_rows,
    make_table,
    paired_ratio,
    soak_growth,
    write_json,
)
from rvm_core.bench_worker import Job, Ready, Turn, matmul_flops
from rvm_core.config import RVMConfig
from rvm_core.flops import step_flops

SIZE = (64, 96)


def measurement(kind: str, precision: str, rounds: dict[int, list[float]], **options: object) -> Measurement:
    job = Job(kind=kind, precision=precision, model="rvm_s16", image_size=SIZE, cameras=2, **options)  # type: ignore[arg-type]
    ready = Ready(device=job.device, threads=2, load_s=1.0, parameters=1_000_000)
    turn = Turn(seconds=[], resident_bytes=300_000_000, peak_bytes=400_000_000, device_bytes=None, idle_cpu=0.01)
    return Measurement(job, ready=ready, rounds=rounds, turn=turn, idle_cpu=[0.01])


def made_up_group() -> Group:
    """Round 1 is twice as slow; the engine takes a quarter of eager fp32's time, half of eager bf16's."""
    return Group(
        Workload(model="rvm_s16", image_size=SIZE, cameras=2),
        [
            measurement("engine", "bf16", {0: [0.010, 0.010, 0.010], 1: [0.020, 0.020, 0.020]}),
            Measurement(Job(kind="engine", backend="abacus", model="rvm_s16", image_size=SIZE), failure="no\n beads"),
            measurement("eager", "fp32", {0: [0.040, 0.040], 1: [0.080, 0.080]}),
            measurement("eager", "bf16", {0: [0.020, 0.020], 1: [0.040, 0.040]}),
            measurement("matmul", "fp32", {0: [0.5], 1: [1.0]}),
            measurement("matmul", "bf16", {0: [0.25], 1: [0.5]}),
        ],
    )


def test_summary_of_known_samples() -> None:
    samples = list(np.random.default_rng(0).permutation(np.arange(101) / 1000))
    summary = Summary.of({0: samples[:40], 1: samples[40:]})
    assert summary.median == pytest.approx(0.050)
    assert summary.p95 == pytest.approx(0.095)
    assert summary.jitter == pytest.approx(0.090)


def test_summary_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Summary.of({0: []})


def test_paired_ratio_is_blind_to_drift() -> None:
    """Three rounds at different speeds of the machine; the ratio of the overall medians would be wrong."""
    slow = {0: [3.0, 3.0], 1: [30.0], 2: [300.0]}
    fast = {0: [1.0], 1: [10.0, 10.0, 10.0, 10.0], 2: [100.0]}
    assert paired_ratio(slow, fast) == pytest.approx(3.0)
    assert Summary.of(slow).median / Summary.of(fast).median != pytest.approx(3.0)


def test_paired_ratio_uses_rounds_in_both_only() -> None:
    assert paired_ratio({0: [2.0], 1: [9.0]}, {0: [1.0], 2: [1.0]}) == 2.0
    assert paired_ratio({0: [2.0]}, {1: [1.0]}) is None
    assert paired_ratio({0: []}, {0: [1.0]}) is None


def test_soak_growth_counts_after_the_warm_up() -> None:
    soak = [(100 * i, 1000 + (500 if i > 1 else 0) + (7 if i == 9 else 0)) for i in range(1, 11)]
    assert soak_growth(soak) == 7
    assert soak_growth([]) is None


def test_rows_have_the_ratios_of_the_rounds() -> None:
    engine, failed, eager, _, peak32, peak16 = make_rows(made_up_group())
    assert engine["median_ms"] == pytest.approx(15.0)
    assert engine["frames_per_s"] == pytest.approx(2 / 0.015)
    assert engine["speedup_over_eager_fp32"] == pytest.approx(4.0)
    assert engine["speedup_over_eager_bf16"] == pytest.approx(2.0)
    flops = 2 * step_flops(RVMConfig.named("rvm_s16"), SIZE)
    assert engine["flops"] == flops
    assert engine["share_of_peak"] == pytest.approx((flops / 0.010) / (matmul_flops("cpu") / 0.25))
    assert eager["share_of_peak"] == pytest.approx((flops / 0.040) / (matmul_flops("cpu") / 0.5))
    assert peak16["tflops"] == pytest.approx(2 * peak32["tflops"])
    assert (engine["weights_mb"], eager["weights_mb"], engine["peak_mb"]) == (2, 4, 400)
    assert failed["failure"] == "no\n beads" and failed["median_ms"] is None and failed["share_of_peak"] is None


def test_share_of_the_launch_floor() -> None:
    group = made_up_group()
    group.measurements[0].ready = Ready(device="cuda:0", threads=2, load_s=1.0, kernels=100, launch_s=30e-6)
    assert make_rows(group)[0]["share_of_launch_floor"] == pytest.approx(100 * 30e-6 / 0.015)


def made_up_report() -> dict[str, object]:
    return make_report([made_up_group()], Options(steps=6), describe_machine(), interrupted=False)


def test_table_is_aligned() -> None:
    lines = make_table(made_up_report()).splitlines()
    assert "rvm_s16 64x96, 2 cameras as a batch" in lines
    assert "GPU MB" not in lines[0] and "growth MB" not in lines[0]
    end = lines[0].index("median ms") + len("median ms")
    figures = [line for line in lines[1:] if line.startswith("  ") and "failed" not in line]
    assert len(figures) == 5
    assert all(line[end - 3] == "." and line[end] == " " for line in figures)
    assert [line.split() for line in lines if "failed" in line] == [["abacus:fp32", "failed:", "no", "beads"]]


def test_json_is_read_back(tmp_path: Path) -> None:
    report = made_up_report()
    write_json(report, tmp_path / "bench.json")
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [row["name"] for row in found["rows"]][:3] == ["torch:bf16", "abacus:fp32", "eager:fp32"]
    assert found["machine"]["cpu"] and found["machine"]["packages"]["torch"]
    assert found["rows"][0]["rounds_ms"] == {"0": [10.0] * 3, "1": [20.0] * 3}


def test_plot_shows_engines_and_soak(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `bench` is not installed")
    write_plot(made_up_report(), tmp_path / "without.png")
    group = made_up_group()
    group.measurements[0].soak = [(100, 3_000_000), (200, 3_100_000)]
    write_plot(make_report([group], Options(), describe_machine(), interrupted=True), tmp_path / "with.png")
    without, soaked = (cv2.imread(str(tmp_path / name)) for name in ("without.png", "with.png"))
    assert without is not None and soaked is not None
    assert soaked.shape[0] > without.shape[0]
    assert (without < 100).any() and (without > 250).all(axis=2).mean() > 0.5
    blue = (without == (0xBB, 0x6F, 0x2A)).all(axis=2)
    assert blue.sum() > 1000


def test_plot_of_failures_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `bench` is not installed")
    group = made_up_group()
    group.measurements = [group.measurements[1]]
    write_plot(make_report([group], Options(), describe_machine(), interrupted=False), tmp_path / "bench.png")
    assert cv2.imread(str(tmp_path / "bench.png")) is not None


def test_missing_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(PlotError, match=r"rvm_perception\[bench\]"):
        write_plot(made_up_report(), tmp_path / "bench.png")
