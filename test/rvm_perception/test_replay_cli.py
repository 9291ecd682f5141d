"""`rvm replay` and `rvm make-bag` as commands: options, exit codes, and processes that are interrupted or killed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed")

from bag_files import WEIGHTS, Shot, clip_bag, contents, cut, storage_file, tracked_bag, write_bag
from rvm_core.cli import main
from rvm_perception.bag_reader import Bag
from rvm_perception.replay_summary import read_summary
from video_clip import TIMEOUT_S, make_clip

SETTINGS = """\
/**:
  ros__parameters:
    height: 32
    width: 48
    backend: torch
    precision: fp32
    device: cpu
"""


@pytest.fixture
def parameters(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SETTINGS)
    return path


@pytest.fixture
def command(tmp_path: Path, parameters: Path) -> Callable[..., list[str]]:
    def arguments(bag: Path, *options: str) -> list[str]:
        given = [str(bag), "--out", str(tmp_path / "out"), "--weights", str(WEIGHTS), "--params", str(parameters)]
        return ["replay", *given, *options]

    return arguments


def test_a_video_becomes_a_bag_and_a_bag_becomes_results(
    tmp_path: Path, command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    video = make_clip(tmp_path)
    made = ["make-bag", str(video), "--out", str(tmp_path / "bag"), "--frames", "6", "--points", "30,20,hub"]
    assert main([*made, "--boxes", "5,5,30,30,car"]) == 0
    assert "7 messages written" in capsys.readouterr().out
    assert main(command(tmp_path / "bag")) == 0
    output = capsys.readouterr()
    assert "6 of 6 frames processed, 0 rejected, 0 resets, 2 tracks" in output.out
    assert "times real time" in output.out and "written to" in output.out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"replay.mcap", "summary.json", "timing.json", "report.html", "camera"} <= names
    assert (tmp_path / "out/camera/overlay.mp4").stat().st_size > 1000
    (camera,) = read_summary(tmp_path / "out").cameras
    assert camera.tracks == {"point": 1, "box": 1, "mask": 0}


def test_bags_are_the_same_each_time(tmp_path: Path) -> None:
    video = str(make_clip(tmp_path))
    for storage, compression in (("mcap", "chunk"), ("sqlite3", "message")):
        bags = [tmp_path / folder / "bag" for folder in (f"{storage}1", f"{storage}2")]
        for bag in bags:
            options = ["--storage", storage, "--compression", compression, "--images", "jpeg", "--frames", "4"]
            assert main(["make-bag", video, "--out", str(bag), *options]) == 0
        assert contents(bags[0]) == contents(bags[1])


def test_several_videos_are_several_cameras(tmp_path: Path) -> None:
    video = str(make_clip(tmp_path))
    out = str(tmp_path / "bag")
    assert main(["make-bag", video, video, "--out", out, "--frames", "2", "--start", "0.4", "--rate", "10"]) == 0
    with Bag(tmp_path / "bag") as bag:
        assert set(bag.topics) == {"/camera_0/image_raw", "/camera_1/image_raw"}
        times = [message.received_ns for message in bag.messages(["/camera_1/image_raw"])]
    assert times[1] - times[0] == 100_000_000


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--frames", "0"], 2, "at least 1"),
        (["--topics", "/a", "/b"], 2, "expected a topic for each"),
        (["--storage", "sqlite3", "--compression", "chunk"], 1, "no compression of chunks"),
        (["--start", "100"], 1, "no frames"),
    ],
)
def test_make_bag_says_what_is_wrong(
    tmp_path: Path, options: list[str], code: int, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["make-bag", str(make_clip(tmp_path)), "--out", str(tmp_path / "bag"), *options]) == code
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "bag").exists()
    assert main(["make-bag", str(tmp_path / "missing.mp4"), "--out", str(tmp_path / "bag")]) == 1
    (tmp_path / "bag").mkdir()
    assert main(["make-bag", str(make_clip(tmp_path)), "--out", str(tmp_path / "bag")]) == 1
    assert "exists already" in capsys.readouterr().err


# Exit codes.


def test_recordings_that_cannot_be_used_have_their_exit_code(
    tmp_path: Path, command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    truncated = write_bag(tmp_path / "truncated", [Shot(stamp=i, size=(240, 320)).raw() for i in range(20)])
    cut(storage_file(truncated), 0.5)
    text = tmp_path / "text.mcap"
    text.write_text("no recording")
    empty = write_bag(tmp_path / "empty", [])
    for bag, reason in (
        (truncated, "damaged"),
        (text, "damaged"),
        (empty, "empty"),
        (tmp_path / "no", "there is no bag"),
    ):
        assert main(command(bag, "--no-report")) == 5
        assert reason in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert main(command(truncated, "--recover", "--no-overlay")) == 3
    assert "only what can be read was evaluated" in capsys.readouterr().err
    assert read_summary(tmp_path / "out").recovered
    assert "damaged" in (tmp_path / "out/report.html").read_text(), "the report is marked"


def test_a_full_disk_has_its_exit_code_and_leaves_earlier_results(
    tmp_path: Path,
    command: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import rvm_perception.replay_parts as parts

    bag = clip_bag(tmp_path, frames=4)
    assert main(command(bag, "--no-report", "--no-overlay")) == 0
    before = contents(tmp_path / "out")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(parts.PartWriter, "add_message", full)
        assert main(command(bag, "--no-report", "--no-overlay")) == 4
    assert "the disk is full" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before
    assert main(command(bag, "--no-report", "--no-overlay", "--resume")) == 0
    assert contents(tmp_path / "out") == before


def test_wrong_usage(
    tmp_path: Path, command: Callable[..., list[str]], parameters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = clip_bag(tmp_path, frames=2)
    assert main(["replay", str(bag)]) == 2
    assert main(command(bag, "--features", "pickle")) == 2
    parameters.write_text(SETTINGS + "    colour: red\n")
    assert main(command(bag)) == 1
    assert "unknown parameters: colour" in capsys.readouterr().err
    parameters.write_text(SETTINGS)
    assert main(command(bag, "--weights", str(tmp_path / "none.npz"))) == 1


def test_the_node_s_own_parameter_file_will_do(tmp_path: Path, command: Callable[..., list[str]]) -> None:
    import yaml

    file = Path(__file__).parents[2] / "config" / "rvm.yaml"
    content = yaml.safe_load(file.read_text())
    content["/**"]["ros__parameters"] |= {"height": 32, "width": 48, "max_gap": 1}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    bag = clip_bag(tmp_path, frames=2)
    options = ["--params", str(path), "--backend", "torch", "--precision", "fp32", "--no-overlay", "--no-report"]
    assert main(command(bag, *options)) == 0
    parameters = read_summary(tmp_path / "out").parameters
    assert (parameters["height"], parameters["backend"], parameters["max_gap"]) == (32, "torch", 1.0)


# Processes.

MAIN = """\
import sys
import rvm_core.cli as cli
import rvm_perception.replay as replay
replay.PART_BYTES = {part_bytes}
step = replay.Replay._take
def slow(self, message, time_ns):
    step(self, message, time_ns)
    if self.next_turn == {pause}:
        print("here", flush=True)
        sys.stdin.readline()
replay.Replay._take = slow
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_ended_is_continued(
    tmp_path: Path, command: Callable[..., list[str]], number: signal.Signals
) -> None:
    bag = tracked_bag(tmp_path / "bag")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = ["--no-report"]
    code = MAIN.format(part_bytes=20_000, pause=11)
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command(bag, *options)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    wait_for_exit = time.monotonic() + TIMEOUT_S
    if number != signal.SIGKILL:
        process.stdin.write("\n")
        process.stdin.flush()
    _, errors = process.communicate(timeout=wait_for_exit - time.monotonic())
    if number != signal.SIGKILL:
        assert process.returncode == 130 and "--resume" in errors, errors
        assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()
    parts = sorted((tmp_path / ".out.replay/parts").iterdir())
    assert parts, "what was done is kept"
    whole = MAIN.format(part_bytes=10**9, pause=-1)
    again = [sys.executable, "-c", whole, *command(bag, *options, "--resume")]
    done = subprocess.run(again, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    resumed = contents(tmp_path / "out")
    subprocess.run([*again[:-1]], check=True, env=environment, capture_output=True)
    assert contents(tmp_path / "out") == resumed
    assert json.loads(resumed["summary.json"])["cameras"][0]["processed"] == 12
