"""Tracks of the live node, in its own process, over real DDS: asked for by a planner, followed, ended."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed")

from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from rclpy.serialization import deserialize_message, serialize_message  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from live_node import RELIABLE, NodeProcess, TrackClient, header, image, wait_for  # noqa: E402
from rvm_core import Preprocess  # noqa: E402
from rvm_core.draw_tracks import color_of  # noqa: E402
from rvm_perception import feature_map_to_numpy  # noqa: E402
from rvm_perception.conversions import image_to_labels, labels_to_image  # noqa: E402
from rvm_perception.msg import BoxTracks, FeatureMap, PointTracks, TrackQueries  # noqa: E402
from rvm_perception.parameters import NodeParameters  # noqa: E402
from rvm_perception.stream import FrameKey  # noqa: E402
from rvm_perception.track_ids import FIRST_MASK_ID, IdLedger  # noqa: E402
from rvm_perception.track_messages import TrackMessages  # noqa: E402
from rvm_perception.track_queries import read_request  # noqa: E402
from rvm_perception.track_session import TrackSession, TrackState, make_tracker  # noqa: E402

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "test" / "data" / "rvm_tiny_official_format.npz"
INPUT: dict[str, Any] = {"height": 64, "width": 128}
NODE: dict[str, Any] = {
    **INPUT,
    "input_reliability": "reliable",
    "device": "cpu",
    "backend": "torch",
    "precision": "fp32",
    "weights": str(WEIGHTS),
}
IMAGE_HEIGHT, IMAGE_WIDTH, CHANNELS = 272, 640, 64
LIMITS: dict[str, Any] = {"max_points": 4, "max_boxes": 2, "max_masks": 2}

TOLERANCE = 1e-3
"""Pixels and probability between live tracks and those made here from the published features, on the same machine."""

MASK_TOLERANCE = 1e-3
"""Share of pixels that may lie on the other side of a border."""


class Replay:
    """The node's tracks once more, from its feature maps and the queries as a bag would hold them."""

    def __init__(self) -> None:
        parameters = NodeParameters(**INPUT)
        tracker = make_tracker(parameters, CHANNELS)
        assert tracker is not None
        self.session = TrackSession(camera="camera", tracker=tracker, parameters=parameters, ids=IdLedger())
        self.map = Preprocess(height=64, width=128, policy="letterbox").map(IMAGE_HEIGHT, IMAGE_WIDTH)
        self.state: TrackState | None = None

    def ask(self, message: TrackQueries) -> None:
        recorded = deserialize_message(serialize_message(message), TrackQueries)
        assert self.session.receive(read_request(recorded)) is None
        self.state, _ = self.session.apply(self.state)

    def frame(self, message: FeatureMap) -> TrackMessages:
        stamp = message.header.stamp
        key = FrameKey(
            stamp_ns=stamp.sec * 1_000_000_000 + stamp.nanosec,
            frame_id=message.header.frame_id,
            height=message.image_height,
            width=message.image_width,
        )
        grid = feature_map_to_numpy(message).reshape(-1, CHANNELS)
        tokens = np.concatenate([np.asarray(message.cls, np.float32)[None], grid])
        self.state = self.session.step(
            tokens, key=key, epoch=message.epoch, frame_map=self.map, before=self.state, fresh=message.index == 0
        )
        self.state, _ = self.session.apply(self.state)
        return TrackMessages(self.state, message.header, {})

    def assert_equal(self, message: FeatureMap, points: PointTracks, boxes: BoxTracks) -> TrackMessages:
        expected = self.frame(message)
        for live, replayed in ((points, expected.points()), (boxes, expected.boxes())):
            assert list(live.status) == list(replayed.status) and live.labels == replayed.labels
            for name in ("x", "y", "x_min", "y_min", "x_max", "y_max", "confidence"):
                if hasattr(live, name):
                    np.testing.assert_allclose(getattr(live, name), getattr(replayed, name), atol=TOLERANCE)
        return expected


@pytest.fixture(scope="module")
def node(ros_environment: dict[str, str]) -> Iterator[NodeProcess]:
    with NodeProcess(ros_environment, **NODE, **LIMITS) as process:
        yield process


@pytest.fixture(scope="module")
def planner(node: NodeProcess) -> Iterator[TrackClient]:
    with TrackClient() as client:
        client.wait_for_node()
        yield client


LAST = 10_000
"""Number of the frame between two tests."""


@pytest.fixture
def client(planner: TrackClient, clip: list[np.ndarray]) -> Iterator[TrackClient]:
    """A client of a node that follows nothing, has no tracks left to announce as lost, and resets with the next frame.

    What the node says of frame `LAST` may still arrive.
    """
    assert planner.call(Trigger, "/rvm/reset", Trigger.Request()).success
    for received in (planner.answers, planner.features, planner.points, planner.boxes, planner.masks):
        received.clear()
    yield planner
    planner.ask("end", clear=True)
    planner.exchange(image(clip[0], LAST))


