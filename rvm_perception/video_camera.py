"""A camera without a camera: a ROS node that plays a video file on an image topic."""

from __future__ import annotations

import argparse
import csv
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.atomic import atomic_file
from rvm_perception.video import VideoError, read_frames, video_info

if TYPE_CHECKING:
    from rclpy.node import Node
    from sensor_msgs.msg import CompressedImage, Image

UInt8Array = npt.NDArray[np.uint8]

VIDEO_ERROR = 2
"""Exit code when the video cannot be played."""

STAMP_FIELDS = ("index", "frame", "stamp_ns")
"""Columns of the file of --stamps: count of publications before, number of the frame in the video, header stamp."""

_DEFAULT_RATE = 25.0
_SETTLE_S = 0.5
_POLL_S = 0.02
# Subscribers acknowledge when they are asked, which Fast DDS does every three seconds.
_ACKNOWLEDGE_TIMEOUT_S = 4.0
_DESCRIPTION = """\
Plays a video file as a ROS camera: sensor_msgs/Image on a topic, at a steady rate, stamped with the node's clock at
publication. No frame is left out: if the machine cannot keep up, frames come late and are counted as such.
Ends with the video (or at Ctrl-C) and prints one line of JSON: {"published": N, "late": M}."""
_EPILOG = """\
exit codes: 0 the video ended or the node was stopped, 2 the video cannot be played or an argument is wrong

examples:
  python -m rvm_perception.video_camera --video drive.mp4 --loop
  python -m rvm_perception.video_camera --video drive.mp4 --topic /front/image_raw --rate 10 --reliability reliable
  python -m rvm_perception.video_camera --video drive.mp4 --compressed --ros-args -r __ns:=/robot1

Best-effort images of more than a few hundred kilobytes get lost on the way with the default settings of Fast DDS; load
the package's config/fastdds.xml in this process too, through FASTDDS_DEFAULT_PROFILES_FILE."""


class VideoCamera:
    """Publishes images on one topic of a node. encoding: "bgr8" or "rgb8"; reliability: "best_effort" or "reliable"."""

    def __init__(
        self,
        node: Node,
        topic: str,
        *,
        encoding: str = "bgr8",
        compressed: bool = False,
        frame_id: str = "camera_optical_frame",
        reliability: str = "best_effort",
    ) -> None:
        from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import CompressedImage, Image

        qos = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=5, reliability=ReliabilityPolicy[reliability.upper()])
        self._node, self._encoding, self._compressed, self._frame_id = node, encoding, compressed, frame_id
        self._publisher: Any = node.create_publisher(
            CompressedImage if compressed else Image, f"{topic}/compressed" if compressed else topic, qos
        )

    @property
    def topic(self) -> str:
        """The topic's full name, after namespace and remapping."""
        return str(self._publisher.topic_name)

    @property
    def subscribers(self) -> int:
        """Number of matched subscribers."""
        return int(self._publisher.get_subscription_count())

    def publish(self, frame: UInt8Array) -> int:
        """Publishes a BGR frame (H, W, 3) and returns its stamp in nanoseconds."""
        message = compressed_message(frame) if self._compressed else image_message(frame, self._encoding)
        now = self._node.get_clock().now()
        message.header.frame_id = self._frame_id
        message.header.stamp = now.to_msg()
        self._publisher.publish(message)
        return int(now.nanoseconds)

    def wait_until_received(self) -> None:
        """With reliable publication, waits until every subscriber has every image; says so if that takes too long."""
        from rclpy.duration import Duration

        if not self._publisher.wait_for_all_acked(Duration(seconds=_ACKNOWLEDGE_TIMEOUT_S)):
            self._node.get_logger().warning("not every subscriber has acknowledged every image")


def image_message(frame: UInt8Array, encoding: str) -> Image:
    """A BGR frame (H, W, 3) as sensor_msgs/Image in "bgr8" or "rgb8"; the header is left empty."""
    from std_msgs.msg import Header

    from rvm_perception.conversions import rgb_to_image

    message = rgb_to_image(frame if encoding == "bgr8" else _rgb(frame), Header())
    message.encoding = encoding  # three bytes a pixel either way; OpenCV's own order costs no conversion
    return message


def compressed_message(frame: UInt8Array) -> CompressedImage:
    """A BGR frame (H, W, 3) as JPEG; the header is left empty."""
    from std_msgs.msg import Header

    from rvm_perception.conversions import rgb_to_compressed

    return rgb_to_compressed(_rgb(frame), Header())


