"""What the node says about itself: rates, latencies and counts, as diagnostic_msgs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.qos import ReliabilityPolicy

from rvm_core.engines import EngineSpec
from rvm_perception.parameters import NodeParameters
from rvm_perception.processor import ModelIdentity, Result

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
        self.tracking = Timings()
        self.latency = Timings()
        """From the header's stamp to the publication of the features."""

    def add(self, result: Result, *, latency_ms: float) -> None:
        """Counts a published result."""
        self.preprocess.add(result.preprocess_ms)
        self.engine.add(result.engine_ms)
        if result.tracks is not None:
            self.tracking.add(result.tracking_ms)
        self.latency.add(latency_ms)
        self.output.tick()

    def values(self) -> dict[str, str]:
        values = {"input_rate_hz": f"{self.input.hz():.2f}", "output_rate_hz": f"{self.output.hz():.2f}"}
        for name in ("preprocess", "engine", "tracking", "latency"):
            timings: Timings = getattr(self, name)
            values[f"{name}_ms_p50"] = f"{timings.percentile(50):.2f}"
            values[f"{name}_ms_p95"] = f"{timings.percentile(95):.2f}"
        return values


def status(level: bytes, name: str, message: str, hardware_id: str, values: Mapping[str, object]) -> DiagnosticStatus:
    """One component's status (REP-107: "node: component")."""
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(level=level, name=name, message=message, hardware_id=hardware_id, values=pairs)


def engine_status(name: str, spec: EngineSpec, identity: ModelIdentity, parameters: NodeParameters) -> DiagnosticStatus:
    """The status of an engine that is ready."""
    values = {
        "model": identity.name,
        "weights": parameters.weights or f"random, seed {parameters.seed}",
        "weights_hash": identity.weights_hash,
        "backend": spec.backend,
        "precision": spec.precision,
        "device": spec.device,
        "image_size": f"{parameters.height}x{parameters.width}",
        "resize_policy": parameters.resize_policy,
    }
    if not parameters.weights:
        message = "random weights: the features mean nothing; set the parameter weights"
        return status(DiagnosticStatus.WARN, name, message, spec.device, values)
    return status(DiagnosticStatus.OK, name, "ready", spec.device, values)


def explain_silence(topic: str, age: float, publishers: Sequence[Any], parameters: NodeParameters) -> str:
    """Why no image may be coming on a topic since `age` seconds, and what to do.

    `publishers` are what `Node.get_publishers_info_by_topic` says.
    """
    text = f"no image on {topic} for {age:.0f} s"
    if not publishers:
        return f"{text}: nothing publishes there; check camera_topics, image_transport, namespace and ROS_DOMAIN_ID"
    ours = parameters.input_reliability
    theirs = ", ".join(
        f"{info.node_name} ({info.topic_type}, {info.qos_profile.reliability.name.lower()})" for info in publishers
    )
    text = f"{text}: published by {theirs}; subscribed as {ours}"
    if ours == "reliable" and any(i.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT for i in publishers):
        return f"{text}; best-effort publishers do not reach reliable subscribers: set input_reliability:=best_effort"
    expected = "CompressedImage" if parameters.image_transport == "compressed" else "Image"
    if not any(info.topic_type == f"sensor_msgs/msg/{expected}" for info in publishers):
        return f"{text}; expected sensor_msgs/msg/{expected}: check image_transport"
    return f"{text}; large best-effort images get lost without the shared-memory profile config/fastdds.xml"
