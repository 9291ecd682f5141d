"""Recordings in every form, whole and damaged."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed")

from bag_files import PERIOD_NS, START_NS, STORAGES, Shot, clip_bag, cut, mcap_of, query, spoil, storage_file, write_bag
from rvm_perception.bag_reader import Bag, BagError, MessageError, RawMessage, decode, header_stamp_ns
from rvm_perception.bag_types import COMPRESSED_IMAGE, IMAGE, TRACK_QUERIES, own_types
from rvm_perception.conversions import compressed_to_rgb, image_to_rgb
from video_clip import level_of

TOPIC = "/camera/image_raw"


def read(path: Path, topics: list[str] | None = None, **options: Any) -> list[RawMessage]:
    with Bag(path, **options) as bag:
        return list(bag.messages(topics or list(bag.topics)))


@pytest.mark.parametrize(("storage", "compression"), STORAGES)
def test_every_storage_and_compression(tmp_path: Path, storage: str, compression: str) -> None:
    path = clip_bag(tmp_path, frames=6, storage=storage, compression=compression)
    with Bag(path) as bag:
        assert (bag.name, bag.storage, bag.recovered) == ("bag", storage, "")
        topic = bag.topics[TOPIC]
        assert (topic.message_type, topic.count) == (IMAGE, 6)
        messages = list(bag.messages([TOPIC]))
        assert [header_stamp_ns(m) for m in messages] == [START_NS + i * PERIOD_NS for i in range(6)]
        last = image_to_rgb(decode(messages[-1]))
        later = list(bag.messages([TOPIC], messages[3].received_ns, messages[5].received_ns))
        assert later == messages[3:5]
    assert abs(int(last[-1, -1, 0]) - level_of(5)) < 8
    if compression != "none" or storage == "sqlite3":
        single = storage_file(path)
        assert read(single) == messages, "a single file, which no metadata tells how it is compressed"


@pytest.mark.parametrize("form", ["jpeg", "png"])
def test_compressed_images(tmp_path: Path, form: str) -> None:
    path = clip_bag(tmp_path, frames=2, form=form)
    (first, _) = read(path)
    assert (first.topic, first.message_type) == (f"{TOPIC}/compressed", COMPRESSED_IMAGE)
    assert compressed_to_rgb(decode(first)).shape == (48, 72, 3)


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("compression", ["lz4", ""])
def test_mcap_of_other_recorders(tmp_path: Path, compression: str, indexed: bool) -> None:
    sent = [Shot(stamp=i).raw() for i in range(4)]
    file = mcap_of(tmp_path / "other.mcap", sent, compression=compression, indexed=indexed)
    assert read(file) == sent


def test_a_recording_in_several_files(tmp_path: Path) -> None:
    from ruamel.yaml import YAML

    parts = [write_bag(tmp_path / f"part_{i}", [Shot(stamp=10 * i + j).raw() for j in range(3)]) for i in range(2)]
    whole = tmp_path / "whole"
    whole.mkdir()
    for number, part in enumerate(parts):
        shutil.copy(storage_file(part), whole / f"whole_{number}.mcap")
    yaml = YAML(typ="safe")
    content = yaml.load((parts[0] / "metadata.yaml").read_text())
    about = content["rosbag2_bagfile_information"]
    about["relative_file_paths"] = ["whole_0.mcap", "whole_1.mcap"]
    about["message_count"] = about["topics_with_message_count"][0]["message_count"] = 6
    with (whole / "metadata.yaml").open("w") as file:
        yaml.dump(content, file)
    assert [header_stamp_ns(m) - START_NS for m in read(whole)] == [i * PERIOD_NS for i in (0, 1, 2, 10, 11, 12)]
    (whole / "whole_1.mcap").unlink()
    with pytest.raises(BagError, match="missing"):
        read(whole)
    with Bag(whole, recover=True) as bag:
        assert bag.recovered and len(list(bag.messages([TOPIC]))) == 3
        assert bag.lost({TOPIC: 3}) == 3


def test_queries_and_types_that_are_not_known(tmp_path: Path) -> None:
    asked = query(0.5, stamp=0, point_x=[3.0], point_y=[4.0], point_ids=[7], point_labels=["é"], request_id="r")
    path = write_bag(tmp_path / "bag", [Shot(stamp=0).raw(), asked])
    (message,) = read(path, ["/rvm/track_queries"])
    request = decode(message)
    assert message.message_type == TRACK_QUERIES
    assert (request.point_x.tolist(), request.point_ids.tolist(), request.point_labels) == ([3.0], [7], ["é"])
    with Bag(path) as bag:
        bag.check_definition(bag.topics["/rvm/track_queries"])


def test_queries_of_another_version_are_refused(tmp_path: Path) -> None:
    from rosbags.rosbag2 import Writer

    with Writer(tmp_path / "bag", version=9) as writer:
        connection = writer.add_connection(
            "/rvm/track_queries", TRACK_QUERIES, msgdef="string camera\nint32 newer\n", rihs01="RIHS01_00"
        )
        writer.write(connection, START_NS, b"\x00\x01\x00\x00" + bytes(12))
    with Bag(tmp_path / "bag") as bag, pytest.raises(BagError, match="another version"):
        bag.check_definition(bag.topics["/rvm/track_queries"])


def test_a_damaged_message_is_told_from_a_damaged_bag() -> None:
    whole = Shot(stamp=1).raw()
    with pytest.raises(MessageError, match="sensor_msgs/msg/Image on /camera/image_raw"):
        decode(whole._replace(data=whole.data[:200]))
    for data in (b"", whole.data[:11], b"\x07" + whole.data[1:]):
        with pytest.raises(MessageError):
            header_stamp_ns(whole._replace(data=data))
    big = Shot(stamp=1).raw()
    swapped = bytes([0, 0]) + big.data[2:4] + big.data[7:3:-1] + big.data[11:7:-1] + big.data[12:]
    assert header_stamp_ns(big._replace(data=swapped)) == START_NS + PERIOD_NS


# Damage: refused with a reason, and read as far as that goes when asked to.

DAMAGES: dict[str, tuple[str, str, Any]] = {
    "truncated mcap": ("mcap", "none", lambda bag: cut(storage_file(bag), 0.6)),
    "truncated mcap in chunks": ("mcap", "chunk", lambda bag: cut(storage_file(bag), 0.6)),
    "truncated zstd": ("mcap", "file", lambda bag: cut(storage_file(bag), 0.7)),
    "truncated sqlite": ("sqlite3", "none", lambda bag: cut(storage_file(bag), 0.6)),
    "spoiled sqlite": ("sqlite3", "none", lambda bag: spoil(storage_file(bag), 0.5, 6000)),
    "no metadata": ("mcap", "none", lambda bag: (bag / "metadata.yaml").unlink()),
    "metadata of another kind": ("sqlite3", "none", lambda bag: (bag / "metadata.yaml").write_text("[1, 2")),
}


def noisy_bag(path: Path, storage: str, compression: str) -> Path:
    """Forty images of 200 kB that do not compress, so that there are several chunks."""
    shots = [Shot(stamp=i, size=(240, 320)).raw() for i in range(40)]
    return write_bag(path, shots, storage=storage, compression=compression)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_bags(tmp_path: Path, damage: str) -> None:
    storage, compression, spoil_bag = DAMAGES[damage]
    path = noisy_bag(tmp_path / "bag", storage, compression)
    whole = read(path)
    spoil_bag(path)
    with pytest.raises(BagError, match=r"(?s)bag.*--recover"):
        read(path)
    with Bag(path, recover=True) as bag:
        assert bag.recovered and "--recover" not in bag.recovered
        assert bag.storage == storage
        found = sorted(bag.messages([TOPIC]), key=lambda message: message.received_ns)
    assert set(found) <= set(whole), "what is read is what was recorded"
    least = 40 if "metadata" in damage else 12
    assert len(found) >= least, "what lies before the damage is read"
    if damage.startswith("spoiled"):
        assert found[-1] == whole[-1], "and what lies behind"


@pytest.mark.parametrize("indexed", [True, False])
def test_a_spoiled_chunk_is_left_out(tmp_path: Path, indexed: bool) -> None:
    sent = [Shot(stamp=i).raw() for i in range(9)]
    path = mcap_of(tmp_path / "bag.mcap", sent, compression="", indexed=indexed)
    spoil(path, 0.5)
    with pytest.raises(BagError, match="checksum.*--recover"):
        read(path)
    recovered = read(path, recover=True)
    assert recovered == [message for message in sent if message in recovered]
    assert len(recovered) == 8 and recovered[-1] == sent[-1]


def test_a_whole_bag_is_not_marked_as_recovered(tmp_path: Path) -> None:
    path = clip_bag(tmp_path, frames=3)
    with Bag(path, recover=True) as bag:
        assert (bag.recovered, bag.lost({TOPIC: 3})) == ("", 0)


def test_an_index_whose_entries_are_gone(tmp_path: Path) -> None:
    """Fewer messages than metadata.yaml says: somebody cut the recording."""
    path = clip_bag(tmp_path, frames=6, storage="sqlite3")
    with sqlite3.connect(storage_file(path)) as connection:
        connection.execute("DELETE FROM messages WHERE id > 3")
    with Bag(path) as bag:
        assert len(list(bag.messages([TOPIC]))) == 3
    from rvm_perception.bag_order import index_bag

    with Bag(path) as bag, pytest.raises(BagError, match="6 messages of /camera/image_raw, but 3 can be read"):
        index_bag(bag, [TOPIC])


def test_a_database_that_was_not_closed(tmp_path: Path) -> None:
    path = clip_bag(tmp_path, frames=3, storage="sqlite3")
    file = storage_file(path)
    live = sqlite3.connect(file)
    live.execute("PRAGMA journal_mode=WAL")
    live.execute("INSERT INTO messages SELECT id + 10, topic_id, timestamp + 1000000000, data FROM messages")
    live.commit()
    with pytest.raises(BagError, match="was not closed"):
        read(path)
    assert len(read(path, recover=True)) == 6
    live.close()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("nothing.mcap", b"", "empty"),
        ("text.mcap", b"this is a text of some length, and no recording at all", "damaged"),
        ("text.db3", b"this is a text of some length, and no recording at all", "damaged"),
        ("old.bag", b"#ROSBAG V2.0\n", "rosbags-convert"),
        ("film.mp4", b"\0\0\0 ftyp", "is no bag"),
    ],
)
def test_files_that_are_no_bags(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for recover in (False, True):
        with pytest.raises(BagError, match=f"{name}.*{reason}" if not recover else name):
            Bag(path, recover=recover)


def test_folders_that_are_no_bags(tmp_path: Path) -> None:
    with pytest.raises(BagError, match="there is no bag"):
        Bag(tmp_path / "missing")
    for recover in (False, True):
        with pytest.raises(BagError, match="no bag|no message"):
            Bag(tmp_path, recover=recover)


def test_bytes_at_random(tmp_path: Path) -> None:
    """Whatever stands in a file, it is a bag or a `BagError`."""
    rng = np.random.default_rng(5)
    for storage in ("mcap", "sqlite3"):
        path = clip_bag(tmp_path, name=storage, frames=3, storage=storage)
        file = storage_file(path)
        data = file.read_bytes()
        for _ in range(30):
            spoiled = bytearray(data)
            for at in rng.integers(0, len(data), 8):
                spoiled[at] = rng.integers(256)
            file.write_bytes(bytes(spoiled))
            for recover in (False, True):
                try:
                    read(path, recover=recover)
                except BagError:
                    pass


def test_nothing_of_ros_is_imported() -> None:
    code = "import sys, rvm_perception.replay_job, rvm_perception.make_bag_cli; " + (
        "from rvm_perception.bag_types import bag_message_types; bag_message_types(); "
        "print([m for m in sys.modules if m.split('.')[0] in ('rclpy', 'sensor_msgs', 'std_msgs')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_our_messages_are_those_of_ros() -> None:
    pytest.importorskip("rclpy", reason="ROS is not installed")
    from rclpy.serialization import deserialize_message, serialize_message

    from rvm_perception import msg

    types = own_types()
    for name in ("FeatureMap", "PointTracks", "BoxTracks", "MaskTracks", "TrackQueries", "QueryAnswers"):
        full = f"rvm_perception/msg/{name}"
        empty = deserialize_message(types.serialize(types.message(full)(), full), getattr(msg, name))
        assert empty == getattr(msg, name)(), name
    point = {"camera": "front", "epoch": 3, "index": 9, "labels": ["a", ""], "image_width": 640}
    mine: Any = types.message("rvm_perception/msg/PointTracks")(**point)
    theirs = msg.PointTracks(**point)
    for message in (mine, theirs):
        message.ids.frombytes(np.array([1, 2**64 - 1], np.uint64).tobytes())
        message.x.frombytes(np.array([1.5, np.nan], np.float32).tobytes())
        message.header.frame_id = "optical"
        message.header.stamp.sec = 7
    # Bytes between fields are not defined, so what they mean is compared.
    ours, again = (
        types.serialize(mine, mine.MSGTYPE),
        types.store.deserialize_cdr(serialize_message(theirs), mine.MSGTYPE),
    )
    assert repr(deserialize_message(ours, msg.PointTracks)) == repr(theirs)
    assert types.serialize(again, mine.MSGTYPE) == ours
