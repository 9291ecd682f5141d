"""Runs the node under faults and measures: kill -9, a long run in one process, and three times too many frames."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rvm_perception.demo_processes import ChildProcess
from rvm_perception.faulty_engine import Fault, order
from rvm_perception.shared_memory import forget_segments, segments_of
from rvm_perception.soak_check import Output, Verdict
from rvm_perception.soak_client import NODE, TOPIC, SoakClient
from rvm_perception.soak_frames import Shot, SoakCamera

MAX_GAP_S = 2.0
OVERLOAD = 3
"""Times what the node can process."""

_DEACTIVATE, _ACTIVATE = 4, 3
_START_TIMEOUT_S = 900.0
"""A first start builds and checks the engine."""
_ANSWER_TIMEOUT_S = 0.5
_BAD_FRAME_S = 0.003
"""After a frame that gives no output: time for the node to look at it."""
_QUIET_TIMEOUT_S = 20.0
_END_TIMEOUT_S = 30.0
"""The node promises 5 s; on a busy machine it is killed only much later, and how long it took is told."""
_PAUSE_S = 0.2
_SETTLE_S = 0.3
_BURST = 4
_SLOW_S = 0.04
_PERIOD_FRAMES = 12
_SAMPLE_FRAMES = 100


class SoakError(RuntimeError):
    """The node cannot be measured; the text says why and what to check."""


@dataclass(frozen=True, kw_only=True)
class SoakPlan:
    """What is to be done."""

    out: Path
    parameters: Mapping[str, Any]
    """Of the node, beside the camera's."""
    frames: int
    kills: int
    seed: int
    overload_seconds: float
    slow: bool
    """Whether the overload is of a step that is slowed down, as one of a tiny model is over too soon."""
    rate: float = 0.3
    """Share of frames with a fault."""


@dataclass(kw_only=True)
class ProcessRun:
    """What one process of the node published, and what it was sent."""

    first: int
    """Number of outputs that the client had when it began."""
    outputs: list[Output] = field(default_factory=list)
    images: dict[int, list[np.ndarray]] = field(default_factory=dict)
    """By stamp."""

    def sent(self, shot: Shot) -> None:
        same = self.images.setdefault(shot.stamp_ns, [])
        if not any(image is shot.image for image in same):
            same.append(shot.image)


@dataclass(kw_only=True)
class Findings:
    """Everything that was measured."""

    injected: Counter[str] = field(default_factory=Counter)
    """Faults by name; kills too."""
    frames: int = 0
    """Sent."""
    counts: Counter[str] = field(default_factory=Counter)
    """The node's own, summed over the processes that ended in order."""
    crashes: list[str] = field(default_factory=list)
    ledger_faults: list[str] = field(default_factory=list)
    queries: int = 0
    answers: int = 0
    lost_outputs: int = 0
    """Published by the node and not received by this process."""
    start_s: list[float] = field(default_factory=list)
    """From the start of a process to its first output."""
    restart_s: list[float] = field(default_factory=list)
    """From kill -9 to the first output of the next process."""
    end_s: list[float] = field(default_factory=list)
    """From SIGINT to the end of a process."""
    memory: list[tuple[int, int, int]] = field(default_factory=list)
    """Frames sent, bytes of the node's own and of shared memory that are resident."""
    soak_s: float = 0.0
    soak_outputs: int = 0
    overload: dict[str, Any] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=Verdict)


Progress = Callable[[str, int], object]
"""Is told what is being done, and how many frames were sent since the last call."""


