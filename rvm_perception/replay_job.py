"""Replays one recording into one folder: from opening the bag to the finished results."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from rvm_perception.bag_order import BagIndex, Turns, index_bag, read_turns, turns
from rvm_perception.bag_reader import Bag, BagError, decode
from rvm_perception.bag_types import COMPRESSED_IMAGE, MissingPackageError
from rvm_perception.bag_writer import mcap_file
from rvm_perception.engine_setup import set_up_engine
from rvm_perception.parameters import NodeParameters
from rvm_perception.processor import message_to_rgb
from rvm_perception.replay import (
    FRAME_FIELDS,
    TIMING_FIELDS,
    Replay,
    ReplayCamera,
    Stepper,
    code_version,
    fingerprint,
    identify,
    output_topics,
)
from rvm_perception.replay_film import UInt8Array, write_film
from rvm_perception.replay_outputs import FeatureFormat, TableFormat, frames_of, write_features, write_tracks
from rvm_perception.replay_parts import ReplayError, ReplayFolder
from rvm_perception.replay_plan import CameraPlan, ReplayPlan, make_plan
from rvm_perception.replay_summary import (
    SUMMARY,
    TIMING,
    CameraSummary,
    EngineSummary,
    Percentiles,
    ReplaySummary,
    ReplayTiming,
    SummaryError,
    read_summary,
    write_json,
)
from rvm_perception.track_session import make_tracker
from rvm_perception.video import require_video_writer

BAG = "replay.mcap"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """What is wanted of a replay beside the node's parameters."""

    topics: tuple[str, ...] = ()
    """See `make_plan`."""
    features: FeatureFormat = "auto"
    tables: TableFormat = "csv"
    film: bool = True
    report: bool = True
    recover: bool = False
    """Whether damaged recordings are evaluated as far as they can be read."""
    resume: bool = False
    """Whether an interrupted run of the same command is continued, and a complete one left as it is."""
    quiet: bool = False
    """No progress bars."""


def make_stepper(parameters: NodeParameters, log: Callable[[str], None]) -> Stepper:
    """Model, engine and tracker by the node's parameters. Raises what they raise."""
    setup = set_up_engine(parameters, log)
    return Stepper(engine=setup.engine, identity=setup.identity, tracker=make_tracker(parameters, setup.width))


def replay_bag(
    path: Path,
    out: Path,
    parameters: NodeParameters,
    stepper: Callable[[], Stepper],
    options: ReplayOptions,
    *,
    is_stopped: Callable[[], bool] = lambda: False,
) -> ReplaySummary:
    """Replays a recording into the folder `out`, whose earlier results stay as they are until all is done.

    stepper: called when the recording is known to be usable; the engine may serve many recordings.
    Raises `BagError` for a recording that cannot be used, `Interrupted` once `is_stopped`, `ReplayError` where `out`
    does not fit, `MissingPackageError`, and `OSError` for a disk that is full.
    """
    with ReplayFolder(out) as folder, Bag(path, recover=options.recover) as bag:
        plan = make_plan(bag, parameters, options.topics)
        _check_packages(plan, options)
        expected = [bag.topics[name].count for name in plan.topics]
        total = sum(filter(None, expected)) or None
        with _bar(options, "reading stamps", total, "message") as bar:
            index = index_bag(bag, plan.topics, progress=bar.update)
        order = turns(index, queries=plan.queries, rules=parameters.stream_rules)
        if not any(len(_of_camera(index, order, camera)) for camera in plan.cameras):
            raise BagError(f"{bag.path} is empty: it holds no message on {', '.join(c.topic for c in plan.cameras)}")
        job = _Job(bag, index, order, plan, stepper(), folder, options)
        if done := job.earlier_result():
            return done
        job.step(is_stopped)
        return job.finish()


