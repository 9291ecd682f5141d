"""`rvm bench-tracking`: what it writes and prints, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rvm_core import bench_tracking, bench_tracking_cli
from rvm_core.cli import main

SMALL = ("--sizes", "64x96", "--context", "2", "--points", "4", "--boxes", "2", "--steps", "2", "--backend", "torch")


def run(*arguments: str) -> int:
    return main(["bench-tracking", *SMALL, *arguments])


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "bench_tracking.json").read_text())


@pytest.mark.parametrize("features", ["model", "random"])
def test_run_writes_and_prints(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], features: str
) -> None:
    folder = tmp_path / "new"
    assert run("--weights", str(tiny_path), "--features", features, "--out", str(folder)) == 0
    report, printed = read(folder), capsys.readouterr().out
    assert report["interrupted"] is False
    assert report["propagation"][0]["identical"] is True and report["propagation"][0]["times_faster"] > 0
    assert len(report["trackers"]) == 5 and all(row["median_ms"] > 0 for row in report["trackers"])
    assert report["machine"]["cpu"] in printed and "times faster" in printed
    assert "given weights" in report["model"] and features in report["model"].replace("bundled clip", "model")
    assert [path.name for path in folder.iterdir()] == ["bench_tracking.json"]


def test_interrupted_run_writes_what_is_there(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def impatient(turns: int) -> Iterator[Any]:
        def advance(text: str, steps: int = 0) -> None:
            if text == "trackers":
                raise KeyboardInterrupt

        yield advance

    monkeypatch.setattr(bench_tracking_cli, "show_progress", impatient)
    assert run("--weights", str(tiny_path), "--out", str(tmp_path)) == 130
    report = read(tmp_path)
    assert report["interrupted"] is True
    assert report["propagation"][0]["times_faster"] > 0
    assert all(row["median_ms"] is None for row in report["trackers"])
    assert "interrupted" in capsys.readouterr().err


def test_other_labels_are_an_error(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = bench_tracking.propagate_frame
    monkeypatch.setattr(bench_tracking, "propagate_frame", lambda *args, **options: 1 - right(*args, **options))
    assert run("--weights", str(tiny_path), "--out", str(tmp_path)) == 1
    assert "do not give the same" in capsys.readouterr().err
    assert read(tmp_path)["propagation"][0]["identical"] is False


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--sizes", "100x100"), 2, "--sizes"),
        (("--steps", "0"), 1, "1 or more for steps"),
        (("--weights", "nowhere.npz"), 1, "nowhere.npz"),
        (("--device", "cuda:99"), 1, "cuda:99"),
    ],
)
def test_what_cannot_be_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, message: str
) -> None:
    assert run("--out", str(tmp_path), *arguments) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "bench_tracking.json").exists()


def test_help_does_not_import_torch() -> None:
    program = (
        "import sys; from rvm_core.cli import main; code = main(['bench-tracking', '--help']); "
        "sys.exit(code or [name for name in ('torch', 'cv2') if name in sys.modules] or 0)"
    )
    repository = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--context" in done.stdout
