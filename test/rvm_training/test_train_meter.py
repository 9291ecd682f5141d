"""Rates between rows of the log, on a clock that the test sets."""

from __future__ import annotations

import pytest

from rvm_training import train_meter
from rvm_training.train_meter import Meter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(train_meter, "time", clock)
    return clock


def add(meter: Meter, loss: float) -> None:
    meter.add(loss=loss, gradient_norm=2 * loss, learning_rate=loss / 10)


def test_rates_are_without_pauses_and_without_the_first_step(clock: Clock) -> None:
    meter = Meter(examples=8, flops=1e9, peak_flops=1e11, training_s=100.0)
    clock.now += 60
    add(meter, 3.0)
    meter.restart_clock()
    with meter.waiting():
        clock.now += 1
    clock.now += 3
    with meter.pause():
        clock.now += 50
    add(meter, 1.0)
    row = meter.take()
    assert row == pytest.approx(
        {
            "loss": 2.0,
            "gradient_norm": 4.0,
            "learning_rate": 0.1,
            "examples_per_s": 2.0,
            "data_wait": 0.25,
            "mfu": 0.02,
            "training_s": 214.0,
        }
    )


def test_the_next_row_begins_anew(clock: Clock) -> None:
    meter = Meter(examples=8, flops=1e9, peak_flops=1e11)
    add(meter, 9.0)
    meter.take()
    clock.now += 2
    add(meter, 1.0)
    assert meter.take()["loss"] == 1.0
    add(meter, 1.0)
    clock.now += 4
    row = meter.take()
    assert row["examples_per_s"] == 2.0 and row["data_wait"] == 0.0


def test_no_rate_of_the_first_step_alone(clock: Clock) -> None:
    meter = Meter(examples=8, flops=1e9, peak_flops=1e11)
    clock.now += 60
    add(meter, 3.0)
    meter.restart_clock()
    assert meter.take().keys() == {"loss", "gradient_norm", "learning_rate", "training_s"}
