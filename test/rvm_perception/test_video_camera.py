"""The video camera: its schedule with a clock of the test's own, and the real process over real DDS."""

from __future__ import annotations

import csv
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed")

from rvm_perception import video_camera
from rvm_perception.conversions import compressed_to_rgb, image_to_rgb
from rvm_perception.video import read_frames

FRAMES, HEIGHT, WIDTH = 12, 36, 48
TIMEOUT_S = 40.0
JPEG_LEVELS = 8.0
"""Mean difference, of 255, that JPEG may make in a small image of strong colours; exchanging red and blue makes 40."""


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Smooth pictures that differ from frame to frame."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30.0, (WIDTH, HEIGHT))
    random = np.random.default_rng(0)
    for _ in range(FRAMES):
        writer.write(cv2.resize(random.integers(0, 256, (4, 5, 3), np.uint8), (WIDTH, HEIGHT)))
    writer.release()
    return path


class Subscriber:
    """Keeps the messages of one topic; listens in a context of its own while the `with` block lasts."""

    def __init__(self, kind: Any, topic: str, reliability: str) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import QoSProfile, ReliabilityPolicy

        self.messages: list[Any] = []
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self._node = rclpy.create_node("test_subscriber", context=self._context)
        qos = QoSProfile(depth=50, reliability=ReliabilityPolicy[reliability.upper()])
        self._node.create_subscription(kind, topic, self.messages.append, qos)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)

    def wait_for(self, count: int) -> None:
        """Fails the test if `count` messages do not come in time."""
        deadline = time.monotonic() + TIMEOUT_S
        while len(self.messages) < count:
            assert time.monotonic() < deadline, f"expected {count} messages, got {len(self.messages)}"
            self._executor.spin_once(timeout_sec=0.05)

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, *exception: object) -> None:
        self._executor.shutdown(timeout_sec=1)
        self._node.destroy_node()
        self._context.try_shutdown()


