"""`rvm show`, with a tiny model."""

from __future__ import annotations

import argparse
import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from rvm_core import cli
from rvm_core.checkpoint import load_checkpoint, save_checkpoint
from rvm_core.engines import torch as torch_engine
from rvm_perception import show_cli
from rvm_perception.video import read_frames

pytest.importorskip("av", reason="films are written with PyAV (extra: demo)")

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "test" / "data" / "rvm_tiny_official_format.npz"
FRAMES, RATE, HEIGHT, WIDTH = 12, 10.0, 96, 160
SIZE = ["--backend", "torch", "--precision", "fp32", "--size", "96x160"]
ENGINE = ["--weights", str(WEIGHTS), *SIZE]
ALL = ["--point", "40,30", "100.5,60@0.55", "--gap", "2"]
VIEWS = ("kmeans", "pca", "reconstruction", "similarity")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models are no faster on several threads, and far slower where these share their cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Noise on which a square of other noise moves right."""
    random = np.random.default_rng(0)
    background, square = random.integers(0, 255, (2, HEIGHT, WIDTH, 3), np.uint8)
    path = tmp_path / "noise.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (WIDTH, HEIGHT))
    for frame in range(FRAMES):
        image = background.copy()
        image[20:60, 20 + 2 * frame : 60 + 2 * frame] = square[:40, :40]
        writer.write(image)
    writer.release()
    return path


@pytest.fixture
def without_decoder(tmp_path: Path) -> Path:
    save_checkpoint(load_checkpoint(WEIGHTS), tmp_path / "bare.safetensors")
    return tmp_path / "bare.safetensors"


def show(recording: Path, *arguments: str) -> int:
    return cli.main(["show", str(recording), "--out", str(recording.parent / "out"), *ENGINE, *arguments])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files_of(*views: str) -> list[str]:
    return sorted([f"{view}.{suffix}" for view in views for suffix in ("mp4", "png")] + ["summary.json"])


def test_every_view_is_written(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(video, *ALL) == 0
    out = video.parent / "out"
    assert names(out) == files_of(*VIEWS)
    for view in VIEWS:
        film = list(read_frames(out / f"{view}.mp4"))
        panels = {"similarity": 3, "reconstruction": 4}.get(view, 2)
        assert len(film) == (FRAMES - 5 if view == "reconstruction" else FRAMES)
        assert film[0].shape[0] == HEIGHT and film[0].shape[1] == panels * WIDTH + (panels - 1) * 4
        sheet = cv2.imread(str(out / f"{view}.png"))
        assert sheet is not None and sheet.std() > 20
    summary = json.loads((out / "summary.json").read_text())
    assert summary["recording"] == "noise.avi" and summary["frames"] == FRAMES and summary["recovered"] == ""
    assert (summary["start_s"], summary["end_s"]) == (0.0, 1.1)
    assert summary["image_size"] == "96x160" and summary["random_weights"] is False
    views = summary["views"]
    assert views["pca"] == {"basis": "of the whole clip"}
    assert views["kmeans"]["clusters"] == 5 and sum(views["kmeans"]["shares"]) == pytest.approx(1, abs=0.01)
    assert [(p["x"], p["y"], p["frame"]) for p in views["similarity"]["points"]] == [(40, 30, 0), (100.5, 60, 6)]
    reconstruction = views["reconstruction"]
    assert (reconstruction["visible_patches"], reconstruction["patches"], reconstruction["gap_frames"]) == (3, 60, 2)
    assert reconstruction["mean_squared_error"] > 0
    printed = capsys.readouterr()
    assert "written to" in printed.out and "(40, 30) at 0.00 s" in printed.out and "RANDOM" not in printed.err


def test_same_run_gives_the_same_pictures(video: Path) -> None:
    def run(*arguments: str) -> dict[str, bytes]:
        assert show(video, *ALL, *arguments) == 0
        return {path.name: path.read_bytes() for path in (video.parent / "out").glob("*.*") if path.suffix != ".mp4"}

    first = run()
    assert run() == first
    other = run("--seed", "1")
    assert other["reconstruction.png"] != first["reconstruction.png"] and other["pca.png"] == first["pca.png"]


def test_running_basis_is_another_one(video: Path) -> None:
    pictures = []
    for arguments in ([], ["--running"]):
        assert show(video, "--views", "pca", *arguments) == 0
        pictures.append((video.parent / "out" / "pca.png").read_bytes())
    assert pictures[0] != pictures[1]
    assert json.loads((video.parent / "out" / "summary.json").read_text())["views"]["pca"]["basis"] == "running"


def test_without_point_and_decoder_there_is_the_rest(video: Path, without_decoder: Path) -> None:
    arguments = ["show", str(video), "--out", str(video.parent / "out"), "--weights", str(without_decoder), *SIZE]
    assert cli.main(arguments) == 0
    assert names(video.parent / "out") == files_of("kmeans", "pca")


def test_later_run_replaces_all_of_an_earlier_one(video: Path) -> None:
    out = video.parent / "out"
    assert show(video, *ALL) == 0
    (out / "notes.txt").write_text("mine")
    assert show(video, "--views", "kmeans", "--clusters", "3", "--start", "0.3", "--seconds", "0.4") == 0
    assert names(out) == sorted(["notes.txt", *files_of("kmeans")])
    summary = json.loads((out / "summary.json").read_text())
    assert summary["frames"] == 4 and (summary["start_s"], summary["end_s"]) == (0.3, 0.6)
    assert len(summary["views"]["kmeans"]["shares"]) == 3


def test_short_clip_is_not_reconstructed(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A warning where it was not asked for, an error where it was."""
    assert show(video) == 0
    assert "no reconstruction: with a gap of 16 frames it needs at least 20" in capsys.readouterr().err
    assert names(video.parent / "out") == files_of("kmeans", "pca")
    assert show(video, "--views", "reconstruction") == 1
    assert "a smaller --gap needs fewer" in capsys.readouterr().err


