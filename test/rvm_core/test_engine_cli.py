"""`rvm engine`: build, list, check, clear."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine_faults import FileBackend
from rvm_core.cli import main
from rvm_core.engines import EngineCache, plan
from rvm_core.engines.cache import GATE

SIZE = ["--size", "64x96"]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> EngineCache:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return EngineCache()


@pytest.fixture
def openvino(monkeypatch: pytest.MonkeyPatch) -> FileBackend:
    backend = FileBackend("openvino")
    monkeypatch.setitem(plan.backends(), "openvino", backend)
    return backend


@pytest.fixture
def build(tiny_path: Path, openvino: FileBackend) -> list[str]:
    """Arguments that build an engine."""
    return ["engine", "build", "--weights", str(tiny_path), "--backend", "openvino", *SIZE]


def test_build_then_list_check_and_clear(
    build: list[str], openvino: FileBackend, cache: EngineCache, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(build) == 0
    output = capsys.readouterr()
    assert output.out == "the engine is ready\n"
    for text in ("openvino 1.0 is installed", "building openvino on cpu in bf16", "half way", "comparing", "passed"):
        assert text in output.err

    assert main(["engine", "list"]) == 0
    line, total = capsys.readouterr().out.splitlines()
    assert line.startswith("openvino bf16 64x96 batch 1, weights ") and line.endswith("openvino 1.0 on an abacus")
    assert ", passed: " in line and total == f"1 engine in {cache.root}"

    assert main(["engine", "check"]) == 0
    output = capsys.readouterr()
    assert "64 steps: cosine mean 1.000000, worst 1% 1.000000" in output.out and output.out.endswith("; passed\n")

    assert main(["engine", "clear"]) == 0
    assert capsys.readouterr().out.startswith("deleted 1 folder, ")
    assert main(["engine", "list"]) == 0
    assert capsys.readouterr().out == f"0 engines in {cache.root}\n"
    assert main(["engine", "check"]) == 0
    assert capsys.readouterr().out == f"no engines in {cache.root}\n"
    assert openvino.log == ["build", "load"]


def test_refused_engine(build: list[str], openvino: FileBackend, capsys: pytest.CaptureFixture[str]) -> None:
    openvino.alter = {"features": lambda x, step: 1.5 * x}
    assert main(build) == 1
    assert "rvm: error: openvino on cpu in bf16 is refused" in capsys.readouterr().err
    assert main(["engine", "list"]) == 0
    assert "REFUSED" in capsys.readouterr().out
    assert main(["engine", "check"]) == 1
    assert "relative error 0.5, at most 0.05 is allowed" in capsys.readouterr().out


def test_check_anew_replaces_the_report(
    build: list[str], openvino: FileBackend, cache: EngineCache, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(build) == 0
    openvino.alter = {"features": lambda x, step: 1.5 * x}
    check = ["engine", "check", *build[2:]]
    assert main(check) == 1
    assert "REFUSED: relative error 0.5" in capsys.readouterr().out
    (entry,) = cache.list()
    report = entry.read_gate()
    assert report is not None and not report.passed
    openvino.alter = {}
    assert main(check) == 0
    report = entry.read_gate()
    assert report is not None and report.passed
    assert openvino.log == ["build", "load", "load", "load"]


def test_engine_that_was_not_compared(build: list[str], cache: EngineCache, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(build) == 0
    (entry,) = cache.list()
    (entry.folder / GATE).unlink()
    capsys.readouterr()
    assert main(["engine", "check"]) == 0
    assert "not compared yet" in capsys.readouterr().out


def test_check_of_the_reference(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["engine", "check", "--weights", str(tiny_path), "--backend", "torch", "--precision", "fp32", *SIZE]
    assert main(arguments) == 0
    assert capsys.readouterr().out.endswith("; passed\n")


def test_fallback_is_asked_for(build: list[str], openvino: FileBackend, capsys: pytest.CaptureFixture[str]) -> None:
    openvino.build_error = RuntimeError("no such layer")
    assert main(build) == 1
    assert "no such layer" in capsys.readouterr().err
    assert main([*build, "--fallback"]) == 0
    errors = capsys.readouterr().err
    assert errors.count("warning: ") == errors.count("falling back to torch on cpu") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["build"], 2, "the following arguments are required: --weights"),
        (["build", "--weights", "none.npz"], 1, "none.npz"),
        (["build", "--weights", "none.npz", "--size", "256"], 2, "expected HEIGHTxWIDTH, such as 256x256, got '256'"),
        (["build", "--weights", "none.npz", "--backend", "abacus"], 2, "invalid choice: 'abacus'"),
        ([], 2, "ACTION"),
    ],
    ids=str,
)
def test_wrong_usage(arguments: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", *arguments]) == code
    assert expected in capsys.readouterr().err


def test_folder_that_others_can_write(cache: EngineCache, capsys: pytest.CaptureFixture[str]) -> None:
    cache.root.mkdir(parents=True)
    os.chmod(cache.root, 0o777)
    assert main(["engine", "list"]) == 1
    assert "writable by others" in capsys.readouterr().err