def start(environment: dict[str, str], *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rvm_perception.video_camera", *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process that is about to end."""
    try:
        output, error = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, output, error
    finally:
        process.kill()
        process.wait()


def stamps_of(path: Path) -> list[tuple[int, int, int]]:
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == video_camera.STAMP_FIELDS
    return [(int(index), int(frame), int(stamp)) for index, frame, stamp in rows[1:]]


@pytest.mark.parametrize(("encoding", "reliability"), [("bgr8", "reliable"), ("rgb8", "best_effort")])
def test_every_frame_arrives_unchanged(
    ros_environment: dict[str, str], video: Path, encoding: str, reliability: str
) -> None:
    from sensor_msgs.msg import Image

    stamps = video.parent / "stamps.csv"
    with Subscriber(Image, "/front/image_raw", reliability) as subscriber:
        process = start(
            ros_environment,
            *("--video", video, "--topic", "/front/image_raw", "--rate", 50, "--reliability", reliability),
            *("--encoding", encoding, "--frame-id", "front", "--wait-for-subscriber", TIMEOUT_S, "--stamps", stamps),
        )
        try:
            subscriber.wait_for(FRAMES)
        finally:
            code, output, error = finish(process)
    assert code == 0, error
    assert json.loads(output.splitlines()[-1])["published"] == FRAMES
    images = [image_to_rgb(message)[..., ::-1] for message in subscriber.messages]
    np.testing.assert_array_equal(np.stack(images), np.stack(list(read_frames(video))))
    assert {(m.encoding, m.header.frame_id, m.step) for m in subscriber.messages} == {(encoding, "front", 3 * WIDTH)}
    sent = [m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for m in subscriber.messages]
    assert stamps_of(stamps) == [(i, i, stamp) for i, stamp in enumerate(sent)]
    assert np.diff(sent).min() > 0 and abs(sent[-1] / 1e9 - time.time()) < TIMEOUT_S


def test_compressed_frames_go_to_their_own_topic(ros_environment: dict[str, str], video: Path) -> None:
    from sensor_msgs.msg import CompressedImage

    with Subscriber(CompressedImage, "/squeezed/image_raw/compressed", "best_effort") as subscriber:
        arguments = ("--topic", "/squeezed/image_raw", "--rate", 50, "--compressed", "--wait-for-subscriber", TIMEOUT_S)
        process = start(ros_environment, "--video", video, *arguments)
        try:
            subscriber.wait_for(FRAMES)
        finally:
            code, _, error = finish(process)
    assert code == 0, error
    for message, frame in zip(subscriber.messages, read_frames(video), strict=True):
        assert message.format == "rgb8; jpeg compressed bgr8"
        difference = compressed_to_rgb(message)[..., ::-1].astype(int) - frame
        assert np.abs(difference).mean() < JPEG_LEVELS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it_cleanly(ros_environment: dict[str, str], video: Path, number: signal.Signals) -> None:
    from sensor_msgs.msg import Image

    stamps = video.parent / "stamps.csv"
    with Subscriber(Image, "/looped/image_raw", "best_effort") as subscriber:
        process = start(
            ros_environment, "--video", video, "--loop", "--rate", 100, "--stamps", stamps,
            "--ros-args", "-r", "/camera/image_raw:=/looped/image_raw", "-r", "__node:=looped",
        )  # fmt: skip
        try:
            subscriber.wait_for(FRAMES + 3)
            process.send_signal(number)
        finally:
            code, output, error = finish(process)
    assert code == 0 and "Traceback" not in error, error
    rows = stamps_of(stamps)
    assert json.loads(output)["published"] == len(rows) > FRAMES
    assert [row[1] for row in rows] == [i % FRAMES for i in range(len(rows))]
    assert "looped" in error


def test_nobody_listens(ros_environment: dict[str, str], video: Path) -> None:
    arguments = ("--rate", 100, "--max-frames", 3, "--topic", "/unheard", "--wait-for-subscriber", 0.1)
    code, output, error = finish(start(ros_environment, "--video", video, *arguments))
    assert code == 0 and json.loads(output)["published"] == 3
    assert "nobody subscribed to /unheard within 0.1 s" in error


@pytest.mark.parametrize(("content", "message"), [(None, "no such video file"), (b"text", "cannot open")])
def test_video_that_cannot_be_played(tmp_path: Path, content: bytes | None, message: str, capfd: Any) -> None:
    path = tmp_path / "broken.mp4"
    if content is not None:
        path.write_bytes(content)
    with undisturbed_signals():
        assert video_camera.main(["--video", str(path)]) == video_camera.VIDEO_ERROR
    output, error = capfd.readouterr()
    assert message in error and str(path) in error and "Traceback" not in error
    assert output == ""


@pytest.mark.parametrize(
    "arguments",
    [["--rate", "0"], ["--rate", "inf"], ["--max-frames", "0"], ["--first-frame", "-1"], ["--encoding", "x"], []],
)
def test_wrong_arguments_are_refused(arguments: list[str], video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        video_camera.make_parser().parse_args(["--video", str(video), *arguments] if arguments else [])
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_help_shows_how_to_use_it() -> None:
    text = video_camera.make_parser().format_help()
    assert "--loop" in text and "exit codes" in text and "FASTDDS_DEFAULT_PROFILES_FILE" in text


class FakeCamera:
    """Takes the time given for each frame, on the clock of `FakeTime`."""

    def __init__(self, clock: FakeTime, durations: Iterator[float]) -> None:
        self._clock, self._durations = clock, durations
        self.times: list[float] = []

    def publish(self, frame: np.ndarray) -> int:
        self.times.append(self._clock.now)
        self._clock.now += next(self._durations)
        return round(self.times[-1] * 1e9)

    def wait_until_received(self) -> None:
        """Nothing is under way."""


class FakeTime:
    """A clock and the event that waits by it."""

    def __init__(self, stop_at: float = float("inf")) -> None:
        self.now, self._stop_at = 100.0, stop_at

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        assert seconds >= 0
        self.now += seconds
        return self.is_set()

    def is_set(self) -> bool:
        return self.now >= self._stop_at


def play(
    video: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: FakeTime,
    durations: Iterator[float],
    stamps: Any = None,
    **options: object,
) -> tuple[list[float], tuple[int, int]]:
    """Times of publication since the start, and the result, at 10 Hz."""
    monkeypatch.setattr(video_camera, "time", SimpleNamespace(monotonic=clock.monotonic))
    camera: Any = FakeCamera(clock, durations)
    values = SimpleNamespace(**{"video": video, "loop": False, "first_frame": 0, "max_frames": None, **options})
    stop: Any = clock
    result = video_camera.play(camera, values, 10.0, stop, stamps)  # type: ignore[arg-type]
    return [at - 100.0 for at in camera.times], result


def test_delays_do_not_add_up(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times, result = play(video, monkeypatch, clock := FakeTime(), itertools.repeat(0.03))
    np.testing.assert_allclose(times, np.arange(FRAMES) / 10)
    assert result == (FRAMES, 0)
    assert clock.now == pytest.approx(100.0 + FRAMES / 10)  # the last frame lasts one period as well


def test_after_a_stall_the_schedule_is_met_again_and_no_frame_is_left_out(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durations = itertools.chain([0.01, 0.35], itertools.repeat(0.01))
    times, (published, late) = play(video, monkeypatch, FakeTime(), durations)
    np.testing.assert_allclose(times[:5], [0.0, 0.1, 0.45, 0.46, 0.47])
    np.testing.assert_allclose(times[5:], np.arange(5, FRAMES) / 10)
    assert published == FRAMES
    assert late == 2  # due at 0.2 and 0.3; the one due at 0.4 came within its period


@pytest.mark.parametrize(("options", "expected"), [({"max_frames": 4}, 4), ({"loop": True, "max_frames": 30}, 30)])
def test_max_frames_bounds_the_play(
    video: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], expected: int
) -> None:
    times, result = play(video, monkeypatch, FakeTime(), itertools.repeat(0.0), **options)
    assert result == (expected, 0) and len(times) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, list(range(FRAMES - 3, FRAMES))),
        ({"loop": True, "max_frames": 7}, [*range(FRAMES - 3, FRAMES)] * 2 + [FRAMES - 3]),
        ({"max_frames": 2}, [FRAMES - 3, FRAMES - 2]),
    ],
)
def test_play_begins_with_the_first_frame_asked_for(
    video: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], expected: list[int]
) -> None:
    rows: list[tuple[int, int, int]] = []
    stamps = SimpleNamespace(writerow=rows.append)
    play(video, monkeypatch, FakeTime(), itertools.repeat(0.0), stamps, first_frame=FRAMES - 3, **options)
    assert [(index, frame) for index, frame, _ in rows] == list(enumerate(expected))


def test_first_frame_after_the_end_is_an_error(video: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with undisturbed_signals():
        arguments = ["--video", str(video), "--first-frame", str(FRAMES)]
        assert video_camera.main(arguments) == video_camera.VIDEO_ERROR
    assert f"has {FRAMES} frames, so no frame {FRAMES}" in capfd.readouterr().err
    # A file that does not say how long it is: nothing is played, even in a loop.
    times, result = play(
        video, monkeypatch, FakeTime(), itertools.repeat(0.0), first_frame=FRAMES, loop=True, max_frames=3
    )
    assert times == [] and result == (0, 0)


def test_stop_ends_the_play_between_frames(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times, result = play(video, monkeypatch, FakeTime(stop_at=100.35), itertools.repeat(0.0))
    assert result == (4, 0) and len(times) == 4


def undisturbed_signals() -> Any:
    """`main` sets signal handlers; they are put back for the tests that follow."""
    from contextlib import ExitStack

    assert threading.current_thread() is threading.main_thread()
    stack = ExitStack()
    for number in (signal.SIGINT, signal.SIGTERM):
        stack.callback(signal.signal, number, signal.getsignal(number))
    return stack
