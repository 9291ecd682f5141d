"""summary.json and timing.json: written, read, refused, and their schema."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from rvm_perception.replay_summary import (
    SUMMARY,
    TIMING,
    CameraSummary,
    EngineSummary,
    Percentiles,
    Rejection,
    ReplaySummary,
    ReplayTiming,
    Reset,
    SummaryError,
    json_schema,
    read_summary,
    read_timing,
    write_json,
)

CAMERA = CameraSummary(
    name="front",
    topic="/front/image_raw",
    message_type="sensor_msgs/msg/Image",
    received=5,
    processed=4,
    rejected={"duplicate": 1},
    resets=(Reset(frame=2, stamp_ns=7, epoch=1, reason="gap"),),
    rejections=(Rejection(frame=3, stamp_ns=7, reason="duplicate", message="stamp 7 ns was processed before"),),
    out_of_order=0,
    first_stamp_ns=None,
    last_stamp_ns=9,
    duration_s=1.0,
    image_sizes=((48, 72),),
    queries=1,
    queries_accepted=2,
    queries_refused=0,
    tracks={"point": 2, "box": 0, "mask": 0},
    features="front/features.npz",
    tables=("front/frames.csv",),
    overlay="",
)
ENGINE = EngineSummary(
    model="rvm_s16", weights="rvm_s16", weights_hash="ab", random_weights=False, backend="torch", precision="fp32",
    device="cpu", image_size=(256, 256), tracker="label_propagation",
)  # fmt: skip
WHOLE = ReplaySummary(
    bag="drive",
    bag_storage="mcap",
    bag_messages=6,
    recovered="",
    lost=None,
    code_version="0.1.0 abc",
    fingerprint="f",
    engine=ENGINE,
    parameters={"height": 256, "camera_topics": ["/front/image_raw"]},
    cameras=(CAMERA,),
    messages={"/rvm/features": 4},
)
TIMES = ReplayTiming(
    stepping_s=2.0,
    frames_per_s=2.0,
    real_time_factor=0.5,
    cameras={"front": {"engine_ms": Percentiles(p50=1.0, p95=2.0, p99=3.0, max=4.0)}},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / SUMMARY, WHOLE)
    write_json(tmp_path / TIMING, TIMES)
    assert read_summary(tmp_path) == WHOLE and WHOLE.frames == 4
    assert read_timing(tmp_path) == TIMES


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("format",), 99, "replay the bag once more"),
        (("bag",), 3, "expected str"),
        (("cameras", 0, "resets", 0, "frame"), "two", "expected int"),
        (("cameras", 0, "image_sizes", 0), [1, 2, 3], "not what"),
        (("cameras",), {}, "expected a list"),
        (("engine",), [], "expected an object"),
        (("colour",), "red", "unknown entries"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, path: tuple[Any, ...], value: Any, reason: str) -> None:
    content = json.loads(json.dumps(asdict(WHOLE)))
    part = content
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    (tmp_path / SUMMARY).write_text(json.dumps(content))
    with pytest.raises(SummaryError, match=reason):
        read_summary(tmp_path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SummaryError, match="`rvm replay`"):
        read_summary(tmp_path)
    (tmp_path / SUMMARY).write_bytes(b"\xff{")
    with pytest.raises(SummaryError, match="cannot be read"):
        read_summary(tmp_path)
    write_json(tmp_path / SUMMARY, WHOLE)
    content = json.loads((tmp_path / SUMMARY).read_text())
    del content["fingerprint"]
    (tmp_path / SUMMARY).write_text(json.dumps(content))
    with pytest.raises(SummaryError, match="fingerprint"):
        read_summary(tmp_path)


def test_the_schema_names_every_entry() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(asdict(WHOLE)) == set(schema["required"])
    camera = schema["properties"]["cameras"]["items"]
    assert camera["properties"]["first_stamp_ns"] == {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    assert camera["properties"]["image_sizes"]["items"]["maxItems"] == 2
    percentiles = json_schema(ReplayTiming)["properties"]["cameras"]["additionalProperties"]["additionalProperties"]
    assert set(percentiles["properties"]) == {"p50", "p95", "p99", "max"}


def test_numbers_that_are_none_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / TIMING, replace(TIMES, stepping_s=float("nan")))
