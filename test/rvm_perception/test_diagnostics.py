"""What is measured and said: rates and ages by the steady clock, percentiles, warnings that do not flood the log."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS is not installed")

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402

from rvm_core.engines import EngineSpec  # noqa: E402
from rvm_perception.diagnostics import CameraMeters, Rate, Throttle, Timings, engine_status  # noqa: E402
from rvm_perception.parameters import NodeParameters  # noqa: E402
from rvm_perception.processor import ModelIdentity  # noqa: E402


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


def test_a_rate_is_of_the_last_seconds(clock: SimpleNamespace) -> None:
    rate = Rate(window=5.0)
    clock.now += 1.0
    assert (rate.hz(), rate.age()) == (0.0, 1.0)
    for _ in range(100):
        clock.now += 0.1
        rate.tick()
    assert rate.hz() == pytest.approx(10.0, abs=0.2)
    clock.now += 2.5
    assert rate.hz() == pytest.approx(5.0, abs=0.3) and rate.age() == pytest.approx(2.5)
    clock.now += 10.0
    assert rate.hz() == 0.0


def test_percentiles_and_the_largest_of_the_last_durations() -> None:
    timings = Timings()
    assert math.isnan(timings.percentile(50)) and math.isnan(timings.max())
    for i in range(1000):
        timings.add(float(i))
    assert timings.percentile(50) == pytest.approx(999 - 255.5) and timings.max() == 999.0


def test_a_camera_tells_rates_stages_and_the_age_of_its_output(clock: SimpleNamespace) -> None:
    meters = CameraMeters()
    result: Any = SimpleNamespace(preprocess_ms=1.0, engine_ms=20.0, tracks=object(), tracking_ms=3.0)
    for latency in (30.0, 50.0):
        meters.input.tick()
        meters.add(result, latency_ms=latency)
        clock.now += 0.5
    values = meters.values()
    assert values["input_rate_hz"] == values["output_rate_hz"] == "2.00"
    found = [values[f"{name}_ms_p50"] for name in ("preprocess", "engine", "tracking", "latency")]
    assert found == ["1.00", "20.00", "3.00", "40.00"]
    assert values["latency_ms_max"] == "50.00" and meters.published == 2


def test_each_kind_of_warning_passes_once_in_a_while(clock: SimpleNamespace) -> None:
    throttle = Throttle(period=5.0)
    assert [throttle.lets("late"), throttle.lets("late"), throttle.lets("corrupt")] == [True, False, True]
    clock.now += 5.0
    assert throttle.lets("late")


@pytest.mark.parametrize(
    ("given", "weights", "level", "expected"),
    [
        ({}, "rvm_s16", DiagnosticStatus.OK, "ready"),
        ({}, "", DiagnosticStatus.WARN, "random weights"),
        ({"running_for": 11.0}, "rvm_s16", DiagnosticStatus.ERROR, "step has been running for 11.0 s"),
        ({"failure": "cannot activate: no"}, "rvm_s16", DiagnosticStatus.ERROR, "cannot activate: no"),
    ],
)
def test_the_engine_tells_what_it_is_and_how_it_does(
    given: dict[str, Any], weights: str, level: bytes, expected: str
) -> None:
    spec = EngineSpec(backend="torch", precision="fp32", device="cpu", image_size=(32, 48))
    identity = ModelIdentity(name="tiny", weights_hash="0", weights=weights)
    status = engine_status("rvm: engine", spec, identity, NodeParameters(weights=weights), batch_size=4, **given)
    values = {pair.key: pair.value for pair in status.values}
    assert status.level == level and expected in status.message
    assert (values["backend"], values["precision"], values["cameras_at_once"]) == ("torch", "fp32", "4")
    assert int(values["memory_mb"]) > 10 and int(values["threads"]) >= 1
