"""The demo as a whole: its arguments, and runs over real DDS in processes of their own."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import cv2
import pytest

from video_clip import FRAMES, HEIGHT, RATE, TIMEOUT_S, WIDTH, make_clip, wait_for_text

pytest.importorskip("rclpy", reason="ROS is not installed")

from rvm_perception import demo
from rvm_perception.demo_clip import DemoClip
from rvm_perception.demo_processes import ros_environment
from rvm_perception.track_arguments import Given
from rvm_perception.video import read_frames

STAND_IN = Path(__file__).with_name("stand_in_node.py")


@pytest.fixture(autouse=True)
def own_domain_for_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes of other tests, in the domain of the session, are not heard."""
    monkeypatch.delenv("ROS_DOMAIN_ID", raising=False)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return make_clip(tmp_path)


def clip_of(file: Path) -> DemoClip:
    """All of the video, with two points and a box from its fourth frame on."""
    return DemoClip(
        video=file,
        rate=RATE,
        frames=FRAMES,
        size=(HEIGHT, WIDTH),
        points=(Given((10, 12), "spot"), Given((50, 40), "")),
        boxes=(Given((4, 4, 30, 20), "patch"),),
        query_frame=3,
    )


def plan(file: Path, mode: str, **changes: object) -> demo.DemoPlan:
    values: dict[str, object] = {
        "clip": clip_of(file),
        "out": file.parent / "out",
        "camera_topic": "/camera/image_raw",
        "node_command": [sys.executable, str(STAND_IN), mode],
        "startup_timeout": TIMEOUT_S,
        "quiet_time": 1.0,
        **changes,
    }
    return demo.DemoPlan(**values)  # type: ignore[arg-type]


def test_run_reports_what_the_node_did(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av", reason="the demo writes its film with PyAV (extra: demo)")
    demo.run_plan(plan(video, "publish"))
    out = video.parent / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["frames_published"] == FRAMES
    assert summary["features_received"] == summary["node"]["processed"] > 0
    assert summary["features_without_frame"] == 0 and summary["node_exit_code"] == 0
    assert 0 < summary["stamp_to_features_received_ms"]["p50"] <= summary["stamp_to_features_received_ms"]["p95"]
    assert summary["engine_ms"] == {"p50": 1.5, "p95": None}
    assert len(list(read_frames(out / "overlay.mp4"))) == summary["features_received"]
    assert cv2.imread(str(out / "features.png")) is not None
    assert summary["queries"] == {"sent": 3, "accepted": 2, "refused": ["box: it follows no boxes"]}
    assert 0 < summary["frames_with_tracks"] <= FRAMES - 3 and summary["tracks_per_frame"] == 2
    spot = summary["tracks"][0]
    assert (spot["id"], spot["kind"], spot["label"], spot["frames"]) == (1, "point", "spot", spot["visible"])
    printed = capsys.readouterr().out
    assert "stand-in (random weights)" in printed and "3 sent, 2 accepted, 1 refused; box: it follows no" in printed
    assert "point 1 spot" in printed


@pytest.mark.parametrize(
    ("mode", "changes", "message"),
    [
        ("silent", {}, "no features came on /rvm/features"),
        ("dies", {}, "the node ended by itself with exit code 4"),
        ("publish", {"camera_topic": "/elsewhere", "startup_timeout": 3.0}, "did not subscribe to /elsewhere"),
        ("publish", {"clip": clip_of(Path("gone.mp4"))}, "the camera ended with exit code 2"),
    ],
)
def test_run_without_features_fails_and_says_why(
    video: Path, mode: str, changes: dict[str, object], message: str
) -> None:
    out = video.parent / "out"
    out.mkdir()
    (out / "summary.json").write_text("of an earlier run")
    with pytest.raises(demo.DemoError, match=message) as failure:
        demo.run_plan(plan(video, mode, **changes))
    error = str(failure.value)
    assert "stand-in is ready" in error or "gone.mp4" in error, "the end of the log is not shown"
    assert not (out / "summary.json").exists()


def test_wrong_exit_code_of_the_node_fails_after_the_report(video: Path) -> None:
    pytest.importorskip("av", reason="the demo writes its film with PyAV (extra: demo)")
    with pytest.raises(demo.DemoError, match="exit code 0 within 5 s of SIGINT, got 3"):
        demo.run_plan(plan(video, "fails"))
    assert json.loads((video.parent / "out" / "summary.json").read_text())["node_exit_code"] == 3


def test_command_without_a_video_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av", reason="the demo writes its film with PyAV (extra: demo)")
    options = parse("--video", str(tmp_path / "none.mp4"))
    assert options.run(options) == demo.NO_VIDEO
    assert "no such video file" in capsys.readouterr().err


def test_command_whose_node_gives_nothing_fails(
    video: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av", reason="the demo writes its film with PyAV (extra: demo)")
    monkeypatch.setattr(
        demo, "node_command", lambda *_: [sys.executable, "-c", "print('nothing'); raise SystemExit(7)"]
    )
    options = parse("--video", str(video), "--out", str(video.parent / "out"), "--seconds", "0.2")
    assert options.run(options) == demo.FAILED
    error = capsys.readouterr().err
    assert "the node ended by itself with exit code 7" in error and "    nothing" in error


def test_queries_without_a_video_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    options = parse("--points", "3,4")
    with pytest.raises(SystemExit) as stop:
        options.run(options)
    assert stop.value.code == 2
    assert "--points and --boxes are of a --video" in capsys.readouterr().err


def test_own_video_is_played_as_asked_for(video: Path) -> None:
    own = demo._clip(parse("--video", str(video), "--boxes", "1,2,3,4,a", "--rate", "5", "--seconds", "2"))
    assert (own.video, own.rate, own.frames, own.query_frame) == (video, 5.0, 10, 0)
    assert own.boxes == [Given((1, 2, 3, 4), "a")] and not own.points


def test_command_refuses_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--seconds", "0")
    assert stop.value.code == 2
    assert "over 0" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, demo.INTERRUPTED), (signal.SIGTERM, 143)])