class Soak:
    """One run. Its two parts may be called once each, in any order; `runs` and `findings` then hold what came."""

    def __init__(self, plan: SoakPlan, environment: Mapping[str, str], progress: Progress) -> None:
        self.findings = Findings()
        self.runs: list[ProcessRun] = []
        self._plan, self._environment, self._progress = plan, environment, progress
        self._domain = int(environment["ROS_DOMAIN_ID"])
        self._random = random.Random(plan.seed)
        self._camera = SoakCamera(seed=plan.seed, start_ns=time.time_ns(), rate=plan.rate)
        self._starts = 0

    def kill_and_restart(self, frames: int) -> None:
        """Kills the node in the middle of compressed frames and starts it again; `frames` between two kills."""
        self._progress("kill -9", 0)
        with SoakClient(self._domain, compressed=True) as client:
            killed_ns = 0
            for life in range(self._plan.kills + 1):
                with self._node(client, compressed=True) as node:
                    if life:
                        # What its predecessor sent before its end has come by now.
                        self.runs[-2].outputs = client.outputs[self.runs[-2].first : self.runs[-1].first]
                    first_ns = self._first_output(client, node)
                    if killed_ns:
                        self.findings.restart_s.append((first_ns - killed_ns) / 1e9)
                    self._play(client, node, frames, without=("pause", "lifecycle"))
                    if life == self._plan.kills:
                        self._end(client, node)
                        break
                    segments = segments_of(node.pid)
                    killed_ns = time.time_ns()
                    node.send(signal.SIGKILL)
                    forget_segments(segments)
                    self.findings.injected["kill -9"] += 1

    def run_long(self, frames: int) -> None:
        """So many frames through one process, then three times too many frames."""
        self._progress("faults", 0)
        with SoakClient(self._domain, compressed=False) as client, self._node(client, compressed=False) as node:
            self._first_output(client, node)
            start, outputs = time.monotonic(), len(client.outputs)
            self._play(client, node, frames, sample=True)
            self.findings.soak_s = time.monotonic() - start
            self.findings.soak_outputs = len(client.outputs) - outputs
            if self._plan.overload_seconds:
                self._progress("overload", 0)
                self._overload(client, node)
            self._end(client, node)

    @contextmanager
    def _node(self, client: SoakClient, *, compressed: bool) -> Iterator[ChildProcess]:
        self._starts += 1
        log = self._plan.out / f"node_{self._starts}.log"
        client.forget_counts()
        started_ns = time.time_ns()
        with ChildProcess(self._command(compressed), self._environment, log) as node:
            deadline = time.monotonic() + _START_TIMEOUT_S
            # The end of a killed process is noticed late: what counts is that the new one says that it waits.
            while not ("waiting for images" in log.read_text(errors="replace") and client.is_connected):
                if node.poll() is not None:
                    raise SoakError(f"the node ended with exit code {node.poll()}; see {log}:\n{node.last_lines()}")
                if time.monotonic() > deadline:
                    raise SoakError(f"the node was not ready in {_START_TIMEOUT_S:.0f} s; see {log}")
                time.sleep(0.01)
            self.runs.append(ProcessRun(first=len(client.outputs)))
            self._started_ns = started_ns
            yield node

    def _command(self, compressed: bool) -> list[str]:
        parameters = {
            "camera_topics": [TOPIC],
            "image_transport": "compressed" if compressed else "raw",
            "input_reliability": "reliable",
            "max_gap": MAX_GAP_S,
            **self._plan.parameters,
        }
        command = [sys.executable, "-m", "rvm_perception.faulty_node", "--ros-args", "-r", f"__node:={NODE}"]
        for name, value in parameters.items():
            command += ["-p", f"{name}:={json.dumps(value)}"]
        return command

    def _first_output(self, client: SoakClient, node: ChildProcess) -> int:
        """Sends sound frames until the first output comes; when it came."""
        count = len(client.outputs)
        deadline = time.monotonic() + _QUIET_TIMEOUT_S
        while len(client.outputs) == count:
            if node.poll() is not None or time.monotonic() > deadline:
                raise SoakError(f"no features came; see {node.log}:\n{node.last_lines()}")
            self._send(client, shot := self._camera.sound_shot())
            client.wait_for_stamp(shot.stamp_ns, 0.05)
        first = client.outputs[count]
        self.findings.start_s.append((first.received_ns - self._started_ns) / 1e9)
        return first.received_ns

    def _send(self, client: SoakClient, shot: Shot) -> None:
        self.runs[-1].sent(shot)
        self.findings.frames += 1
        client.publish(shot)

    def _play(
        self,
        client: SoakClient,
        node: ChildProcess,
        frames: int,
        *,
        without: tuple[str, ...] = (),
        sample: bool = False,
    ) -> None:
        told = 0
        for number, shot in enumerate(self._camera.shots(frames, without=without)):
            if node.poll() is not None:
                self.findings.crashes.append(f"exit code {node.poll()} after frame {shot.number}, '{shot.fault}'")
                raise SoakError(f"the node crashed at frame {shot.number} ({shot.fault}):\n{node.last_lines()}")
            if sample and number % _SAMPLE_FRAMES == 0:
                self.findings.memory.append((number, *resident_bytes(node.pid)))
            self.findings.injected.update([shot.fault] if shot.fault else [])
            self._act(shot.fault, client, node)
            self._send(client, shot)
            if shot.answered:
                client.wait_for_stamp(shot.stamp_ns, _ANSWER_TIMEOUT_S)
            else:
                time.sleep(_BAD_FRAME_S)
            if number - told >= _SAMPLE_FRAMES:
                self._progress("faults" if sample else "kill -9", number - told)
                told = number
        self._progress("faults" if sample else "kill -9", frames - told)

    def _act(self, action: str, client: SoakClient, node: ChildProcess) -> None:
        """What happens beside the frame itself."""
        if action == "burst":
            for _ in range(_BURST):
                self._send(client, self._camera.sound_shot())
        elif action == "reset":
            client.reset()
        elif action == "queries":
            client.ask_nonsense(self._random)
        elif action == "pause":
            node.send(signal.SIGSTOP)
            for _ in range(_BURST):
                self._send(client, self._camera.sound_shot())
            time.sleep(_PAUSE_S)
            node.send(signal.SIGCONT)
        elif action == "lifecycle" and not (client.change_state(_DEACTIVATE) and client.change_state(_ACTIVATE)):
            self.findings.crashes.append("a deactivation or activation failed")

    def _overload(self, client: SoakClient, node: ChildProcess) -> None:
        """Frames at three times the rate of the node, each stamped when it is sent."""
        settled(client)
        before, sent_before, first = client.counts(), self.findings.frames, len(client.outputs)
        period = self._measure_period(client)
        outputs = len(client.outputs)
        start = time.monotonic()
        for number in range(max(OVERLOAD, round(self._plan.overload_seconds / period * OVERLOAD))):
            time.sleep(max(0.0, start + number * period / OVERLOAD - time.monotonic()))
            self._send(client, self._timed_shot())
        sent = self.findings.frames - sent_before

        def change(name: str, counts: Mapping[str, int]) -> int:
            return counts.get(name, 0) - before.get(name, 0)

        settled(client)
        if not client.wait_for_counts(
            lambda now: change("received", now) + change("lost", now) == sent, _QUIET_TIMEOUT_S
        ):
            self.findings.ledger_faults.append(f"overload: of {sent} frames some were neither received nor lost")
        ages = [output.age_ms for output in client.outputs[outputs:]]
        after = client.counts()
        names = ("received", "lost", "processed", "dropped", "rejected")
        self.findings.overload = {
            "node_hz": 1 / period,
            "camera_hz": OVERLOAD / period,
            "published": sent,
            **{name: change(name, after) for name in names},
            "outputs": len(client.outputs) - first,
            "age_ms": {"p50": percentile(ages, 50), "p99": percentile(ages, 99), "max": percentile(ages, 100)},
        }

    def _timed_shot(self) -> Shot:
        shot = self._camera.sound_shot(stamp_ns=time.time_ns())
        return replace(shot, image=order(shot.image, Fault.SLOW, seconds=_SLOW_S)) if self._plan.slow else shot

    def _measure_period(self, client: SoakClient) -> float:
        """Seconds from frame to frame where the next is sent when the features of the one before came."""
        times = []
        for _ in range(_PERIOD_FRAMES):
            start = time.monotonic()
            self._send(client, shot := self._timed_shot())
            if client.wait_for_stamp(shot.stamp_ns, _QUIET_TIMEOUT_S):
                times.append(time.monotonic() - start)
        if not times:
            raise SoakError("the node stopped answering sound frames")
        return float(np.median(times))

    def _end(self, client: SoakClient, node: ChildProcess) -> None:
        """Ends the node in order, and takes its last counts."""
        if not settled(client):
            self.findings.ledger_faults.append("at the end, the counts of the node do not come to rest")
        self.findings.counts.update(client.counts())
        start = time.monotonic()
        code = node.interrupt(_END_TIMEOUT_S)
        self.findings.end_s.append(time.monotonic() - start)
        if code != 0:
            late = f", which did not end it in {_END_TIMEOUT_S:.0f} s" if code == -signal.SIGKILL else ""
            self.findings.crashes.append(f"exit code {code} after SIGINT{late}")
        if "Traceback" in node.log.read_text(errors="replace"):
            self.findings.crashes.append(f"a traceback in {node.log}")
        run = self.runs[-1]
        run.outputs = client.outputs[run.first :]
        self.findings.lost_outputs += max(0, client.counts().get("processed", 0) - len(run.outputs))
        self.findings.ledger_faults += client.ledger_faults
        self.findings.queries += client.queries
        self.findings.answers += client.answers


def settled(client: SoakClient, timeout: float = _QUIET_TIMEOUT_S) -> bool:
    """Waits for a report of the node from a time when nothing was under way any more; whether it came."""
    time.sleep(_SETTLE_S)
    client.forget_counts()
    return client.wait_for_counts(lambda counts: not counts.get("waiting"), timeout)


def percentile(values: Sequence[float], percent: float) -> float:
    """NaN where there is nothing to tell."""
    return float(np.percentile(values, percent)) if values else float("nan")


def resident_bytes(pid: int) -> tuple[int, int]:
    """Resident memory of a process in bytes: its own and mapped files, and what it shares with others."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Rss")
    )
    own, files, shared = (int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile", "RssShmem"))
    return own + files, shared
