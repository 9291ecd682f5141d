"""The order in which frames and queries have their turn."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed")

from hypothesis import given
from hypothesis import strategies as st

import rvm_perception.bag_order as bag_order
from bag_files import START_NS, Shot, query, write_bag
from rvm_perception.bag_order import BagIndex, in_stamp_order, index_bag, read_turns, turns
from rvm_perception.bag_reader import Bag, BagError
from rvm_perception.stream import LATE_TOLERANCE_NS

MS = 1_000_000
FRONT, REAR, ASKED = "/front/image_raw", "/rear/image_raw", "/rvm/track_queries"


def order(*milliseconds: int) -> list[int]:
    stamps = np.array(milliseconds, np.int64) * MS
    return [milliseconds[i] for i in in_stamp_order(stamps)]


def test_frames_that_were_received_late_are_put_in_their_place() -> None:
    assert order() == [] and order(5) == [5]
    assert order(0, 40, 80) == [0, 40, 80]
    assert order(0, 80, 40, 120) == [0, 40, 80, 120]
    assert order(0, 120, 40, 80, 160) == [0, 40, 80, 120, 160], "two late ones in a row are late"


def test_a_clock_that_was_set_back_starts_a_new_part() -> None:
    back = LATE_TOLERANCE_NS // MS
    assert order(5000, 5040, 5040 - back, 5080 - back) == [5000, 5040, 5040 - back, 5080 - back]
    assert order(5000, 5040, 5041 - back, 5080) == [5041 - back, 5000, 5040, 5080], "less than that is late"
    # Three in a row, each less than a second back, are a loop too, as at the node; it began with the first of them.
    assert order(500, 540, 100, 140, 180, 220) == [500, 540, 100, 140, 180, 220]
    # A late frame before a jump stays in the old part.
    assert order(5000, 5080, 5040, 1000, 1040) == [5000, 5040, 5080, 1000, 1040]


@given(st.lists(st.integers(0, 3000), max_size=60))
def test_every_frame_has_one_turn(stamps: list[int]) -> None:
    found = in_stamp_order(np.array(stamps, np.int64) * MS)
    assert sorted(found.tolist()) == list(range(len(stamps)))


@given(st.permutations(range(40)))
def test_small_disorder_is_sorted(places: list[int]) -> None:
    """Frames that are received at most two places late, as with two threads of a driver, come out in order."""
    late = sorted(range(40), key=lambda i: i + (2.5 if places[i] % 5 == 0 else 0))
    assert order(*(10 * i for i in late)) == [10 * i for i in range(40)]


def index_of(tmp_path: Path, *messages: Any) -> tuple[Path, BagIndex]:
    path = write_bag(tmp_path / "bag", [m.raw() if isinstance(m, Shot) else m for m in messages])
    with Bag(path) as bag:
        return path, index_bag(bag, [FRONT, REAR, ASKED])


def names(path: Path, index: BagIndex, first: int = 0) -> list[str]:
    """The messages as their turns come: camera or q, and stamp in periods, or when a query was received."""
    found = []
    wanted = turns(index, queries=[ASKED])
    with Bag(path) as bag:
        for number, message in read_turns(bag, index, wanted, first=first):
            at = wanted.position[number]
            assert message.received_ns == index.received[at]
            stamp = (int(index.stamp[at]) - START_NS) / 40e6
            kind = {FRONT: "f", REAR: "r", ASKED: "q"}[message.topic]
            found.append(kind if kind == "q" else f"{kind}{stamp:g}")
    return found


def test_cameras_and_queries_take_turns(tmp_path: Path) -> None:
    path, index = index_of(
        tmp_path,
        *(Shot(stamp=i, topic=FRONT) for i in range(4)),
        *(Shot(stamp=i, received=i + 0.5, topic=REAR) for i in range(2)),
        query(1.2),
        query(9),
    )
    assert names(path, index) == ["f0", "r0", "f1", "q", "r1", "f2", "f3", "q"]
    assert names(path, index, first=3) == ["q", "r1", "f2", "f3", "q"]
    assert index.counts == [4, 2, 2]


def test_a_late_frame_holds_up_those_before_it_only(tmp_path: Path) -> None:
    path, index = index_of(
        tmp_path,
        *(Shot(stamp=i, topic=FRONT) for i in (0, 2, 3)),
        Shot(stamp=1, received=2.5, topic=FRONT),
        Shot(stamp=2, received=2.2, topic=REAR),
        query(2.1),
    )
    # The query was received after frames 0 and 2 and before frame 1, whose turn comes before that of frame 2.
    assert names(path, index) == ["f0", "q", "r2", "f1", "f2", "f3"]
    wanted = turns(index, queries=[ASKED])
    assert wanted.out_of_order == {FRONT: 1, REAR: 0}
    assert (np.diff(wanted.time) > 0).all()


def test_messages_received_at_once_keep_the_order_of_the_file(tmp_path: Path) -> None:
    path, index = index_of(tmp_path, *(Shot(stamp=i, received=0, topic=FRONT) for i in range(5)))
    assert names(path, index) == ["f0", "f1", "f2", "f3", "f4"]
    assert np.diff(turns(index).time).tolist() == [1] * 4


def test_what_is_held_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stamps in any order at all: what does not fit is read once more."""
    stamps = random.Random(3).sample(range(20), 20)
    shots = [Shot(stamp=stamp, received=i, topic=FRONT) for i, stamp in enumerate(stamps)]
    path, index = index_of(tmp_path, *shots)
    expected = names(path, index)
    monkeypatch.setattr(bag_order, "HELD_BYTES", 1)
    assert names(path, index) == expected


def test_a_message_without_header_keeps_its_place(tmp_path: Path) -> None:
    broken = Shot(stamp=1, topic=FRONT).raw()._replace(data=b"\x00\x01\x00\x00\x00")
    _, index = index_of(tmp_path, Shot(stamp=0, topic=FRONT), broken, Shot(stamp=2, topic=FRONT))
    assert (index.stamp - START_NS).tolist() == [0, 0, 80 * MS]


def test_a_bag_that_changes_meanwhile(tmp_path: Path) -> None:
    path, index = index_of(tmp_path, *(Shot(stamp=i, topic=FRONT) for i in range(3)))
    write_bag(tmp_path / "other", [Shot(stamp=i, topic=FRONT, size=(16, 16)).raw() for i in range(3)])
    with Bag(tmp_path / "other") as bag, pytest.raises(BagError, match="changed while it was read"):
        list(read_turns(bag, index, turns(index)))
