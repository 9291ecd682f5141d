"""`rvm track`, with a tiny model."""

from __future__ import annotations

import argparse
import csv
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
from rvm_core.engines import torch as torch_engine
from rvm_core.heads import BoxHead, BoxHeadConfig, PointHead, PointHeadConfig
from rvm_core.readout_checkpoint import save_readout
from rvm_perception import track_cli
from rvm_perception.video import read_frames

pytest.importorskip("av", reason="films are written with PyAV (extra: demo)")

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "test" / "data" / "rvm_tiny_official_format.npz"
FRAMES, RATE, HEIGHT, WIDTH = 12, 10.0, 96, 160
ENGINE = ["--weights", str(WEIGHTS), "--backend", "torch", "--precision", "fp32", "--size", "96x160"]
QUERIES = ["--points", "40,30,dot", "100.5,60", "--boxes", "20,20,60,60,thing"]


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
def mask(tmp_path: Path) -> Path:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[20:60, 20:60], labels[64:96, 96:160] = 1, 9
    cv2.imwrite(str(tmp_path / "mask.png"), labels)
    return tmp_path / "mask.png"


def track(video: Path, *arguments: str) -> int:
    return cli.main(["track", str(video), "--out", str(video.parent / "out"), *ENGINE, *arguments])


def test_everything_is_followed_and_written(video: Path, mask: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert track(video, *QUERIES, "--mask", str(mask), "--at", "0.2", "--context", "3") == 0
    out = video.parent / "out"
    assert sorted(path.name for path in out.iterdir()) == ["masks", "overlay.mp4", "summary.json", "tracks.csv"]
    with open(out / "tracks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    # Of five tracks in ten frames; the mask's values are the segments' ids, and the others take what is left.
    assert len(rows) == 5 * (FRAMES - 2)
    assert [(row["kind"], row["id"], row["label"]) for row in rows[:5]] == [
        ("point", "2", "dot"),
        ("point", "3", ""),
        ("box", "4", "thing"),
        ("mask", "1", ""),
        ("mask", "9", ""),
    ]
    assert {row["frame"] for row in rows} == {str(i) for i in range(2, FRAMES)}
    assert all(0 <= float(row["confidence"]) <= 1 for row in rows)
    assert len(list((out / "masks").iterdir())) == FRAMES - 2
    first = cv2.imread(str(out / "masks" / "000002.png"), cv2.IMREAD_UNCHANGED)
    given = cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)
    assert first is not None and given is not None and first.dtype == np.uint8
    assert (first == given).mean() > 0.9
    assert len(list(read_frames(out / "overlay.mp4"))) == FRAMES
    summary = json.loads((out / "summary.json").read_text())
    assert summary["frames_read"] == FRAMES and summary["frames_tracked"] == FRAMES - 2 and summary["query_frame"] == 2
    assert summary["random_weights"] is False and summary["image_size"] == "96x160" and summary["context"] == 3
    assert [(t["kind"], t["id"], t["label"]) for t in summary["tracks"]][:3] == [
        ("point", 2, "dot"),
        ("point", 3, ""),
        ("box", 4, "thing"),
    ]
    assert summary["engine_ms"]["p50"] > 0 and summary["tracking_ms"]["p50"] > 0
    printed = capsys.readouterr()
    assert "box 4 thing" in printed.out and "visible in" in printed.out
    assert "written to" in printed.out and "RANDOM" not in printed.err


def test_trained_heads_follow_what_they_are_given_for(video: Path, tmp_path: Path) -> None:
    """Random ones, so that only the way of the numbers can be seen."""
    sizes: dict[str, int] = {"features": 64, "channels": 32, "num_heads": 4, "query_hidden": 16, "query_width": 16}
    save_readout(PointHead(PointHeadConfig(**sizes)), tmp_path / "points.safetensors")
    save_readout(BoxHead(BoxHeadConfig(**sizes)), tmp_path / "boxes.safetensors")
    heads = ["--point-head", str(tmp_path / "points.safetensors"), "--box-head", str(tmp_path / "boxes.safetensors")]
    assert track(video, *QUERIES, *heads) == 0
    summary = json.loads((video.parent / "out" / "summary.json").read_text())
    assert summary["point_head"] == heads[1] and summary["box_head"] == heads[3]
    assert summary["tracker"] != "label_propagation"
    with open(video.parent / "out" / "tracks.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * FRAMES


def test_same_run_gives_the_same_tracks(video: Path) -> None:
    assert track(video, *QUERIES) == 0
    first = (video.parent / "out" / "tracks.csv").read_bytes()
    assert track(video, *QUERIES) == 0
    assert (video.parent / "out" / "tracks.csv").read_bytes() == first


def test_later_run_replaces_all_of_an_earlier_one(video: Path, mask: Path) -> None:
    out = video.parent / "out"
    assert track(video, "--mask", str(mask)) == 0
    (out / "notes.txt").write_text("mine")
    assert track(video, "--points", "40,30", "--seconds", "0.3") == 0
    assert sorted(path.name for path in out.iterdir()) == ["notes.txt", "overlay.mp4", "summary.json", "tracks.csv"]
    assert json.loads((out / "summary.json").read_text())["frames_read"] == 3


class Interrupted:
    """In place of an engine's step: Ctrl-C in the sixth one."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error, self.steps = error, 0
        self.step = torch_engine.TorchEngine.step

    def __call__(self, engine: Any, frames: Any, state: Any) -> Any:
        self.steps += 1
        if self.steps == 6:
            raise self.error("stopped")
        return self.step(engine, frames, state)


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (RuntimeError, 1)])
def test_run_that_does_not_end_leaves_what_was_there(
    video: Path, mask: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], code: int
) -> None:
    out = video.parent / "out"
    step = Interrupted(error)
    monkeypatch.setattr(torch_engine.TorchEngine, "step", lambda *arguments: step(*arguments))
    assert track(video, "--mask", str(mask)) == code and step.steps == 6
    assert not out.exists()
    assert track(video, "--points", "40,30") == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    step.steps = 0
    assert track(video, "--mask", str(mask)) == code and step.steps == 6
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--points", "161,30"], "point (161, 30) is outside of the image, which is 160x96 pixels"),
        (["--boxes", "170,10,180,20"], "box (170, 10, 180, 20) is outside of the image"),
        (["--points", "40,30", "--at", "1.2"], "has 1.20 s: there is no frame at --at 1.2 s"),
        (["--mask", "gone.png"], "no such mask: gone.png"),
        (["--points", "40,30", "--weights", "gone.npz"], "no checkpoint at gone.npz"),
        (["--points", "40,30", "--point-head", "gone.npz"], "gone.npz"),
    ],
)
def test_error_is_one_line(video: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert track(video, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("rvm: error: ") and message in error and error.count("\n") == 1
    assert not (video.parent / "out").exists()


def test_file_that_is_no_video_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.mp4").write_text("text")
    assert track(tmp_path / "text.mp4", "--points", "1,1") == 1
    assert "cannot open" in capsys.readouterr().err
    assert track(tmp_path / "gone.mp4", "--points", "1,1") == 1
    assert "no such video file" in capsys.readouterr().err


def test_mask_of_another_size_is_an_error(video: Path, mask: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(mask), np.ones((HEIGHT, WIDTH - 1), np.uint8))
    assert track(video, "--mask", str(mask)) == 1
    assert "mask of 159x96 pixels, expected the size of the image, 160x96" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to follow: give at least one of --points, --boxes and --mask"),
        (["--points", "40"], "expected X,Y or X,Y,NAME, in pixels, got '40'"),
        (["--boxes", "40,10,20,30"], "expected the upper left corner"),
        (["--points", "1,1", "--size", "100x100"], "multiples of 16"),
        (["--points", "1,1", "--size", "256"], "expected HEIGHTxWIDTH"),
        (["--points", "1,1", "--at", "-1"], "at least 0"),
        (["--points", "1,1", "--seconds", "0"], "over 0"),
        (["--points", "1,1", "--context", "0"], "at least 1"),
    ],
)
def test_wrong_usage(video: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert track(video, *arguments) == 2
    assert message in capsys.readouterr().err


def test_random_weights_are_announced(
    video: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rvm_core.config import NAMED_SIZES, RVMConfig

    tiny = RVMConfig(
        width=32, encoder_depth=1, encoder_heads=2, encoder_mlp_width=64, core_depth=1, core_heads=2, core_mlp_width=64
    )
    monkeypatch.setitem(NAMED_SIZES, "rvm_s16", tiny)
    arguments = [
        "track",
        str(video),
        "--model",
        "rvm_s16",
        "--points",
        "40,30",
        "--backend",
        "torch",
        "--precision",
        "fp32",
        "--size",
        "32x48",
    ]
    assert cli.main([*arguments, "--out", str(video.parent / "out")]) == 0
    assert "RANDOM weights" in capsys.readouterr().err
    summary = json.loads((video.parent / "out" / "summary.json").read_text())
    assert summary["random_weights"] is True and summary["weights"] == "random, seed 0"


def test_size_is_that_of_the_videos_shape(video: Path) -> None:
    assert cli.main(
        ["track", str(video), "--points", "40,30", "--seconds", "0.2", "--out", str(video.parent / "out"), *ENGINE[:6]]
    ) == 0  # fmt: skip
    assert json.loads((video.parent / "out" / "summary.json").read_text())["image_size"] == "192x320"


def test_ros_is_not_needed(tmp_path: Path) -> None:
    """Help, and the way to the first error, without rclpy and without the generated messages."""
    code = (
        "import sys; sys.modules.update({'rclpy': None, 'rvm_perception.msg': None}); from rvm_core.cli import main; "
        "codes = main(['track', '--help']), main(['track', 'gone.mp4', '--points', '1,1']); "
        "import rvm_perception.track_video; sys.exit(codes != (0, 1))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_default_context_is_what_the_help_says(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert track(video, "--points", "40,30", "--seconds", "0.1") == 0
    context = json.loads((video.parent / "out" / "summary.json").read_text())["context"]
    capsys.readouterr()
    assert cli.main(["track", "--help"]) == 0
    assert f"matched with; default: {context}" in " ".join(capsys.readouterr().out.split())


def test_every_option_is_explained() -> None:
    parser = argparse.ArgumentParser()
    track_cli.register(subparsers := parser.add_subparsers())
    actions = subparsers.choices["track"]._actions
    assert [action.option_strings for action in actions if not action.help] == []
