"""Tables and JSON of tracking's benchmark, from figures made up so that the results are known."""

from __future__ import annotations

import json

import pytest

from rvm_core.bench_tracking import Propagation, SizeMeasurement, TrackerTimes, TrackingOptions
from rvm_core.bench_tracking_report import make_report, make_tables


def made_up(*, measured: bool = True) -> dict[str, object]:
    """The second round is twice as slow; streaming takes a quarter of the time, the tracker a tenth of the engine's."""

    def times(seconds: float) -> dict[int, list[float]]:
        return {0: [seconds], 1: [2 * seconds]} if measured else {}

    size = SizeMeasurement(
        image_size=(64, 96),
        width=16,
        engine="abacus:fp32",
        propagation=Propagation(straightforward=times(0.4), streaming=times(0.1), compared_cells=48 * measured),
        engine_times=times(0.050),
        trackers=[TrackerTimes(context=8, starts=starts, times=times(0.005 * starts)) for starts in (1, 8)],
    )
    return make_report([size], TrackingOptions(), "a model", {"cpu": "beads"}, interrupted=not measured)


def test_ratios_are_those_within_a_round() -> None:
    report = json.loads(json.dumps(made_up()))
    (propagation,), (engine, one, eight) = report["propagation"], report["trackers"]
    assert propagation["times_faster"] == pytest.approx(4)
    assert (propagation["cells"], propagation["context"], propagation["identical"]) == (24, 20, True)
    assert propagation["streaming"]["median_ms"] == pytest.approx(150)
    assert propagation["streaming"]["p95_ms"] == pytest.approx(195)
    assert propagation["streaming"]["rounds_ms"] == {"0": [100.0], "1": [200.0]}
    assert engine["name"] == "abacus:fp32 step" and engine["share_of_engine"] is None
    assert (one["share_of_engine"], eight["share_of_engine"]) == (pytest.approx(0.1), pytest.approx(0.8))
    assert report["machine"]["cpu"] == "beads" and report["machine"]["threads"] >= 1


def test_tables_show_the_figures() -> None:
    lines = make_tables(made_up()).splitlines()
    assert lines[1].split() == [
        "64x96",
        "24",
        "20",
        "600.00",
        "780.00",
        "150.00",
        "195.00",
        "4.00",
        "0.0e+00",
        "0",
        "0",
    ]
    assert lines[-1].startswith("64x96  256 points, 32 boxes of 8 frames, context 8")
    assert lines[-1].split()[-3:] == ["60.00", "78.00", "80%"]
    assert len({len(line) for line in lines[:2]}) == len({len(line) for line in lines[3:]}) == 1


def test_what_was_not_measured_is_shown_as_such() -> None:
    report = made_up(measured=False)
    lines = make_tables(report).splitlines()
    assert report["interrupted"] is True
    assert lines[1].split() == ["64x96", "24", "20", *"-" * 8]
    assert lines[-1].split()[-3:] == ["-"] * 3