def test_interrupted_command_leaves_no_process_behind(video: Path, number: signal.Signals, exit_code: int) -> None:
    mark = f"RVM_DEMO_TEST={uuid.uuid4()}"
    script = (
        "import argparse, sys; from rvm_perception import demo; parser = argparse.ArgumentParser();"
        "demo.register(parser.add_subparsers()); options = parser.parse_args(); sys.exit(options.run(options))"
    )
    command = [sys.executable, "-c", script, "demo", "--video", str(video), "--out", str(video.parent / "out")]
    name, value = mark.split("=")
    environment = {**ros_environment(0), name: value}
    del environment["ROS_DOMAIN_ID"]  # the command is to choose its own
    error = video.parent / "stderr"
    with open(error, "wb") as stream:
        process = subprocess.Popen(command, env=environment, stderr=stream, stdout=subprocess.DEVNULL)
    try:
        wait_for_text(error, "starting the node")
        process.send_signal(number)
        assert process.wait(TIMEOUT_S) == exit_code
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in error.read_text()
    assert not processes_with(mark)


def test_real_node_gives_features_and_tracks_for_a_short_clip(video: Path) -> None:
    pytest.importorskip("av", reason="the demo writes its film with PyAV (extra: demo)")
    command = demo.node_command("/camera/image_raw", 48, 80, weights="")
    demo.run_plan(plan(video, "", node_command=command, startup_timeout=300.0))
    summary = json.loads((video.parent / "out" / "summary.json").read_text())
    node = summary["node"]
    assert summary["frames_published"] == FRAMES and summary["node_exit_code"] == 0
    assert node["received"] == node["processed"] + node["dropped"] + node["rejected"] and node["rejected"] == 0
    assert summary["features_received"] == node["processed"] > 0
    assert summary["random_weights"] is False and summary["model"] == "rvm_nano"
    assert summary["image_size"] == "48x80"
    assert summary["engine_ms"]["p50"] > 0 and summary["tracking_ms"]["p50"] > 0
    assert summary["queries"] == {"sent": 3, "accepted": 3, "refused": []}
    assert 0 < summary["frames_with_tracks"] < FRAMES and summary["tracks_per_frame"] == 3
    assert [(track["kind"], track["label"]) for track in summary["tracks"]] == [
        ("point", "spot"),
        ("point", ""),
        ("box", "patch"),
    ]
    assert len(list(read_frames(video.parent / "out" / "overlay.mp4"))) == summary["features_received"]


def test_command_without_ros_says_what_to_install(
    video: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av", reason="the demo writes its film with PyAV (extra: demo)")
    monkeypatch.setitem(sys.modules, "rvm_perception.msg", None)
    options = parse("--video", str(video))
    assert options.run(options) == demo.FAILED
    assert "source the setup file" in capsys.readouterr().err


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.register(parser.add_subparsers())
    return parser.parse_args(["demo", *arguments])


def processes_with(mark: str) -> list[str]:
    """Process ids whose environment holds the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:  # ended in between, or of another user
            continue
    return found