def make_parser() -> argparse.ArgumentParser:
    """The command line, without the arguments of ROS."""
    parser = argparse.ArgumentParser(
        prog="video_camera",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--video", type=Path, required=True, help="file that OpenCV can decode")
    parser.add_argument("--topic", default="/camera/image_raw", help="default: %(default)s")
    parser.add_argument("--rate", type=_positive_float, help="frames per second; default: the video's own")
    parser.add_argument("--loop", action="store_true", help="start again at the end; stamps go on rising")
    parser.add_argument(
        "--first-frame", type=_not_negative_int, default=0, metavar="N", help="begin with frame N of the video, from 0"
    )
    parser.add_argument("--max-frames", type=_positive_int, metavar="N", help="stop after N frames")
    parser.add_argument("--compressed", action="store_true", help="JPEG on <topic>/compressed instead of raw images")
    parser.add_argument(
        "--encoding", choices=("bgr8", "rgb8"), default="bgr8", help="of raw images; default: %(default)s"
    )
    parser.add_argument("--frame-id", default="camera_optical_frame", help="default: %(default)s")
    parser.add_argument(
        "--reliability",
        choices=("best_effort", "reliable"),
        default="best_effort",
        help="default: %(default)s, as cameras do; subscribers that ask for reliable get nothing then",
    )
    parser.add_argument(
        "--wait-for-subscriber",
        type=_positive_float,
        default=0.0,
        metavar="SECONDS",
        help="before the first frame, wait at most so long until somebody subscribes; then play anyway",
    )
    parser.add_argument(
        "--stamps", type=Path, metavar="FILE", help=f"write the stamp of every image: CSV of {', '.join(STAMP_FIELDS)}"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Plays until the video ends or SIGINT or SIGTERM comes. Returns the exit code; see `make_parser`."""
    stop = threading.Event()
    # First of all: a signal that comes while the imports below run must not end in a traceback either.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())

    from rclpy.utilities import remove_ros_args

    arguments = sys.argv if argv is None else ["video_camera", *argv]
    options = make_parser().parse_args(remove_ros_args(arguments)[1:])
    try:
        info = video_info(options.video)
        if info.frames and options.first_frame >= info.frames:
            raise VideoError(f"{options.video} has {info.frames} frames, so no frame {options.first_frame}")
    except VideoError as error:
        print(f"video_camera: {error}", file=sys.stderr)
        return VIDEO_ERROR
    rate = options.rate or info.rate or _DEFAULT_RATE
    with _running_node(arguments) as node, _stamp_file(options.stamps) as stamps:
        camera = VideoCamera(
            node,
            options.topic,
            encoding=options.encoding,
            compressed=options.compressed,
            frame_id=options.frame_id,
            reliability=options.reliability,
        )
        log = node.get_logger()
        log.info(f"{options.video}: {info.width}x{info.height} on {camera.topic} at {rate:g} Hz")
        if not _wait_for_subscriber(camera, options.wait_for_subscriber, stop):
            log.warning(f"nobody subscribed to {camera.topic} within {options.wait_for_subscriber:g} s; playing anyway")
        published, late = play(camera, options, rate, stop, stamps)
        log.info(f"published {published} frames, {late} of them late by more than a frame")
        announced = max(0, info.frames - options.first_frame)
        expected = min(options.max_frames or announced, announced)
        if published < expected and not stop.is_set():
            log.warning(f"{options.video} announces {info.frames} frames, but only {published} could be decoded")
    print(json.dumps({"published": published, "late": late}), flush=True)
    return 0


def play(
    camera: VideoCamera, options: argparse.Namespace, rate: float, stop: threading.Event, stamps: Any = None
) -> tuple[int, int]:
    """Publishes the video's frames at times start + i / rate, so that delays do not add up, until its end or `stop`.

    stamps: a csv.writer for rows of STAMP_FIELDS, or None. Returns the numbers of frames published, and of those that
    came more than one period late.
    """
    published = late = 0
    start = time.monotonic()
    for number, frame in _frames(options.video, options.first_frame, options.loop):
        wait = start + published / rate - time.monotonic()
        if stop.wait(max(wait, 0.0)):
            break
        late += wait < -1 / rate
        stamp = camera.publish(frame)
        if stamps is not None:
            stamps.writerow((published, number, stamp))
        published += 1
        if published == options.max_frames:
            break
    if not stop.is_set():
        camera.wait_until_received()
    # The last frame lasts one period too: who leaves at once may take it along.
    stop.wait(max(start + published / rate - time.monotonic(), 0.0))
    return published, late


def _frames(video: Path, first: int, loop: bool) -> Iterator[tuple[int, UInt8Array]]:
    """Numbers and frames of the video from the first one on, over and over if it loops."""
    number = -1
    while True:
        for number, frame in islice(enumerate(read_frames(video)), first, None):
            yield number, frame
        if number < 0 or not loop:
            return


def _wait_for_subscriber(camera: VideoCamera, seconds: float, stop: threading.Event) -> bool:
    deadline = time.monotonic() + seconds
    while seconds and not camera.subscribers and not stop.is_set():
        if time.monotonic() > deadline:
            return False
        stop.wait(_POLL_S)
    if seconds:
        # Discovery goes both ways: best-effort images are lost until the subscriber has found this publisher too.
        stop.wait(_SETTLE_S)
    return True


@contextmanager
def _running_node(arguments: list[str]) -> Iterator[Node]:
    """A node whose services (parameters, clock) are answered by a thread; ends without a traceback."""
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("video_camera")
    executor, done = SingleThreadedExecutor(), threading.Event()
    executor.add_node(node)

    def spin() -> None:
        try:
            while not done.is_set():
                executor.spin_once(timeout_sec=0.1)
        except ExternalShutdownException:
            pass

    thread = threading.Thread(target=spin, name="video_camera_executor", daemon=True)
    thread.start()
    try:
        yield node
    finally:
        done.set()
        thread.join(timeout=2.0)
        executor.shutdown(timeout_sec=1.0)
        node.destroy_node()
        rclpy.shutdown()


@contextmanager
def _stamp_file(path: Path | None) -> Iterator[Any]:
    """A csv.writer for `path`, which appears, complete, at the end; None for None."""
    if path is None:
        yield None
        return
    with atomic_file(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(STAMP_FIELDS)
        yield writer


def _rgb(bgr: UInt8Array) -> UInt8Array:
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number over 0, got {text}")
    return value


def _not_negative_int(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return value


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