class _Job:
    """One recording, ready to be replayed."""

    def __init__(
        self,
        bag: Bag,
        index: BagIndex,
        order: Turns,
        plan: ReplayPlan,
        stepper: Stepper,
        folder: ReplayFolder,
        options: ReplayOptions,
    ) -> None:
        self._bag, self._index, self._order, self._plan = bag, index, order, plan
        self._stepper, self._folder, self._options = stepper, folder, options
        outputs = [options.features, options.tables, str(options.film), str(options.report)]
        self._run = {**identify(bag, index, plan, stepper), "outputs": outputs}
        self._replay = Replay(bag, index, order, plan, stepper, folder, on_turn=self._on_turn)
        self._progress: Any = None

    def earlier_result(self) -> ReplaySummary | None:
        """What a complete run of the same has written, if that is to be kept."""
        if not self._options.resume or self._folder.is_interrupted:
            return None
        try:
            earlier = read_summary(self._folder.out)
        except SummaryError:
            return None
        return earlier if earlier.fingerprint == fingerprint(self._run) else None

    def step(self, is_stopped: Callable[[], bool]) -> None:
        """Takes all turns that an earlier run did not take, and collects the messages in replay.mcap."""
        if self._options.resume and self._folder.is_interrupted:
            self._replay.restore(self._folder.resume(self._run))
        else:
            self._folder.start(self._run)
        if self._folder.is_stepped:
            return
        with _bar(self._options, "replaying", len(self._order), "message", self._replay.next_turn) as self._progress:
            self._replay.run(is_stopped)
        results = self._folder.work / "results.tmp"
        results.mkdir()
        topics = self._replay.topics
        total = self._replay.messages.total()
        with mcap_file(results / BAG, topics) as writer:
            for message in self._shown(self._folder.messages(), "collecting", total, "message"):
                topic, kind = topics[message.topic]
                writer.write(topic, kind, message.time_ns, message.data)
        self._write_tables(results)
        self._folder.finish_stepping(results)

    def finish(self) -> ReplaySummary:
        """Makes everything else from replay.mcap, and gives the folder its name."""
        results = self._folder.stepped
        cameras = []
        with Bag(results / BAG) as stored:
            for camera in self._replay.cameras:
                cameras.append(self._finish_camera(stored, camera, results))
        summary = self._summary(cameras)
        write_json(results / SUMMARY, summary)
        write_json(results / TIMING, self._timing(results, cameras))
        if self._options.report:
            from rvm_perception.replay_report import write_report

            write_report(results)
        self._folder.publish()
        return summary

    def _write_tables(self, results: Path) -> None:
        """frames.csv and timing.csv of each camera."""
        for camera in self._plan.cameras:
            (results / camera.name).mkdir()
        for table, fields in (("frames", FRAME_FIELDS), ("timing", TIMING_FIELDS)):
            files = [
                open(results / camera.name / f"{table}.csv", "w", newline="", encoding="utf-8")
                for camera in self._plan.cameras
            ]
            try:
                for file in files:
                    file.write(",".join(fields) + "\n")
                for number, line in self._folder.rows(table):
                    files[number].write(line)
            finally:
                for file in files:
                    file.close()

    def _finish_camera(self, stored: Bag, camera: ReplayCamera, results: Path) -> CameraSummary:
        plan, folder = camera.plan, results / camera.plan.name
        count = camera.stream.processed
        frames = self._shown(frames_of(stored, self._plan, plan, ["features"]), f"features {plan.name}", count, "frame")
        features, colors = write_features(iter(frames), folder, count, self._options.features)
        tables = write_tracks(frames_of(stored, self._plan, plan), folder, self._options.tables)
        film = ""
        if self._options.film and colors is not None:
            film = "overlay.mp4"
            frames = self._shown(frames_of(stored, self._plan, plan), f"film {plan.name}", count, "frame")
            with closing(_Images(self._bag, self._index, self._order, plan, self._plan.parameters)) as images:
                write_film(
                    folder / film, iter(frames), images, colors,
                    rate=self._rate(plan), alpha=self._plan.parameters.overlay_alpha,
                )  # fmt: skip
        paths = [f"{plan.name}/{name}" for name in ("frames.csv", *tables)]
        return self._camera_summary(
            camera,
            features=f"{plan.name}/{features}" if features and count else "",
            tables=tuple(paths),
            overlay=f"{plan.name}/{film}" if film else "",
        )

    def _camera_summary(self, camera: ReplayCamera, **files: Any) -> CameraSummary:
        stream, state, session = camera.stream, camera.state, camera.session
        return CameraSummary(
            name=camera.plan.name,
            topic=camera.plan.topic,
            message_type=camera.plan.message_type,
            received=stream.received,
            processed=stream.processed,
            rejected=dict(sorted(stream.rejected.items())),
            resets=tuple(state.resets),
            rejections=tuple(state.rejections),
            out_of_order=self._order.out_of_order[camera.plan.topic],
            first_stamp_ns=state.first_stamp_ns,
            last_stamp_ns=state.last_stamp_ns,
            duration_s=(state.last_time_ns - state.first_time_ns) / 1e9,
            image_sizes=tuple(state.image_sizes),
            queries=state.queries,
            queries_accepted=session.accepted if session else 0,
            queries_refused=session.refused if session else 0,
            tracks={kind: state.tracks[kind] for kind in ("point", "box", "mask")},
            **files,
        )

    def _summary(self, cameras: Sequence[CameraSummary]) -> ReplaySummary:
        parameters, spec = self._plan.parameters, self._stepper.engine.spec
        identity = self._stepper.identity
        return ReplaySummary(
            bag=self._bag.name,
            bag_storage=self._bag.storage,
            bag_messages=len(self._index),
            recovered=self._bag.recovered,
            lost=self._bag.lost(dict(zip(self._index.topics, self._index.counts, strict=True))),
            code_version=code_version(),
            fingerprint=fingerprint(self._run),
            engine=EngineSummary(
                model=identity.name,
                weights=Path(identity.weights).name,
                weights_hash=identity.weights_hash,
                random_weights=not identity.weights,
                backend=spec.backend,
                precision=spec.precision,
                device=spec.device,
                image_size=spec.image_size,
                tracker=self._stepper.tracker.name if self._stepper.tracker else "",
            ),
            parameters={
                name: list(value) if isinstance(value, tuple) else value for name, value in asdict(parameters).items()
            },
            cameras=tuple(cameras),
            messages={topic: self._replay.messages[topic] for topic, _ in output_topics(self._plan)},
        )

    def _timing(self, results: Path, cameras: Sequence[CameraSummary]) -> ReplayTiming:
        seconds = max(self._replay.seconds, 1e-9)
        return ReplayTiming(
            stepping_s=round(seconds, 3),
            frames_per_s=round(sum(camera.processed for camera in cameras) / seconds, 3),
            real_time_factor=round(max((camera.duration_s for camera in cameras), default=0.0) / seconds, 3),
            cameras={
                camera.name: _percentiles(results / camera.name / "timing.csv")
                for camera in cameras
                if camera.processed
            },
        )

    def _rate(self, camera: CameraPlan) -> float:
        """Of a camera's frames, by their stamps."""
        steps = np.diff(self._index.stamp[_of_camera(self._index, self._order, camera)])
        steps = steps[steps > 0]
        return float(np.clip(1e9 / np.median(steps), 1, 240)) if len(steps) else 25.0

    def _on_turn(self) -> None:
        self._progress.update()

    def _shown(self, entries: Iterable[T], what: str, total: int, unit: str) -> Iterator[T]:
        with _bar(self._options, what, total, unit) as bar:
            for entry in entries:
                yield entry
                bar.update()