def frames_of(received: Sequence[PointTracks | BoxTracks]) -> list[int]:
    """Which frames the messages are of."""
    numbers = [(m.header.stamp.sec - 1000) * 25 + m.header.stamp.nanosec // 40_000_000 for m in received]
    return [number for number in numbers if number != LAST]


def point(*positions: tuple[float, float]) -> dict[str, Any]:
    return {"point_x": [x for x, _ in positions], "point_y": [y for _, y in positions]}


def box(x_min: float, y_min: float, x_max: float, y_max: float) -> dict[str, Any]:
    return {"box_x_min": [x_min], "box_y_min": [y_min], "box_x_max": [x_max], "box_y_max": [y_max]}


def mask_message() -> Image:
    labels = np.zeros((IMAGE_HEIGHT, IMAGE_WIDTH), np.uint16)
    labels[:, 60:] = 9
    return labels_to_image(labels, Header())


def test_a_planner_has_points_boxes_and_masks_followed(client: TrackClient, clip: list[np.ndarray]) -> None:
    replay = Replay()
    replay.frame(client.exchange(image(clip[0], 0)))
    wanted: dict[str, Any] = {**point((320.0, 140.0), (100.5, 60.0)), **box(250.0, 60.0, 420.0, 250.0)}
    wanted |= {"point_labels": ["hub", ""], "box_labels": ["cyclist"], "mask": mask_message(), "header": header(0)}
    first = client.ask("plan", **wanted)
    assert list(first.accepted) == [True] * 4, first.reason
    assert list(first.kind) == [first.POINT, first.POINT, first.BOX, first.MASK]
    assert first.header == header(0) and first.camera == "rvm_camera"
    replay.ask(TrackQueries(**wanted))
    masks: list[Image] = []
    subscription = client.node.create_subscription(Image, "/rvm/mask", masks.append, RELIABLE)
    client.wait_until_known()
    for i in range(1, 6):
        features = client.exchange(image(clip[i], i))
        points, boxes = client.at(client.points, i), client.at(client.boxes, i)
        replayed = replay.assert_equal(features, points, boxes)
        assert list(points.ids) == list(first.ids[:2]) and points.labels == ["hub", ""]
        assert list(boxes.ids) == [first.ids[2]] and boxes.labels == ["cyclist"]
        tracks = client.at(client.masks, i)
        assert list(tracks.ids) == [first.ids[3]] and tracks.ids[0] >= FIRST_MASK_ID
        for message in (points, boxes, tracks):
            assert message.header == header(i)
            assert (message.epoch, message.index) == (features.epoch, features.index)
            assert (message.camera, message.model, message.weights_hash) == (
                features.camera,
                features.model,
                features.weights_hash,
            )
            assert (message.image_width, message.image_height) == (IMAGE_WIDTH, IMAGE_HEIGHT)
            assert message.tracker and set(message.status) <= {message.VISIBLE, message.OCCLUDED}
    labels = image_to_labels(client.at(masks, 5))
    assert set(np.unique(labels)) - {0} == {first.ids[3]}
    assert ((labels > 0) != (replayed.segments > 0)).mean() < MASK_TOLERANCE
    client.node.destroy_subscription(subscription)
    check_diagnostics(client)


def check_diagnostics(client: TrackClient) -> None:
    values, _ = client.status("rvm: camera rvm_camera", lambda values, _: values.get("point_tracks") == "2")
    assert (values["box_tracks"], values["mask_tracks"], values["queries_waiting"]) == ("1", "1", "0")
    assert int(values["queries_accepted"]) >= 4
    assert 0 <= float(values["tracking_ms_p50"]) <= float(values["tracking_ms_p95"])


def test_tracks_are_removed_and_cleared(client: TrackClient, clip: list[np.ndarray]) -> None:
    client.exchange(image(clip[0], 0))
    ids = list(client.ask("add", **point((100.0, 100.0), (200.0, 100.0)), **box(50.0, 50.0, 150.0, 150.0)).ids)
    client.exchange(image(clip[1], 1))
    assert list(client.at(client.points, 1).ids) == ids[:2]
    removed = client.ask("remove", remove_ids=[ids[0], ids[2], 2**64 - 1])
    assert list(removed.accepted) == [True, True, False] and "no track" in removed.reason[2]
    client.exchange(image(clip[2], 2))
    assert list(client.at(client.points, 2).ids) == ids[1:2]
    assert list(client.at(client.boxes, 2).ids) == [], "that there are none any more is said once"
    assert list(client.ask("clear", clear=True).accepted) == [True]
    client.exchange(image(clip[3], 3))
    assert list(client.at(client.points, 3).ids) == []
    client.exchange(image(clip[4], 4))
    late = client.ask("reuse", **point((100.0, 100.0)), point_ids=ids[:1])
    assert "used before" in late.reason[0]
    assert frames_of(client.points) == [1, 2, 3]
    assert frames_of(client.boxes) == [1, 2]


def test_each_refusal_has_its_reason(client: TrackClient, clip: list[np.ndarray]) -> None:
    client.exchange(image(clip[0], 0))
    id, nan = 1000, float("nan")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"camera": "rear"}, "there is no camera 'rear'; cameras: rvm_camera"),
        ({"header": Header(frame_id="base_link")}, "'base_link', but images of rvm_camera have 'camera_optical_frame'"),
        ({"header": header(-5)}, "older than the oldest remembered frame"),
        ({"header": header(500)}, "by more than query_wait"),
        ({"point_ids": [1, 2]}, "one length"),
        (point((nan, 1.0)), "not finite"),
        (point((IMAGE_WIDTH + 1.0, 1.0)), "outside"),
        ({**point(), **box(5.0, 5.0, 1.0, 9.0)}, "empty"),
        ({**point(), "mask": mask_message(), "mask_values": [3]}, "no pixel of the mask image has the value 3"),
        ({**point(), "mask": mask_message(), "mask_ids": [2**16]}, "mono16"),
    ]
    for number, (fields, reason) in enumerate(refused):
        answer = client.ask(f"refused {number}", **{**point((10.0, 10.0)), **fields})
        assert list(answer.accepted) == [False] and reason in answer.reason[0], answer
    answer = client.ask("many", **point(*[(20.0 * i, 20.0) for i in range(1, 7)]), point_ids=[id, id, 0, 0, 0, 0])
    assert list(answer.accepted) == [True, False, True, True, True, False]
    assert answer.reason[1] == f"id {id} is in use" and "max_points, 4" in answer.reason[5]
    client.exchange(image(clip[1], 1))
    assert len(client.at(client.points, 1).ids) == 4, "what was refused changed nothing"


