"""A bag played into the live node gives, to the last bit, what its replay gives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed")
pytest.importorskip("rosbags", reason="rosbags is not installed")

from rclpy.serialization import deserialize_message  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image  # noqa: E402

from bag_files import PERIOD_NS, START_NS, WEIGHTS, query, write_bag  # noqa: E402
from live_node import NodeProcess, TrackClient, wait_for  # noqa: E402
from rvm_perception.bag_reader import Bag, RawMessage, decode, header_stamp_ns  # noqa: E402
from rvm_perception.bag_types import COMPRESSED_IMAGE, IMAGE, TRACK_QUERIES, own_types  # noqa: E402
from rvm_perception.conversions import labels_to_image, rgb_to_compressed, rgb_to_image  # noqa: E402
from rvm_perception.make_bag import make_header  # noqa: E402
from rvm_perception.msg import TrackQueries  # noqa: E402

TOPIC = "/camera/image_raw"
SETTINGS: dict[str, Any] = {
    "height": 64, "width": 128, "device": "cpu", "backend": "torch", "precision": "fp32", "weights": str(WEIGHTS),
    "max_points": 3, "query_wait": 5.0,
}  # fmt: skip
STAMPS = [0, 1, 2, 3, 4, 5, 6, 7, 7, 70, 71, 72, 10, 11]
"""Periods after the start: one twice, a gap that resets, and a clock that is set back."""


def frame(image: np.ndarray, stamp: int, place: int, kind: str) -> RawMessage:
    header = make_header(START_NS + stamp * PERIOD_NS, "optical")
    rgb = np.ascontiguousarray(image[..., ::-1])
    types = own_types()
    convert: Any = rgb_to_image if kind == IMAGE else rgb_to_compressed
    message = convert(rgb, header, message_type=types.message(kind))
    topic = TOPIC if kind == IMAGE else f"{TOPIC}/compressed"
    return RawMessage(topic, kind, START_NS + place * PERIOD_NS, types.serialize(message, kind))


def recording(clip: list[np.ndarray]) -> list[RawMessage]:
    labels = np.zeros(clip[0].shape[:2], np.uint16)
    labels[:, 60:200] = 9
    header = own_types().message("std_msgs/msg/Header")()
    mask = labels_to_image(labels, header, message_type=own_types().message(IMAGE))
    return [
        query(0.3, point_x=[320.0, 100.5], point_y=[140.0, 60.0], point_labels=["hub", ""], request_id="points"),
        query(
            2.3, stamp=1, box_x_min=[250.0], box_y_min=[60.0], box_x_max=[420.0], box_y_max=[250.0], request_id="box"
        ),
        query(3.3, stamp=5, point_x=[33.0], point_y=[44.0], request_id="ahead"),
        query(4.3, mask=mask, request_id="mask"),
        query(6.3, point_x=[9.0], point_y=[9.0], request_id="too many"),
        query(6.6, remove_ids=[2], request_id="remove"),
        query(10.3, point_x=[320.0], point_y=[140.0], request_id="again"),
    ]


class Player:
    """Publishes a bag message by message, each when the node has done with the one before: a rate that it can keep."""

    def __init__(self, client: TrackClient) -> None:
        self._client = client
        self._stamps: set[int] = set()

    def play(self, bag: Path) -> None:
        with Bag(bag) as recorded:
            for raw in recorded.messages(list(recorded.topics)):
                if raw.message_type == TRACK_QUERIES:
                    self._ask(deserialize_message(raw.data, TrackQueries))
                else:
                    self._show(raw)

    def _show(self, raw: RawMessage) -> None:
        kind = Image if raw.message_type == IMAGE else CompressedImage
        message = deserialize_message(raw.data, kind)
        stamp = header_stamp_ns(raw)
        if stamp in self._stamps:
            self._client.publish(message)
            # A frame that is not stepped gives no features; diagnostics count it.
            self._client.status("rvm: camera camera", lambda values, _: values["rejected"] == "1")
        else:
            self._stamps.add(stamp)
            self._client.exchange(message)

    def _ask(self, message: TrackQueries) -> None:
        self._client.queries.publish(message)
        if message.request_id == "ahead":
            self._client.status("rvm: camera camera", lambda values, _: values.get("queries_waiting") == "1")
        else:
            self._client.answer(message.request_id)


@pytest.fixture(scope="module", params=[IMAGE, COMPRESSED_IMAGE])
def bag(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, clip: list[np.ndarray]) -> Path:
    frames = [frame(clip[place], stamp, place, request.param) for place, stamp in enumerate(STAMPS)]
    queries = [message._replace(received_ns=message.received_ns - 1_000_000) for message in recording(clip)]
    return write_bag(tmp_path_factory.mktemp("recorded") / "bag", [*frames, *queries])


@pytest.fixture(scope="module")
def live(bag: Path, ros_environment: dict[str, str]) -> Iterator[TrackClient]:
    """A client that has taken everything that the node published while the bag was played."""
    with Bag(bag) as recorded:
        compressed = TOPIC not in recorded.topics
    settings = {**SETTINGS, "camera_topics": f"['{TOPIC}']", "input_reliability": "reliable"}
    settings["image_transport"] = "compressed" if compressed else "raw"
    environment = {**ros_environment, "OMP_NUM_THREADS": "1"}
    topic = f"{TOPIC}/compressed" if compressed else TOPIC
    client = TrackClient(topic=topic)
    with NodeProcess(environment, **settings), client:
        client.wait_for_node()
        Player(client).play(bag)
        wait_for(lambda: len(client.features) == len(STAMPS) - 1, "all features")
        yield client


@pytest.fixture(scope="module")
def replayed(
    bag: Path, ros_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Any]]:
    """The messages of the replay by topic."""
    folder = tmp_path_factory.mktemp("replayed")
    settings = "\n    ".join(f"{name}: {value}" for name, value in SETTINGS.items())
    (folder / "rvm.yaml").write_text(f"/**:\n  ros__parameters:\n    {settings}\n")
    options = ["--out", str(folder / "out"), "--params", str(folder / "rvm.yaml"), "--no-overlay", "--no-report"]
    subprocess.run(
        [sys.executable, "-m", "rvm_core.cli", "replay", str(bag), *options],
        check=True,
        env={**ros_environment, "OMP_NUM_THREADS": "1"},
    )
    found: dict[str, list[Any]] = {}
    with Bag(folder / "out/replay.mcap") as results:
        for raw in results.messages(list(results.topics)):
            found.setdefault(raw.topic, []).append(decode(raw))
    return found


def assert_equal_messages(live: Any, replayed: Any) -> None:
    """That all fields are the same to the last bit."""
    for name in live.get_fields_and_field_types():
        one, other = getattr(live, name), getattr(replayed, name)
        if name == "header":
            assert (one.stamp.sec, one.stamp.nanosec, one.frame_id) == (
                other.stamp.sec,
                other.stamp.nanosec,
                other.frame_id,
            )
        elif isinstance(one, (str, int, bool)):
            assert one == other, name
        else:
            assert len(one) == len(other), name
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=name)


def test_features_are_the_same(live: TrackClient, replayed: dict[str, list[Any]]) -> None:
    found = replayed["/rvm/features"]
    assert [m.index for m in found] == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 0, 1]
    assert [m.epoch for m in found] == [0] * 8 + [1] * 3 + [2] * 2
    assert [m.skipped for m in found] == [0] * 8 + [1] + [0] * 4, "the one that came twice"
    assert len(live.features) == len(found)
    for one, other in zip(live.features, found, strict=True):
        assert_equal_messages(one, other)


@pytest.mark.parametrize("kind", ["points", "boxes", "masks"])
def test_tracks_are_the_same(live: TrackClient, replayed: dict[str, list[Any]], kind: str) -> None:
    topic = {"points": "point_tracks", "boxes": "box_tracks", "masks": "mask_tracks"}[kind]
    found, received = replayed[f"/rvm/{topic}"], getattr(live, kind)
    assert len(found) >= 4
    wait_for(lambda: len(received) == len(found), f"{len(found)} messages of {topic}")
    for one, other in zip(received, found, strict=True):
        assert_equal_messages(one, other)


def test_answers_are_the_same(live: TrackClient, replayed: dict[str, list[Any]]) -> None:
    found = replayed["/rvm/track_answers"]
    accepted = {m.request_id: m.accepted.tolist() for m in found}
    assert accepted == {
        "points": [True, True], "box": [True], "ahead": [True], "mask": [True], "too many": [False],
        "remove": [True], "again": [True],
    }  # fmt: skip
    assert len(live.answers) == len(found)
    for one, other in zip(live.answers, found, strict=True):
        assert_equal_messages(one, other)
