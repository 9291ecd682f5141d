"""What the first and the second signal do."""

from __future__ import annotations

import signal

import pytest

from rvm_core.stop_request import stop_request


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_and_second_ends(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    told: list[str] = []
    with stop_request(lambda: told.append("stopping")) as stop:
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.is_set() and told == ["stopping"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before
