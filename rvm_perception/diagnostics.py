"""What the node says about itself: rates, latencies and counts, as diagnostic_msgs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from rvm_perception.processor import Result

_WINDOW = 512


class Timings:
    """The last durations of one stage, in milliseconds."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=_WINDOW)

    def add(self, milliseconds: float) -> None:
        self._values.append(milliseconds)

    def percentile(self, percent: float) -> float:
        """NaN while there is nothing to tell."""
        values = tuple(self._values)
        return float(np.percentile(values, percent)) if values else float("nan")


class Rate:
    """Events per second over the last seconds of the steady clock, and the time since the last one."""

    def __init__(self, window: float = 5.0) -> None:
        self._window = window
        self._times: deque[float] = deque(maxlen=4096)
        self._start = time.monotonic()

    def tick(self) -> None:
        self._times.append(time.monotonic())

    def hz(self) -> float:
        now = time.monotonic()
        recent = sum(1 for at in tuple(self._times) if now - at <= self._window)
        return recent / max(min(self._window, now - self._start), 1e-3)

    def age(self) -> float:
        """Seconds since the last event, or since the start where there was none."""
        times = tuple(self._times)
        return time.monotonic() - (times[-1] if times else self._start)


class CameraMeters:
    """Everything measured of one camera."""

    def __init__(self) -> None:
        self.input = Rate()
        self.output = Rate()
        self.preprocess = Timings()
        self.engine = Timings()
        self.latency = Timings()
        """From the header's stamp to the publication of the features."""

    def add(self, result: Result, *, latency_ms: float) -> None:
        """Counts a published result."""
        self.preprocess.add(result.preprocess_ms)
        self.engine.add(result.engine_ms)
        self.latency.add(latency_ms)
        self.output.tick()

    def values(self) -> dict[str, str]:
        values = {"input_rate_hz": f"{self.input.hz():.2f}", "output_rate_hz": f"{self.output.hz():.2f}"}
        for name in ("preprocess", "engine", "latency"):
            timings: Timings = getattr(self, name)
            values[f"{name}_ms_p50"] = f"{timings.percentile(50):.2f}"
            values[f"{name}_ms_p95"] = f"{timings.percentile(95):.2f}"
        return values


def status(level: bytes, name: str, message: str, hardware_id: str, values: Mapping[str, object]) -> DiagnosticStatus:
    """One component's status (REP-107: "node: component")."""
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(level=level, name=name, message=message, hardware_id=hardware_id, values=pairs)