class _Images:
    """The source images of a camera's frames, asked for in their order, by the time of their turn."""

    def __init__(self, bag: Bag, index: BagIndex, order: Turns, camera: CameraPlan, parameters: NodeParameters) -> None:
        chosen = index.topic[order.position] == index.topics.index(camera.topic)
        self._turns = replace(order, position=order.position[chosen], time=order.time[chosen])
        self._reader = read_turns(bag, index, self._turns)
        self._parameters = parameters

    def __call__(self, time_ns: int) -> UInt8Array:
        for number, message in self._reader:
            if self._turns.time[number] == time_ns:
                return np.asarray(message_to_rgb(decode(message), self._parameters), np.uint8)
        raise ReplayError("the results do not belong to this recording: start anew without --resume")

    def close(self) -> None:
        self._reader.close()  # type: ignore[attr-defined]


def _of_camera(index: BagIndex, order: Turns, camera: CameraPlan) -> np.ndarray:
    """Positions of its frames in their order."""
    return order.position[index.topic[order.position] == index.topics.index(camera.topic)]


def _percentiles(table: Path) -> dict[str, Percentiles]:
    with open(table, newline="", encoding="utf-8") as file:
        rows = [[float(value) for value in row[1:]] for row in list(csv.reader(file))[1:]]
    values = np.percentile(np.array(rows), [50, 95, 99, 100], axis=0).round(3)
    return {
        name: Percentiles(p50=p50, p95=p95, p99=p99, max=most)
        for name, (p50, p95, p99, most) in zip(TIMING_FIELDS[1:], values.T.tolist(), strict=True)
    }


def _check_packages(plan: ReplayPlan, options: ReplayOptions) -> None:
    """What would be missed only at the end is missed at once."""
    if options.film:
        require_video_writer()
    needed = {"zarr": options.features == "zarr", "pyarrow": options.tables == "parquet"}
    needed["simplejpeg"] = any(camera.message_type == COMPRESSED_IMAGE for camera in plan.cameras)
    for package in (name for name, is_needed in needed.items() if is_needed):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingPackageError(
                f"{package} is missing ({error}): pip install 'rvm_perception[replay]'"
            ) from error


def _bar(options: ReplayOptions, what: str, total: int | None, unit: str, first: int = 0) -> Any:
    """A progress bar on stderr where that is a terminal."""
    return tqdm(desc=what, total=total, unit=unit, initial=first, disable=True if options.quiet else None)
