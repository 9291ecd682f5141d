"""More than 20,000 damaged messages, checkpoints and recordings: each is read right or refused with a documented error.

The cases of a seed are the same everywhere. Another one: RVM_FUZZ_SEED=7 pytest test/test_fuzz.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

TEST = Path(__file__).parent
MODULES = ("fuzz_messages", "fuzz_checkpoints", "fuzz_bags")
SEED = os.environ.get("RVM_FUZZ_SEED", "0")
LEAST_CASES = 20_000
TIMEOUT_S = 900


def fuzz(module: str, *options: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A fuzz module in a process of its own. Its output ends with what became of the cases."""
    folders = [str(folder) for folder in (TEST.parent, TEST, path) if folder]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fuzzing", module, "--seed", SEED, *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """Outcomes of every target, by its name."""
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    folder = tmp_path_factory.mktemp("marks")
    with ThreadPoolExecutor(max_workers=2) as pool:
        runs = pool.map(lambda module: fuzz(module, "--mark", str(folder / module)), MODULES)
        found: dict[str, dict[str, Any]] = {}
        for module, run in zip(MODULES, runs, strict=True):
            last = (folder / module).read_text() if (folder / module).exists() else "none"
            assert run.returncode == 0, (
                f"{module} ended with {run.returncode}; seed {SEED}, last target and case: {last}\n{run.stderr[-6000:]}"
            )
            found |= json.loads(run.stdout.splitlines()[-1])
    yield found


def test_there_are_enough_cases(results: dict[str, dict[str, Any]]) -> None:
    assert sum(result["cases"] for result in results.values()) >= LEAST_CASES


def test_every_target_accepts_and_refuses(results: dict[str, dict[str, Any]]) -> None:
    """A target that refuses everything, or nothing, would test little."""
    assert len(results) == 11
    for name, result in results.items():
        if name not in ("safetensors", "readout"):  # with checksums over everything, hardly any damage is harmless
            assert len(result["outcomes"]) > 1, (name, result)


PLANTED = {
    "raises": ("raise KeyError(numbers.random())", "KeyError"),
    "wrong": ("raise Forbidden('the pixels are wrong')", "the pixels are wrong"),
    "hidden": (
        "\n        try:\n            bytearray(1 << 40)\n        except MemoryError as error:\n"
        "            try:\n                raise ValueError('damaged') from error\n"
        "            except ValueError as refused:\n                return outcome_of(refused)",
        "memory had run out",
    ),
    "greedy": ("return str(len(bytearray(numbers.choice((1, 1 << 29)))))", "the address space grew"),
    "dies": ("os.abort()", ""),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_faults_are_found(name: str, tmp_path: Path) -> None:
    body, expected = PLANTED[name]
    lines = (
        "import os, random",
        "from fuzzing import Case, Forbidden, Target, outcome_of",
        "def make(folder):",
        "    def case(numbers):",
        "        if numbers.random() < 0.98: return 'sound'",
        f"        {body}",
        "    return case",
        "TARGETS = {'planted': Target(make=make, cases=300)}",
    )
    (tmp_path / "planted.py").write_text("\n".join(lines))
    mark = tmp_path / "mark"
    run = fuzz("planted", "--mark", str(mark), path=tmp_path)
    assert run.returncode != 0
    assert expected in run.stderr
    if name == "greedy":
        return
    target, case = mark.read_text().split()
    assert target == "planted" and (name == "dies" or f"target planted, case {case}" in run.stderr)
    assert fuzz("planted", "--target", "planted", "--case", case, path=tmp_path).returncode != 0
    assert fuzz("planted", "--target", "planted", "--case", "0", path=tmp_path).returncode == 0
