"""The benchmark with real worker processes, on a tiny model."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import pytest

from rvm_core import bench_cli
from rvm_core.bench import (
    SOAK_CHUNKS,
    EngineChoice,
    Group,
    Measurement,
    Options,
    Worker,
    WorkerFailed,
    Workload,
    choose_engines,
    count_turns,
    make_group,
    measure_group,
)
from rvm_core.bench_worker import Job, Request
from rvm_core.flops import step_flops
from rvm_core.model import RVM

SIZE = (64, 96)
BUSY = 0.5
"""Share of one core's time; a thread that spins uses all of it."""


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    bench_cli.register(parser.add_subparsers())
    args = parser.parse_args(["bench", *arguments])
    return int(args.run(args))


def children() -> set[str]:
    return {process.name for process in multiprocessing.active_children()}


def torch_job(tiny_path: Path) -> Job:
    return Job(kind="engine", weights=tiny_path, image_size=SIZE)


class Run(NamedTuple):
    code: int
    printed: str
    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.folder / "bench.json").read_text())

    def row(self, name: str) -> dict[str, Any]:
        return next(row for row in self.report["rows"] if row["name"] == name)


@pytest.fixture(scope="module")
def tiny_run(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One real run, with an engine that cannot be made."""
    folder = tmp_path_factory.mktemp("bench") / "new"
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *values, **_: printed.extend(map(str, values)))
        engines = ("--engines", "torch:fp32", "torch:int3", "--cameras", "2", "--soak", "60")
        sizes = ("--sizes", "64x96", "--steps", "3", "--out", str(folder))
        # The same workload without the arrangement that this run leaves out.
        patch.setattr(bench_cli, "_groups", lambda *args: [list(_groups(*args))[1]])
        return Run(run("--weights", str(tiny_path), *engines, *sizes), "\n".join(printed), folder)


_groups = bench_cli._groups


def test_run_measures_engine_and_references(tiny_run: Run, tiny_model: RVM) -> None:
    assert tiny_run.code == 0
    names = ["preprocess", "torch:fp32", "torch:int3", "eager:fp32", "eager:bf16", "matmul:fp32", "matmul:bf16"]
    assert [row["name"] for row in tiny_run.report["rows"]] == names
    row = tiny_run.row("torch:fp32")
    assert row["failure"] is None
    assert (row["arrangement"], row["cameras"], row["image_size"], row["steps"]) == ("turns", 2, list(SIZE), 3)
    assert row["flops"] == 2 * step_flops(tiny_model.config, SIZE)
    assert 0 < row["share_of_peak"] < 1
    assert row["speedup_over_eager_fp32"] > 0 and row["speedup_over_eager_bf16"] > 0
    assert 0 < row["resident_mb"] <= row["peak_mb"]
    assert tiny_run.row("eager:fp32")["speedup_over_eager_fp32"] == pytest.approx(1.0)


def test_run_reads_memory_during_the_soak(tiny_run: Run) -> None:
    soak = tiny_run.row("torch:fp32")["soak_mb"]
    assert len(soak) == SOAK_CHUNKS and soak[-1][0] == 60
    assert tiny_run.row("torch:fp32")["soak_growth_mb"] >= 0
    assert tiny_run.row("eager:fp32")["soak_mb"] == []


def test_failing_engine_is_a_row(tiny_run: Run) -> None:
    row = tiny_run.row("torch:int3")
    assert "int3" in row["failure"] and row["median_ms"] is None
    assert "failed: " in next(line for line in tiny_run.printed.splitlines() if "torch:int3" in line)


def test_run_describes_the_machine(tiny_run: Run) -> None:
    machine = tiny_run.report["machine"]
    assert machine["packages"]["torch"] and machine["cores"] >= 1 and machine["threads"] >= 1
    assert machine["cpu"] in tiny_run.printed


def test_run_writes_a_plot(tiny_run: Run) -> None:
    pytest.importorskip("matplotlib", reason="the extra `bench` is not installed")
    image = cv2.imread(str(tiny_run.folder / "bench.png"))
    assert image is not None
    assert image.std() > 5


def test_workers_of_a_workload_live_at_once_and_are_gone_afterwards(tiny_path: Path) -> None:
    job = torch_job(tiny_path)
    measurements = [Measurement(job), Measurement(replace(job, kind="eager"))]
    group = Group(Workload(model="", image_size=SIZE), measurements)
    options, seen, turns = Options(steps=6), [], 0

    def watch(text: str, steps: int = 0) -> None:
        nonlocal turns
        turns += steps
        if steps:
            seen.append(children())

    measure_group(group, options, watch)
    assert all({"rvm bench torch:fp32", "rvm bench eager:fp32"} <= names for names in seen)
    assert turns == count_turns([group], options) == 4
    assert [[len(steps) for steps in m.rounds.values()] for m in measurements] == [[5, 5], [5, 5]]
    assert not any(name.startswith("rvm bench") for name in children())


def test_worker_that_dies_is_a_row_and_the_others_go_on(tiny_path: Path) -> None:
    job = torch_job(tiny_path)
    victim, other = Measurement(job), Measurement(replace(job, kind="eager"))
    group = Group(Workload(model="", image_size=SIZE), [victim, other])

    def kill(text: str, steps: int = 0) -> None:
        for process in multiprocessing.active_children():
            if process.name == "rvm bench torch:fp32" and steps:
                process.kill()

    measure_group(group, Options(steps=15), kill)
    assert victim.failure and "signal 9, probably for want of memory" in victim.failure
    assert list(victim.rounds) == [0]
    assert other.failure is None and len(other.rounds) == 3


def test_interrupted_run_writes_what_is_there(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def impatient(turns: int) -> Iterator[Any]:
        done = 0

        def advance(text: str, steps: int = 0) -> None:
            nonlocal done
            done += steps
            # After two rounds of preprocessing, before an engine.
            if done == 2:
                raise KeyboardInterrupt

        yield advance

    monkeypatch.setattr(bench_cli, "show_progress", impatient)
    code = run("--weights", str(tiny_path), "--engines", "torch:fp32", "--steps", "15", "--out", str(tmp_path))
    report = json.loads((tmp_path / "bench.json").read_text())
    assert code == 130
    assert report["interrupted"] is True
    assert [row["steps"] for row in report["rows"]] == [10, None, None, None, None, None]
    assert "interrupted" in capsys.readouterr().err
    assert not any(name.startswith("rvm bench") for name in children())


def test_sleeping_worker_does_not_spin_and_keeps_to_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    allowed = os.sched_getaffinity(0)
    with Worker(Job(kind="matmul")) as worker:
        worker.ready()
        worker.turn(Request(1))
        # Time for it to use, not to wait for something.
        time.sleep(0.5)
        idle_cpu = worker.turn(Request(1)).idle_cpu
        assert idle_cpu is not None and idle_cpu < BUSY
    with Worker(Job(kind="matmul"), cores=1) as worker:
        assert worker.ready().threads == 1
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    assert os.sched_getaffinity(0) == allowed


def test_unknown_job_fails_with_its_reason(tiny_path: Path) -> None:
    with Worker(replace(torch_job(tiny_path), weights=Path("nowhere.npz"))) as worker:
        with pytest.raises(WorkerFailed, match="nowhere.npz"):
            worker.ready()


def test_engines_are_chosen_by_name() -> None:
    known = choose_engines(["torch:bf16", "torch:fp32", "torch:bf16"], "cpu")
    assert [(choice.backend, choice.precision, choice.device) for choice in known] == [
        ("torch", "bf16", "cpu"),
        ("torch", "fp32", "cpu"),
    ]
    assert choose_engines(["torch"], "cpu")[0].precision in ("fp32", "bf16")
    found = choose_engines(["auto"], "cpu")
    assert "torch" in {choice.backend for choice in found}
    assert all(choice.missing is None for choice in found)
    with pytest.raises(ValueError, match="unknown engine 'abacus:fp32'; expected auto or one of torch"):
        choose_engines(["abacus:fp32"])


def test_engine_that_is_missing_is_not_started() -> None:
    choice = EngineChoice(backend="torch", precision="fp16", device="cpu", missing="not here")
    group = make_group(Workload(model="rvm_s16", image_size=SIZE), [choice], Options())
    assert group.measurements[0].failure == "not here"
    assert [m.job.name for m in group.measurements[1:]] == ["eager:fp32", "eager:bf16", "matmul:fp32", "matmul:bf16"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"steps": 0}, "1 or more steps, got 0"), ({"soak": -1}, "0 or more"), ({"cores": 0}, "cores, got 0")],
)
def test_wrong_options_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["256", "256x", "250x256", "axb"])
def test_wrong_sizes_are_usage_errors(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--sizes", text)
    assert "--sizes" in capsys.readouterr().err
