"""Folders of recordings in processes of this machine: what is written, and what happens when a process ends."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed")

import torch

import pool_faults
from bag_files import PARAMETERS, ROOT, WEIGHTS, Shot, cut, storage_file, write_bag
from bag_folders import OPTIONS, contents, folder_of_bags, single_runs
from rvm_perception.bag_reader import BagError
from rvm_perception.recording_worker import Outcome
from rvm_perception.recordings_page import OverviewError, table_text
from rvm_perception.replay_many import ATTEMPTS, replay_many
from rvm_perception.replay_many_cli import exit_code
from rvm_perception.replay_summary import read_summary

NAMES = ["morning/drive", "evening", "night"]
TIMEOUT_S = 60.0


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_bags(tmp_path_factory.mktemp("bags"), dict.fromkeys(NAMES, 8))


@pytest.fixture(scope="module")
def singles(bags: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of single runs."""
    out = tmp_path_factory.mktemp("singles")
    single_runs(bags, NAMES, out)
    return contents(out)


def run(bags: Path, out: Path, *, jobs: int = 2, log: list[str] | None = None, **changes: Any) -> list[Outcome]:
    lines: list[str] = [] if log is None else log
    options = changes.pop("options", OPTIONS)
    return replay_many(bags, out, PARAMETERS, options, jobs=jobs, threads=1, log=lines.append, **changes)


def statuses(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.name: outcome.status for outcome in outcomes}


def results(out: Path) -> dict[str, bytes]:
    """Without the overview, which single runs have none of."""
    return {name: data for name, data in contents(out).items() if name != "recordings.json"}


def test_a_folder_gives_what_single_runs_give(bags: Path, singles: dict[str, bytes], tmp_path: Path) -> None:
    outcomes = run(bags, tmp_path / "out")
    assert [(outcome.name, outcome.status) for outcome in outcomes] == [(name, "done") for name in sorted(NAMES)]
    assert len(singles) >= 3 * 5 and results(tmp_path / "out") == singles
    overview = json.loads((tmp_path / "out" / "recordings.json").read_text())
    assert overview["results"] == {"done": 3}
    assert [entry["name"] for entry in overview["recordings"]] == sorted(NAMES)
    first = overview["recordings"][0]
    assert (first["processed"], first["tracks"], first["cameras"]) == (8, 1, ["camera"])
    assert "evening" in table_text(tmp_path / "out") and exit_code(outcomes) == 0
    assert multiprocessing.active_children() == []


def test_a_lost_process(bags: Path, singles: dict[str, bytes], tmp_path: Path) -> None:
    log: list[str] = []
    maker = partial(pool_faults.deadly_once, tmp_path / "mark")
    outcomes = run(bags, tmp_path / "out", log=log, maker=maker)
    assert set(statuses(outcomes).values()) == {"done"} and (tmp_path / "mark").exists()
    assert [line for line in log if "done again, attempt 2 of 3" in line]
    assert results(tmp_path / "out") == singles
    left = [path for path in (tmp_path / "out").rglob(".*")]
    assert left == []


def test_a_recording_that_ends_every_process(tmp_path: Path) -> None:
    bags = folder_of_bags(tmp_path / "bags", {"long": 20, "short": 3, "tiny": 2})
    mended = tmp_path / "out"
    log: list[str] = []
    outcomes = run(bags, mended, log=log, maker=pool_faults.deadly)
    assert statuses(outcomes) == {"long": "lost", "short": "done", "tiny": "done"}
    assert f"ended {ATTEMPTS} times" in outcomes[0].message and exit_code(outcomes) == 3
    assert len([line for line in log if "done again" in line]) == ATTEMPTS - 1
    # With memory enough, the same command goes on.
    assert set(statuses(run(bags, mended, options=replace(OPTIONS, resume=True))).values()) == {"done"}


def test_a_broken_recording_among_good_ones(bags: Path, tmp_path: Path) -> None:
    mixed = folder_of_bags(tmp_path / "bags", {"a": 3, "c": 3})
    write_bag(mixed / "b", [Shot(stamp=i).raw() for i in range(8)], storage="sqlite3")
    cut(storage_file(mixed / "b"), 0.6)
    (mixed / "d.mcap").write_bytes(b"no bag")
    log: list[str] = []
    outcomes = run(mixed, tmp_path / "out", log=log)
    assert statuses(outcomes) == {"a": "done", "b": "bad", "c": "done", "d": "bad"}
    assert exit_code(outcomes) == 3 and [line for line in log if line.startswith("b: ") and "--recover" in line]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Problems" in page and "b: " in page and not (tmp_path / "out" / "b").exists()
    recovered = run(mixed, tmp_path / "out", options=replace(OPTIONS, recover=True, resume=True))
    assert statuses(recovered) == {"a": "done", "b": "recovered", "c": "done", "d": "bad"}
    assert 0 < read_summary(tmp_path / "out" / "b").frames < 8


