"""States of streams and tracks as files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from rvm_core.preprocess import Preprocess
from rvm_core.readout import KeyValues
from rvm_core.tracking.base import PointQuery, PointTracks, Tracks
from rvm_core.tracking.matching import FrameKeys
from rvm_perception.parameters import NodeParameters
from rvm_perception.saved_state import StateError, load_value, save_value
from rvm_perception.track_queries import Answer, Item, Kind
from rvm_perception.track_session import TrackState, make_tracker
from track_stand_ins import assert_identical


def again(tmp_path: Path, value: Any) -> Any:
    save_value(tmp_path / "state", value)
    return load_value(tmp_path / "state")


@pytest.mark.parametrize(
    "value",
    [
        None,
        [1, -0.0, 1e-310, True, "é", 2**63, None],
        {"a": (1, 2.5), 3: [], "nested": {"b": frozenset({Kind.POINT, Kind.MASK})}},
        np.arange(6, dtype=np.uint64).reshape(2, 3),
        np.zeros((0, 4), np.float32),
        torch.arange(4, dtype=torch.bfloat16),
        torch.zeros((0, 3)),
        (torch.tensor(2.5), np.array(1.5)),
        Item(kind=Kind.BOX, pixels=(1.0, 2.0, 3.0, 4.0), label="car"),
        KeyValues(keys=torch.ones(1, 2), values=torch.zeros(2)),
        Tracks(points=PointTracks(ids=np.array([1], np.uint64))),
    ],
)
def test_values_come_back(tmp_path: Path, value: Any) -> None:
    assert_identical(again(tmp_path, value), value)


def test_numbers_that_are_none_and_counters(tmp_path: Path) -> None:
    found = again(tmp_path, {"x": float("nan"), "y": float("inf"), "c": Counter(a=3)})
    assert np.isnan(found["x"]) and found["y"] == float("inf")
    assert isinstance(found["c"], Counter) and found["c"]["missing"] == 0


def test_what_is_shared_is_written_once_and_memory_is_laid_out_as_before(tmp_path: Path) -> None:
    big = torch.randn(300, 40)
    turned = torch.randn(8, 5).T
    found = again(tmp_path, {"a": big, "b": (big, big), "t": turned})
    assert found["a"] is found["b"][0] is found["b"][1]
    assert (tmp_path / "state").stat().st_size < 1.2 * big.nbytes + 5000
    assert found["t"].stride() == turned.stride() and torch.equal(found["t"], turned)


def test_the_state_of_a_tracker(tmp_path: Path) -> None:
    tracker = make_tracker(NodeParameters(height=64, width=96), 16)
    assert tracker is not None
    rng = torch.Generator().manual_seed(0)
    state = tracker.init_state()
    tokens = [torch.randn(25, 16, generator=rng) for _ in range(6)]
    for frame in tokens[:3]:
        _, state = tracker.step(frame, state)
    state = tracker.add([PointQuery(id=4, x=1.5, y=2.0)], state, age=1)
    frame_map = Preprocess(height=64, width=96, policy="letterbox").map(48, 72)
    whole = TrackState(tracker=state, frame_map=frame_map, stamps=(1, 2, 3))
    found = again(tmp_path, whole)
    assert_identical(found, whole)
    for frame in tokens[3:]:
        expected, state = tracker.step(frame, state)
        tracks, found_state = tracker.step(frame, found.tracker)
        found = TrackState(tracker=found_state)
        assert_identical(tracks, expected)


class Foreign(NamedTuple):
    x: int


@pytest.mark.parametrize("value", [object(), Foreign(x=1), {"a": print}, b"bytes", FrameKeys, Answer])
def test_other_values_are_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(StateError, match="cannot be saved"):
        save_value(tmp_path / "state", value)


@pytest.mark.parametrize(
    "tree",
    [
        {"class": "os:system", "fields": {}},
        {"class": "rvm_core.atomic:os", "fields": {}},
        {"class": "rvm_core.atomic:atomic_file", "fields": {}},
        {"class": "rvm_core.model:RVM", "fields": {}},
        {"class": "rvm_core.nothing:There", "fields": {}},
        {"tensor": "7"},
        {"what": []},
        {"class": "rvm_perception.track_queries:Item", "fields": {"colour": 1}},
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, tree: Any) -> None:
    save_file({}, tmp_path / "state", metadata={"tree": json.dumps(tree)})
    with pytest.raises(StateError):
        load_value(tmp_path / "state")


def test_files_that_hold_no_state(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pytest.raises(StateError):
        load_value(path)
    for content in (b"", b"text that is none", bytes(64)):
        path.write_bytes(content)
        with pytest.raises(StateError):
            load_value(path)
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(StateError):
        load_value(path)