def test_a_query_at_an_older_stamp_catches_up(client: TrackClient, clip: list[np.ndarray]) -> None:
    replay = Replay()
    for i in range(4):
        features = client.exchange(image(clip[i], i))
        replay.frame(features)
    wanted: dict[str, Any] = {**point((320.0, 140.0)), **box(250.0, 60.0, 420.0, 250.0), "header": header(1)}
    answer = client.ask("older", **wanted)
    assert list(answer.accepted) == [True, True] and answer.header == header(1)
    replay.ask(TrackQueries(**wanted))
    features = client.exchange(image(clip[4], 4))
    replay.assert_equal(features, client.at(client.points, 4), client.at(client.boxes, 4))


def test_a_query_ahead_of_its_frame_waits_for_it(client: TrackClient, clip: list[np.ndarray]) -> None:
    client.exchange(image(clip[0], 0))
    client.send("ahead", **point((320.0, 140.0)), header=header(2))
    client.status("rvm: camera rvm_camera", lambda values, _: values.get("queries_waiting") == "1")
    client.exchange(image(clip[1], 1))
    assert not [a for a in client.answers if a.request_id == "ahead"]
    client.exchange(image(clip[2], 2))
    answer = client.answer("ahead")
    assert list(answer.accepted) == [True] and answer.header == header(2)


def test_a_burst_of_queries_is_answered_in_full(client: TrackClient, clip: list[np.ndarray]) -> None:
    client.exchange(image(clip[0], 0))
    for i in range(100):
        client.send(f"burst {i}", remove_ids=[i + 1])
    answers = [client.answer(f"burst {i}") for i in range(100)]
    assert all(len(answer.ids) == 1 for answer in answers)


def test_a_reset_loses_every_track_once(client: TrackClient, clip: list[np.ndarray]) -> None:
    first = client.exchange(image(clip[0], 0))
    answer = client.ask("add", **point((100.0, 100.0)), point_labels=["hub"], **box(50.0, 50.0, 150.0, 150.0))
    client.exchange(image(clip[1], 1))
    assert client.call(Trigger, "/rvm/reset", Trigger.Request()).success
    for i in range(2, 5):
        client.exchange(image(clip[i], i))
    client.ask("again", **point((100.0, 100.0)), point_ids=[0])
    client.exchange(image(clip[5], 5))
    points, boxes, anew = client.at(client.points, 2), client.at(client.boxes, 2), client.at(client.points, 5)
    for message, id in ((points, answer.ids[0]), (boxes, answer.ids[1])):
        assert (message.epoch, message.index) == (first.epoch + 1, 0)
        assert (list(message.ids), list(message.status)) == ([id], [message.LOST])
    assert points.labels == ["hub"] and np.isnan(points.x[0])
    assert frames_of(client.boxes) == [1, 2]
    assert frames_of(client.points) == [1, 2, 5]
    assert anew.ids[0] > max(answer.ids), "ids go on"