def test_resume_leaves_what_is_complete(tmp_path: Path) -> None:
    bags = folder_of_bags(tmp_path / "bags", {"a": 2, "b": 2})
    run(bags, tmp_path / "out", jobs=1)
    before = {name: (tmp_path / "out" / name / "summary.json").stat().st_ino for name in "ab"}
    folder_of_bags(tmp_path / "bags", {"c": 2})
    log: list[str] = []
    outcomes = run(bags, tmp_path / "out", jobs=1, options=replace(OPTIONS, resume=True), log=log)
    assert statuses(outcomes) == dict.fromkeys("abc", "done")
    assert {name: (tmp_path / "out" / name / "summary.json").stat().st_ino for name in "ab"} == before
    run(bags, tmp_path / "out", jobs=1)
    assert (tmp_path / "out" / "a" / "summary.json").stat().st_ino != before["a"]


def test_errors_that_are_no_recordings(bags: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the engine is sold out"):
        run(bags, tmp_path / "out", maker=pool_faults.no_engine)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        replay_many(bags, tmp_path / "out", replace(PARAMETERS, weights="gone.npz"), OPTIONS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BagError, match="there is no recording in"):
        run(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "summary.json").touch()
    with pytest.raises(OverviewError, match="give another --out"):
        run(bags, tmp_path)
    assert multiprocessing.active_children() == []


def test_stopping(bags: Path, singles: dict[str, bytes], tmp_path: Path) -> None:
    def is_stopped() -> bool:
        return (tmp_path / "out" / "evening").exists()

    outcomes = run(bags, tmp_path / "out", jobs=1, is_stopped=is_stopped)
    assert statuses(outcomes) == {"evening": "done", "morning/drive": "interrupted", "night": "interrupted"}
    assert exit_code(outcomes) == 130 and multiprocessing.active_children() == []
    again = run(bags, tmp_path / "out", options=replace(OPTIONS, resume=True))
    assert set(statuses(again).values()) == {"done"} and results(tmp_path / "out") == singles


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_command(ending: int, tmp_path: Path) -> None:
    bags = folder_of_bags(tmp_path / "bags", dict.fromkeys("ab", 600))
    code = "import sys; from rvm_core.cli import main; sys.exit(main(sys.argv[1:]))"
    settings = ["--backend", "torch", "--precision", "fp32", "--device", "cpu", "--weights", str(WEIGHTS)]
    command = [sys.executable, "-c", code, "replay", str(bags), "--out", str(tmp_path / "out"), "--jobs", "2",
               "--threads", "1", *settings]  # fmt: skip
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stderr=log, stdout=log, start_new_session=True)
    try:
        wait_until(lambda: all((tmp_path / "out" / f".{name}.replay" / "part.tmp").exists() for name in "ab"), process)
        group = processes_of(process.pid)
        assert len(group) >= 3
        if ending == signal.SIGINT:
            os.killpg(process.pid, ending)  # as a terminal does
        else:
            process.send_signal(ending)
        assert process.wait(TIMEOUT_S) == (130 if ending == signal.SIGINT else -ending)
        wait_until(lambda: not processes_of(process.pid))
    finally:
        for pid in processes_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    if ending == signal.SIGINT:
        assert "goes on from here" in (tmp_path / "log").read_text()
        assert "Traceback" not in (tmp_path / "log").read_text()
        assert json.loads((tmp_path / "out" / "recordings.json").read_text())["results"] == {"interrupted": 2}


def processes_of(session: int) -> list[int]:
    """Ids of the processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def wait_until(is_so: Any, process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.02)


def test_command(bags: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rvm_core.cli import main

    few = folder_of_bags(tmp_path / "bags", {"a": 2, "b": 2})
    (few / "c.mcap").write_bytes(b"no bag")
    arguments = ["--backend", "torch", "--precision", "fp32", "--device", "cpu", "--weights", str(WEIGHTS)]
    code = main(["replay", str(few), "--out", str(tmp_path / "out"), "--jobs", "1", "--threads", "1", *arguments])
    shown = capsys.readouterr()
    assert code == 3 and "recordings.json" in shown.out and "c: " in shown.err
    assert 'href="a/report.html"' in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["done", "done"], 0), (["done", "bad"], 3), (["recovered"], 3), (["bad", "bad"], 5), (["bad", "failed"], 1),
        (["done", "lost"], 3), (["lost"], 1), (["full", "interrupted", "done"], 4), (["interrupted", "done"], 130),
    ],
)  # fmt: skip
def test_exit_codes(found: list[Any], expected: int) -> None:
    assert exit_code([Outcome(name=str(i), status=status) for i, status in enumerate(found)]) == expected


def test_numbers_of_jobs_are_checked() -> None:
    from rvm_perception.replay_many_cli import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser.add_argument_group())
    assert parser.parse_args(["--jobs", "3"]).jobs == 3
    for wrong in ("0", "-1", "two"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--jobs", wrong])
