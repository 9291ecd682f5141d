"""What the node says about itself: rates, latencies and counts, as diagnostic_msgs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from rvm_core.engines import EngineSpec
from rvm_core.process_memory import resident_bytes
from rvm_perception.parameters import NodeParameters
from rvm_perception.processor import ModelIdentity, Result

_WINDOW = 512


class Timings:
    """The last durations of one stage, in milliseconds."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=_WINDOW)

    def add(self, milliseconds: float) -> None:
        self._values.append(milliseconds)

    def max(self) -> float:
        """NaN while there is nothing to tell."""
        return max(tuple(self._values), default=float("nan"))

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


class Throttle:
    """Lets a warning of each kind pass once in some seconds."""

    def __init__(self, period: float = 5.0) -> None:
        self._period = period
        self._last: dict[str, float] = {}

    def lets(self, kind: str) -> bool:
        now = time.monotonic()
        if now - self._last.get(kind, -self._period) < self._period:
            return False
        self._last[kind] = now
        return True


class CameraMeters:
    """Everything measured of one camera."""

    def __init__(self) -> None:
        self.input = Rate()
        self.output = Rate()
        self.preprocess = Timings()
        self.engine = Timings()
        self.tracking = Timings()
        self.latency = Timings()
        """From the header's stamp to the publication of the features: the age of the output."""
        self.published = 0

    def add(self, result: Result, *, latency_ms: float) -> None:
        """Counts a published result."""
        self.preprocess.add(result.preprocess_ms)
        self.engine.add(result.engine_ms)
        if result.tracks is not None:
            self.tracking.add(result.tracking_ms)
        self.latency.add(latency_ms)
        self.output.tick()
        self.published += 1

    def values(self) -> dict[str, str]:
        values = {"input_rate_hz": f"{self.input.hz():.2f}", "output_rate_hz": f"{self.output.hz():.2f}"}
        for name in ("preprocess", "engine", "tracking", "latency"):
            timings: Timings = getattr(self, name)
            values[f"{name}_ms_p50"] = f"{timings.percentile(50):.2f}"
            values[f"{name}_ms_p95"] = f"{timings.percentile(95):.2f}"
        values["latency_ms_max"] = f"{self.latency.max():.2f}"
        return values


def hanging(seconds: float) -> str:
    """What is said of a step that does not end."""
    return f"the step has been running for {seconds:.1f} s: the engine hangs or is far too slow"


def status(level: bytes, name: str, message: str, hardware_id: str, values: Mapping[str, object]) -> DiagnosticStatus:
    """One component's status (REP-107: "node: component")."""
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(level=level, name=name, message=message, hardware_id=hardware_id, values=pairs)


def engine_status(
    name: str,
    spec: EngineSpec,
    identity: ModelIdentity,
    parameters: NodeParameters,
    *,
    batch_size: int = 1,
    running_for: float = 0.0,
    failure: str = "",
) -> DiagnosticStatus:
    """The status of an engine that is ready.

    `running_for`: seconds since the step in progress began; `failure`: why the node is not active though it should be.
    """
    values = {
        "model": identity.name,
        "weights": identity.weights or f"random, seed {parameters.seed}",
        "weights_hash": identity.weights_hash,
        "backend": spec.backend,
        "precision": spec.precision,
        "device": spec.device,
        "image_size": f"{parameters.height}x{parameters.width}",
        "resize_policy": parameters.resize_policy,
        "cameras_at_once": batch_size,
        "memory_mb": f"{resident_bytes() / 2**20:.0f}",
        "threads": threading.active_count(),
    }
    if running_for > parameters.step_timeout:
        return status(DiagnosticStatus.ERROR, name, hanging(running_for), spec.device, values)
    if failure:
        return status(DiagnosticStatus.ERROR, name, failure, spec.device, values)
    if not identity.weights:
        message = "random weights: the features mean nothing; set the parameter weights"
        return status(DiagnosticStatus.WARN, name, message, spec.device, values)
    return status(DiagnosticStatus.OK, name, "ready", spec.device, values)
