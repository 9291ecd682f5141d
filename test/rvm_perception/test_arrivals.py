"""Images that never arrived are counted from those that did."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rvm_perception.arrivals import NO_SEQUENCE, Arrivals

MS = 1_000_000


@given(arrived=st.lists(st.booleans(), max_size=60), first=st.integers(1, 1000))
def test_published_is_received_and_lost(arrived: list[bool], first: int) -> None:
    arrivals = Arrivals()
    received = 0
    numbers = [first + i for i, did in enumerate(arrived) if did]
    for number in numbers:
        arrivals.add(number, number * MS)
        received += 1
    published = numbers[-1] - numbers[0] + 1 if numbers else 0
    assert received + arrivals.lost == published


def test_numbers_of_a_publisher_that_starts_anew_are_no_loss() -> None:
    arrivals = Arrivals()
    for number in (7, 8, 1, 2, 4):
        arrivals.add(number, 0)
    assert arrivals.lost == 1
    arrivals.restart()
    arrivals.add(100, 0)
    assert arrivals.lost == 1


def test_numbers_of_several_publishers_say_nothing() -> None:
    arrivals = Arrivals()
    for number in (1000, 5, 1001, 6):
        arrivals.add(number, 0, is_one_publisher=lambda: False)
    assert arrivals.lost == 0


def test_a_middleware_without_numbers_counts_nothing() -> None:
    arrivals = Arrivals()
    for _ in range(3):
        arrivals.add(NO_SEQUENCE, 0)
    assert arrivals.lost == 0


def test_gaps_between_stamps_are_counted_by_the_usual_period() -> None:
    arrivals = Arrivals()
    for i in range(20):
        arrivals.add(i, i * 40 * MS)
    assert arrivals.stamp_gaps == 0
    for milliseconds in (20 * 40 + 40, 20 * 40 + 80, 20 * 40 + 140, 100, 140):
        arrivals.add(0, milliseconds * MS)
    assert arrivals.stamp_gaps == 1, "80 ms after 40 ms is a gap, 60 ms is not, and a clock that is set back is none"


def test_poor_delivery_is_told_for_the_time_since_it_was_last_asked() -> None:
    arrivals = Arrivals()
    assert arrivals.poor_delivery() is None
    for number in (1, 2, 9, 10):
        arrivals.add(number, 0)
    assert arrivals.poor_delivery() == (0, 6, 4)
    assert arrivals.poor_delivery() is None
    arrivals.lost_events = 60
    assert arrivals.poor_delivery() == (60, -6, 0), "what the middleware tells late"
    for number in range(11, 100):
        arrivals.add(number, 0)
    arrivals.add(102, 0)
    assert arrivals.poor_delivery() is None, "2 of 92 is no reason to warn"