def test_the_overlay_shows_the_tracks(client: TrackClient, clip: list[np.ndarray]) -> None:
    overlays: list[Image] = []
    subscription = client.node.create_subscription(Image, "/rvm/overlay", overlays.append, RELIABLE)
    wait_for(subscription.get_publisher_count, "the overlay's publisher")
    client.exchange(image(clip[0], 0))
    answer = client.ask("add", **box(200.0, 60.0, 400.0, 250.0))
    assert list(answer.accepted) == [True]
    numbers = itertools.count(1)

    def overlay() -> Image | None:
        i = next(numbers)
        client.exchange(image(clip[i % len(clip)], i))
        return next((message for message in overlays if message.header == header(i)), None)

    picture = wait_for(overlay, "an overlay")
    assert picture is not None
    pixels = np.frombuffer(picture.data, np.uint8).reshape(IMAGE_HEIGHT, IMAGE_WIDTH, 3)
    drawn = (pixels == np.array(color_of(answer.ids[0]))).all(axis=-1)
    assert drawn.sum() > 100
    client.node.destroy_subscription(subscription)


def readme_planner() -> str:
    """The planner that the README shows."""
    blocks = re.findall(r"((?:^    .*\n|^\n)+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    (planner,) = [textwrap.dedent(block) for block in blocks if 'create_node("planner")' in block]
    return planner


def test_the_planner_of_the_readme_works(
    client: TrackClient, clip: list[np.ndarray], ros_environment: dict[str, str], tmp_path: Path
) -> None:
    client.exchange(image(clip[0], 0))
    output = tmp_path / "output"
    with output.open("w") as file:
        command = [sys.executable, "-c", readme_planner()]
        process = subprocess.Popen(command, cwd=ROOT, env=ros_environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: "[True]" in output.read_text() or process.poll() is not None, "the planner to be answered")
        assert process.poll() is None, output.read_text()
        client.exchange(image(clip[1], 1))
        assert client.at(client.points, 1).labels == ["hub"]
        wait_for(lambda: output.read_text().count("\n") == 2, "the planner to be told where the point is")
    finally:
        process.kill()
        process.wait()


def test_each_camera_has_its_own_tracks(ros_environment: dict[str, str], clip: list[np.ndarray]) -> None:
    parameters = {**NODE, "camera_topics": "['/left/image','/right/image']"}
    with (
        NodeProcess(ros_environment, name="two", **parameters),
        TrackClient("two", camera="left", topic="/left/image") as left,
        TrackClient("two", camera="right", topic="/right/image") as right,
    ):
        for number, client in enumerate((left, right)):
            client.wait_for_node()
            client.exchange(image(clip[0], 0))
            answer = client.ask(client.camera_name, **point((100.0 + number, 100.0)), point_ids=[7])
            assert list(answer.accepted) == [True] and answer.camera == client.camera_name
        for client in (left, right):
            client.exchange(image(clip[1], 1))
            assert client.at(client.points, 1).camera == client.camera_name
        nameless = left.ask("nameless", camera="", **point((1.0, 1.0)))
        assert "there is no camera ''; cameras: left, right" in nameless.reason[0]


def test_ids_and_lost_tracks_survive_the_lifecycle(ros_environment: dict[str, str], clip: list[np.ndarray]) -> None:
    def change(transition: int) -> None:
        request = ChangeState.Request(transition=Transition(id=transition))
        assert client.call(ChangeState, "/kept/change_state", request).success

    with NodeProcess(ros_environment, name="kept", **NODE) as process, TrackClient("kept") as client:
        client.wait_for_node()
        client.send("early", **point((10.0, 10.0)))
        client.exchange(image(clip[0], 0))
        assert list(client.answer("early").accepted) == [True], "what comes before the first frame waits for it"
        client.exchange(image(clip[1], 1))
        client.send("never", **point((10.0, 10.0)), header=header(9))
        change(Transition.TRANSITION_DEACTIVATE)
        assert client.answer("never").reason == ["the node was deactivated"]
        change(Transition.TRANSITION_CLEANUP)
        change(Transition.TRANSITION_CONFIGURE)
        change(Transition.TRANSITION_ACTIVATE)
        client.wait_for_node()
        client.exchange(image(clip[2], 2))
        lost = client.at(client.points, 2)
        assert (list(lost.ids), list(lost.status)) == ([1], [lost.LOST])
        assert "used before" in client.ask("reuse", **point((10.0, 10.0)), point_ids=[1]).reason[0]
        assert list(client.ask("new", **point((10.0, 10.0))).ids) == [2]
        assert "Traceback" not in process.output
