"""The command `rvm eval` with the tiny model, for the benchmarks that read tracks and readouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

import rvm_core.cli
from rvm_core.cli import main


@pytest.fixture
def eval_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, whether or not this version of the package is installed."""
    entry = rvm_core.cli.EntryPoint("eval", "rvm_training.eval_cli:register", rvm_core.cli.GROUP)
    monkeypatch.setattr(rvm_core.cli, "entry_points", lambda group: [entry])


@pytest.fixture
def evaluate(eval_command: None, tiny_path: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a benchmark with the tiny model and returns its report."""

    def run(name: str, data: Path, *options: str | Path, expected: int = 0) -> dict[str, Any]:
        out = tmp_path / "results"
        arguments = ["eval", name, "--data", data, "--weights", tiny_path, "--out", out, *options]
        assert main([str(argument) for argument in arguments]) == expected
        folder = out / name
        for suffix in ("json", "csv", "html"):
            assert (folder / f"report.{suffix}").stat().st_size > 0
        report: dict[str, Any] = json.loads((folder / "report.json").read_text())
        for video in report["videos"]:
            for picture in video["pictures"]:
                assert cv2.imread(str(folder / picture["path"])) is not None
        return report

    return run
