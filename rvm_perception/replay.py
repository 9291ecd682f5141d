"""One recording through the same preprocessing, engine, tracking and reset rules as the live node, without ROS.

Every frame has its turn, so none is superseded; everything else that may happen to a frame is as at the node. Results
depend on the recording and on what computes, not on how fast it goes or where it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rvm_core.code_version import installed_version, source_hash
from rvm_core.engines import Engine
from rvm_core.tracking.base import Tracker
from rvm_perception.bag_order import BagIndex, Turns, read_turns
from rvm_perception.bag_reader import Bag, MessageError, RawMessage, decode
from rvm_perception.bag_types import bag_message_types, own_types
from rvm_perception.conversions import ImageError
from rvm_perception.processor import FrameProcessor, ModelIdentity, Result
from rvm_perception.replay_parts import PartWriter, ReplayFolder, StoredMessage
from rvm_perception.replay_plan import CameraPlan, ReplayPlan
from rvm_perception.replay_summary import MOST_REJECTIONS, Rejection, Reset
from rvm_perception.stream import FrameRejected, Stream, Waiting
from rvm_perception.track_ids import IdLedger
from rvm_perception.track_messages import answers_message
from rvm_perception.track_queries import TRACKED, Answers, Kind, Request, read_request
from rvm_perception.track_session import TrackSession

PART_SECONDS, PART_BYTES = 20.0, 256 << 20
"""A part ends after so much work or so many bytes: no more is lost by a crash."""

FRAME_FIELDS = (
    "frame", "stamp_ns", "received_ns", "status", "epoch", "index", "skipped", "reset", "image_width", "image_height",
)  # fmt: skip
"""Columns of frames.csv, a row for every frame: its number from 0, `processed` or why it was rejected; epoch, index and
skipped as in FeatureMap and why the state was reset before it, empty where it was not; empty for rejected frames."""

TIMING_FIELDS = ("frame", "preprocess_ms", "engine_ms", "tracking_ms")
"""Columns of timing.csv, a row for every processed frame."""


class Interrupted(Exception):
    """The run was asked to stop; what it did is kept."""


@dataclass(frozen=True, kw_only=True)
class Stepper:
    """What computes, made once for many recordings."""

    engine: Engine
    identity: ModelIdentity
    tracker: Tracker[Any] | None


@dataclass(kw_only=True)
class CameraState:
    """Everything of one camera that goes on from part to part, beside its stream, session and ids."""

    frames: int = 0
    resets: list[Reset] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    image_sizes: list[tuple[int, int]] = field(default_factory=list)
    first_stamp_ns: int | None = None
    last_stamp_ns: int | None = None
    first_time_ns: int = 0
    last_time_ns: int = 0
    queries: int = 0
    tracks: Counter[str] = field(default_factory=Counter)


class ReplayCamera:
    """One camera of a recording."""

    def __init__(self, number: int, plan: CameraPlan, replay: ReplayPlan, stepper: Stepper) -> None:
        self.number, self.plan = number, plan
        self.stream: Stream[RawMessage] = Stream(replay.parameters.stream_rules)
        self._parameters, self._tracker = replay.parameters, stepper.tracker
        self._ids = IdLedger()
        self.session = self._make_session()
        self.state = CameraState()

    def save(self) -> dict[str, Any]:
        session = self.session.save() if self.session else None
        return {"stream": self.stream.save(), "session": session, "ids": self._ids.runs, "state": self.state}

    def restore(self, saved: dict[str, Any]) -> None:
        self.stream.restore(saved["stream"])
        self._ids = IdLedger.of_runs(saved["ids"])
        self.session = self._make_session()
        if self.session:
            self.session.restore(saved["session"])
        self.state = saved["state"]

    def _make_session(self) -> TrackSession | None:
        if self._tracker is None:
            return None
        return TrackSession(camera=self.plan.name, tracker=self._tracker, parameters=self._parameters, ids=self._ids)


class Replay:
    """Steps through the turns of a recording and stores what the node would publish.

    Args:
        bag, index, turns: the recording, opened, and the order of its messages.
        plan: what of it is used.
        stepper: what computes.
        folder: where the messages go; started or resumed.
        on_turn: called after each turn.
    """

    def __init__(
        self,
        bag: Bag,
        index: BagIndex,
        turns: Turns,
        plan: ReplayPlan,
        stepper: Stepper,
        folder: ReplayFolder,
        *,
        on_turn: Callable[[], object] = lambda: None,
    ) -> None:
        self._bag, self._index, self._turns = bag, index, turns
        self._plan, self._folder, self._on_turn = plan, folder, on_turn
        self._types = bag_message_types()
        self._processor = FrameProcessor(plan.parameters, stepper.engine, stepper.identity, self._types)
        self.cameras = [ReplayCamera(i, camera, plan, stepper) for i, camera in enumerate(plan.cameras)]
        self._by_topic = {camera.plan.topic: camera for camera in self.cameras}
        self.topics = output_topics(plan)
        self._topic_numbers = {topic: number for number, (topic, _) in enumerate(self.topics)}
        self.messages: Counter[str] = Counter()
        self.next_turn = 0
        self.seconds = 0.0
        """Spent on stepping, over all runs."""
        self._part: PartWriter | None = None

    def restore(self, saved: dict[str, Any] | None) -> None:
        """Goes on from a state that `ReplayFolder.resume` gave."""
        if saved is None:
            return
        self.next_turn, self.seconds = saved["next_turn"], saved["seconds"]
        self.messages = Counter(saved["messages"])
        for camera, state in zip(self.cameras, saved["cameras"], strict=True):
            camera.restore(state)

    def run(self, is_stopped: Callable[[], bool] = lambda: False) -> None:
        """Takes all turns that are left. Raises `Interrupted`, with everything kept, once `is_stopped`."""
        self._processor.warm_up()
        part_start = time.monotonic()
        self._part = self._folder.new_part()
        try:
            for number, message in read_turns(self._bag, self._index, self._turns, first=self.next_turn):
                self._take(message, int(self._turns.time[number]))
                self.next_turn = number + 1
                self._on_turn()
                if is_stopped():
                    self._end_part(part_start)
                    raise Interrupted
                if self._part.bytes > PART_BYTES or time.monotonic() - part_start > PART_SECONDS:
                    self._end_part(part_start)
                    part_start, self._part = time.monotonic(), self._folder.new_part()
            self._refuse_waiting()
            self._end_part(part_start)
        finally:
            self._part.close()

    def _end_part(self, start: float) -> None:
        assert self._part is not None
        self.seconds += time.monotonic() - start
        self._part.finish(
            {
                "next_turn": self.next_turn,
                "seconds": self.seconds,
                "messages": dict(self.messages),
                "cameras": [camera.save() for camera in self.cameras],
            }
        )

    def _take(self, message: RawMessage, time_ns: int) -> None:
        camera = self._by_topic.get(message.topic)
        if camera is None:
            self._take_query(message, time_ns)
        else:
            self._take_frame(camera, message, time_ns)

    # Frames, as the node's worker takes them.

    def _take_frame(self, camera: ReplayCamera, raw: RawMessage, time_ns: int) -> None:
        camera.stream.offer(raw)
        waiting = camera.stream.take()
        assert waiting is not None
        stamp_ns = int(self._index.stamp[self._turns.position[self.next_turn]])
        try:
            message = Waiting(message=decode(raw), sequence=waiting.sequence)
            result = self._processor.process(message, camera.stream, camera.session)
        except MessageError as error:
            self._reject(camera, raw, stamp_ns, "corrupt", str(error))
        except (ImageError, FrameRejected) as error:
            self._reject(camera, raw, stamp_ns, error.reason, str(error))
        except Exception as error:  # as at the node: whatever the runtime raises costs one frame
            self._reject(camera, raw, stamp_ns, "engine", f"{type(error).__name__}: {error}")
        else:
            self._publish(camera, raw, result, time_ns)
            if camera.session is not None and camera.session.waiting:
                self._answer(self._processor.apply_queries(camera.stream, camera.session), time_ns)
        camera.state.frames += 1

    def _reject(self, camera: ReplayCamera, raw: RawMessage, stamp_ns: int, reason: str, message: str) -> None:
        camera.stream.reject(reason)
        state = camera.state
        if len(state.rejections) < MOST_REJECTIONS:
            rejection = Rejection(frame=state.frames, stamp_ns=stamp_ns, reason=reason, message=message)
            state.rejections.append(rejection)
        self._row(camera, (state.frames, stamp_ns, raw.received_ns, reason, *[""] * 6))

    def _publish(self, camera: ReplayCamera, raw: RawMessage, result: Result, time_ns: int) -> None:
        step, state = result.step, camera.state
        key = step.key
        outputs = self._plan.outputs(camera.plan)
        self._store(outputs["features"], self._processor.feature_map(camera.plan.name, result), time_ns)
        if step.reset_reason is not None:
            state.resets.append(
                Reset(frame=state.frames, stamp_ns=key.stamp_ns, epoch=step.epoch, reason=step.reset_reason)
            )
        if camera.session is not None:
            messages = self._processor.track_messages(camera.plan.name, result, camera.session.tracker_name)
            if Kind.POINT in messages.reported:
                self._store(outputs["point_tracks"], messages.points(), time_ns)
            if Kind.BOX in messages.reported:
                self._store(outputs["box_tracks"], messages.boxes(), time_ns)
            if Kind.MASK in messages.reported:
                self._store(outputs["mask_tracks"], messages.masks(), time_ns)
                self._store(outputs["mask"], messages.mask_image(), time_ns)
        if (key.height, key.width) not in state.image_sizes:
            state.image_sizes.append((key.height, key.width))
        if state.first_stamp_ns is None:
            state.first_stamp_ns, state.first_time_ns = key.stamp_ns, time_ns
        state.last_stamp_ns, state.last_time_ns = key.stamp_ns, time_ns
        reset = step.reset_reason or ""
        described = (step.epoch, step.index, step.skipped, reset, key.width, key.height)
        self._row(camera, (state.frames, key.stamp_ns, raw.received_ns, "processed", *described))
        assert self._part is not None
        times = (result.preprocess_ms, result.engine_ms, result.tracking_ms)
        self._part.add_row("timing", camera.number, (state.frames, *(f"{ms:.3f}" for ms in times)))

    def _row(self, camera: ReplayCamera, cells: tuple[object, ...]) -> None:
        assert self._part is not None
        self._part.add_row("frames", camera.number, cells)

    # Queries, as the node's QueryTopics carries them out.

    def _take_query(self, raw: RawMessage, time_ns: int) -> None:
        try:
            request = read_request(decode(raw))
        except MessageError:
            return  # there is nobody to be answered
        camera = self._addressee(request)
        if camera is None or camera.session is None:
            names = ", ".join(camera.plan.name for camera in self.cameras)
            self._answer([request.refused(f"there is no camera {request.camera!r}; cameras: {names}")], time_ns)
            return
        camera.state.queries += 1
        if full := camera.session.receive(request):
            self._answer([full], time_ns)
        elif camera.session.waiting:
            self._answer(self._processor.apply_queries(camera.stream, camera.session), time_ns)

    def _addressee(self, request: Request) -> ReplayCamera | None:
        if not request.camera and len(self.cameras) == 1:
            return self.cameras[0]
        return next((camera for camera in self.cameras if camera.plan.name == request.camera), None)

    def _refuse_waiting(self) -> None:
        if not len(self._turns):
            return
        end = int(self._turns.time[-1]) + 1
        for camera in self.cameras:
            if camera.session is not None:
                self._answer(camera.session.refuse_waiting("the recording ended", epoch=camera.stream.epoch), end)

    def _answer(self, answers: list[Answers], time_ns: int) -> None:
        for answer in answers:
            camera = next((camera for camera in self.cameras if camera.plan.name == answer.camera), None)
            for entry in answer if camera else ():
                if entry.item.kind in TRACKED and not entry.reason:
                    camera.state.tracks[entry.item.kind.name.lower()] += 1  # type: ignore[union-attr]
            self._store(self._plan.answers, answers_message(answer, self._types), time_ns)

    def _store(self, topic: tuple[str, str], message: Any, time_ns: int) -> None:
        assert self._part is not None
        name, message_type = topic
        data = own_types().serialize(message, message_type)
        self._part.add_message(StoredMessage(self._topic_numbers[name], time_ns, data))
        self.messages[name] += 1


def output_topics(plan: ReplayPlan) -> list[tuple[str, str]]:
    """Topic and type of everything that may be written."""
    topics = [topic for camera in plan.cameras for topic in plan.outputs(camera).values()]
    return [*topics, plan.answers] if plan.parameters.tracking != "none" else topics


def identify(bag: Bag, index: BagIndex, plan: ReplayPlan, stepper: Stepper) -> dict[str, Any]:
    """What decides about the results, for `ReplayFolder.start` and the summary."""
    digest = hashlib.sha256("\n".join(index.topics).encode())
    for array in (index.topic, index.received, index.stamp, index.size):
        digest.update(np.ascontiguousarray(array).tobytes())
    spec = stepper.engine.spec
    return {
        "recording": f"{bag.name} {digest.hexdigest()} {bag.recovered}",
        "weights": [stepper.identity.name, stepper.identity.weights_hash],
        "engine": [spec.backend, spec.precision, spec.device, list(spec.image_size)],
        "parameters": asdict(plan.parameters),
        "cameras": [asdict(camera) for camera in plan.cameras],
        "code": code_version(),
    }


def code_version() -> str:
    """Version of the package and hash of its sources."""
    return f"{installed_version()} {source_hash(('rvm_core', 'rvm_perception'))[:16]}"


def fingerprint(identity: dict[str, Any]) -> str:
    """sha256 (hex) of what `identify` gave."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