class Stopped:
    """In place of an engine's step: an exception in the sixth one."""

    def __init__(self, error: BaseException) -> None:
        self.error, self.steps = error, 0
        self.step = torch_engine.TorchEngine.step

    def __call__(self, engine: Any, frames: Any, state: Any) -> Any:
        self.steps += 1
        if self.steps == 6:
            raise self.error
        return self.step(engine, frames, state)


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (RuntimeError("stopped"), 1), (OSError(errno.ENOSPC, "No space left on device"), 4)],
    ids=["ctrl-c", "error", "disk full"],
)
def test_run_that_does_not_end_leaves_what_was_there(
    video: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out = video.parent / "out"
    step = Stopped(error)
    monkeypatch.setattr(torch_engine.TorchEngine, "step", lambda *arguments: step(*arguments))
    assert show(video) == code and step.steps == 6
    assert not out.exists()
    assert capsys.readouterr().err.count("rvm: ") == 1
    assert show(video, "--views", "pca") == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    step.steps = 0
    assert show(video) == code and step.steps == 6
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--point", "161,30"], "point (161, 30) is outside of the image, which is 160x96 pixels"),
        (["--point", "40,30@1.2"], "is shown from 0.00 s to 1.10 s: there is no frame at 1.2 s"),
        (["--start", "1.2"], "noise.avi has no frame at --start 1.2 s"),
        (["--clusters", "721"], "has 720 cells, too few for 721 clusters"),
        (["--gap", "64", "--views", "reconstruction"], "this decoder knows gaps of up to 63 frames"),
        (["--topic", "/camera"], "--topic and --recover are for bags"),
        (["--weights", "gone.npz"], "no checkpoint at gone.npz"),
    ],
)
def test_error_is_one_line(video: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert show(video, *arguments) == 1
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("rvm: error: ")]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in error
    assert not (video.parent / "out").exists()


def test_file_that_is_no_video_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.mp4").write_text("text")
    assert show(tmp_path / "text.mp4") == 1
    assert "cannot open" in capsys.readouterr().err
    assert show(tmp_path / "gone.mp4") == 1
    assert "no such video file" in capsys.readouterr().err


@pytest.mark.parametrize("is_random", [True, False], ids=["random", "without"])
def test_reconstruction_without_decoder_is_an_error(
    video: Path, without_decoder: Path, is_random: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", "rvm_s16"] if is_random else ["--weights", str(without_decoder)]
    out = ["--out", str(video.parent / "out")]
    assert cli.main(["show", str(video), *out, "--views", "reconstruction", *given, *SIZE]) == 1
    assert "reconstruction needs a trained decoder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--views", "similarity"], "similarity needs --point X,Y[@SECONDS]"),
        (["--views", "all"], "invalid choice: 'all'"),
        (["--point", "40"], "expected X,Y or X,Y@SECONDS, such as 320,120@1.5, got '40'"),
        (["--point", "40,30@-1"], "expected X,Y or X,Y@SECONDS"),
        (["--visible", "1"], "over 0 and under 1"),
        (["--visible", "nan"], "over 0 and under 1"),
        (["--clusters", "0"], "at least 1"),
        (["--seed", "-1"], "whole number"),
        (["--size", "100x100"], "multiples of 16"),
    ],
)
def test_wrong_usage(video: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert show(video, *arguments) == 2
    assert message in capsys.readouterr().err


def test_random_weights_are_announced(
    video: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rvm_core.config import NAMED_SIZES, RVMConfig

    tiny = RVMConfig(
        width=32, encoder_depth=1, encoder_heads=2, encoder_mlp_width=64, core_depth=1, core_heads=2, core_mlp_width=64
    )
    monkeypatch.setitem(NAMED_SIZES, "rvm_s16", tiny)
    out = video.parent / "out"
    assert cli.main(["show", str(video), "--model", "rvm_s16", "--out", str(out), "--seconds", "0.3", *SIZE]) == 0
    assert "RANDOM weights" in capsys.readouterr().err
    assert json.loads((out / "summary.json").read_text())["random_weights"] is True and names(out)[0] == "kmeans.mp4"


def test_ros_is_not_needed() -> None:
    """Help, and the way to the first error, without rclpy and without the generated messages."""
    code = (
        "import sys; sys.modules.update({'rclpy': None, 'rvm_perception.msg': None}); from rvm_core.cli import main; "
        "codes = main(['show', '--help']), main(['show', 'gone.mp4']); "
        "import rvm_perception.show_bag; sys.exit(codes != (0, 1))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_option_is_explained() -> None:
    parser = argparse.ArgumentParser()
    show_cli.register(subparsers := parser.add_subparsers())
    actions = subparsers.choices["show"]._actions
    assert [action.option_strings for action in actions if not action.help] == []
