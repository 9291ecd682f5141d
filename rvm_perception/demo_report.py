"""What the demo shows afterwards: numbers, a film and a sheet of stills, made from what it recorded."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.atomic import atomic_file
from rvm_core.draw_tracks import TrackTails, draw_tracks
from rvm_core.tracking.base import Status
from rvm_core.visualize import RunningPCA, contact_sheet, fit_pca, overlay, side_by_side
from rvm_perception.demo_clip import DemoClip
from rvm_perception.demo_listener import QueryAnswer, ReceivedFeatures, ReceivedTracks
from rvm_perception.video import VideoError, read_frames, write_video

UInt8Array = npt.NDArray[np.uint8]

_STILLS = 6
_STILL_WIDTH = 480
_FILM_ALPHA = 0.6
_COUNTERS = ("received", "processed", "dropped", "rejected", "resets")
_ENGINE_KEYS = ("model", "weights", "weights_hash", "image_size", "resize_policy", "backend", "precision", "device")


@dataclass(frozen=True, kw_only=True)
class PublishedFrame:
    """One image that the camera published."""

    frame: int
    """Number of the frame in the video, from 0."""
    stamp_ns: int


@dataclass(kw_only=True)
class Recording:
    """Everything that the demo saw."""

    clip: DemoClip
    camera_topic: str
    published: list[PublishedFrame] = field(default_factory=list)
    features: list[ReceivedFeatures] = field(default_factory=list)
    tracks: dict[int, ReceivedTracks] = field(default_factory=dict)
    """By stamp."""
    answers: list[QueryAnswer] = field(default_factory=list)
    diagnostics: dict[str, dict[str, str]] = field(default_factory=dict)
    """Name of the status -> its newest keys and values."""
    node_exit_code: int | None = None


def read_stamps(path: Path) -> list[PublishedFrame]:
    """Reads the file that video_camera writes for --stamps."""
    with open(path, newline="", encoding="utf-8") as file:
        return [PublishedFrame(frame=int(row["frame"]), stamp_ns=int(row["stamp_ns"])) for row in csv.DictReader(file)]


def match_frames(
    published: Sequence[PublishedFrame], features: Sequence[ReceivedFeatures]
) -> list[tuple[PublishedFrame, ReceivedFeatures]]:
    """Each feature map with the frame of the same stamp, in the camera's order; maps of unknown stamps are left out."""
    by_stamp = {received.stamp_ns: received for received in features}
    return [(frame, by_stamp[frame.stamp_ns]) for frame in published if frame.stamp_ns in by_stamp]


def summarize(recording: Recording) -> dict[str, Any]:
    """The numbers of summary.json. Counters that the node did not report are None."""
    engine = _status(recording.diagnostics, name_end=": engine")
    camera = _status(recording.diagnostics, hardware_id=recording.camera_topic)
    counters = {key: _integer(camera.get(key)) for key in _COUNTERS}
    latencies = [received.latency_ms for received in recording.features]
    matched = len(match_frames(recording.published, recording.features))
    model = engine.get("model") or (recording.features[-1].model if recording.features else None)
    return {
        "video": recording.clip.video.name,
        "first_frame": recording.clip.first_frame,
        "rate_hz": recording.clip.rate,
        "frames_published": len(recording.published),
        "node": counters,
        "features_received": len(recording.features),
        "features_without_frame": len(recording.features) - matched,
        "lost_before_node": _difference(len(recording.published), counters["received"]),
        "lost_after_node": _difference(counters["processed"], len(recording.features)),
        "stamp_to_features_received_ms": {
            "p50": _percentile(latencies, 50),
            "p95": _percentile(latencies, 95),
            "max": _percentile(latencies, 100),
        },
        **{
            f"{part}_ms": {name: _number(camera.get(f"{part}_ms_{name}")) for name in ("p50", "p95")}
            for part in ("engine", "tracking")
        },
        **_track_numbers(recording),
        **{key: engine.get(key) for key in _ENGINE_KEYS},
        "model": model,
        "random_weights": None if model is None else "random weights" in model,
        "node_exit_code": recording.node_exit_code,
    }


def _track_numbers(recording: Recording) -> dict[str, Any]:
    refused = [f"{answer.kind}: {answer.reason}" for answer in recording.answers if answer.reason]
    frames: Counter[int] = Counter()
    visible: Counter[int] = Counter()
    kinds: dict[int, str] = {}
    labels: dict[int, str] = {}
    for received in recording.tracks.values():
        for kind, tracks in (("point", received.tracks.points), ("box", received.tracks.boxes)):
            ids = tracks.ids[tracks.status != Status.LOST].tolist()
            frames.update(ids)
            visible.update(tracks.ids[tracks.status == Status.VISIBLE].tolist())
            kinds |= dict.fromkeys(ids, kind)
        labels |= received.labels
    return {
        "queries": {
            "sent": len(recording.clip.points) + len(recording.clip.boxes),
            "accepted": len(recording.answers) - len(refused),
            "refused": refused,
        },
        "frames_with_tracks": len(recording.tracks),
        "tracks_per_frame": round(frames.total() / len(recording.tracks), 2) if recording.tracks else 0.0,
        "tracks": [
            {"id": id, "kind": kind, "label": labels.get(id, ""), "frames": frames[id], "visible": visible[id]}
            for id, kind in sorted(kinds.items())
        ],
    }


def format_table(summary: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    node, latency, engine = summary["node"], summary["stamp_to_features_received_ms"], summary["engine_ms"]
    queries, tracking = summary["queries"], summary["tracking_ms"]
    weights = summary["weights"] if summary["weights"] is not None else "?"
    if summary["random_weights"]:
        weights = f"{weights} (colours and tracks mean little; see `rvm weights`)"
    dropped = f"{_text(node['dropped'])} (a newer frame came first), {_text(node['rejected'])} rejected"
    rows = {
        "frames published": f"{summary['frames_published']} at {summary['rate_hz']:g} Hz ({summary['video']})",
        "received by the node": _text(node["received"]),
        "processed by the node": _text(node["processed"]),
        "dropped by the node": dropped,
        "feature maps received": str(summary["features_received"]),
        "stamp to features received": f"p50 {_text(latency['p50'])} ms, p95 {_text(latency['p95'])} ms",
        "engine step": f"p50 {_text(engine['p50'])} ms, p95 {_text(engine['p95'])} ms",
        "track queries": f"{queries['sent']} sent, {queries['accepted']} accepted, {len(queries['refused'])} refused"
        + "".join(f"; {reason}" for reason in queries["refused"][:3]),
        "tracks": f"{summary['tracks_per_frame']:g} in each of {summary['frames_with_tracks']} frames, "
        f"p50 {_text(tracking['p50'])} ms a frame",
        **{
            f"  {track['kind']} {track['id']} {track['label']}".rstrip(): f"reported visible in {track['visible']} of "
            f"{track['frames']} frames"
            for track in summary["tracks"]
            if track["label"]
        },
        "model": _text(summary["model"]),
        "weights": weights,
        "image size": f"{_text(summary['image_size'])} ({_text(summary['resize_policy'])})",
        "engine": ", ".join(_text(summary[key]) for key in ("backend", "precision", "device")),
        "node's exit code": _text(summary["node_exit_code"]),
    }
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items())


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Writes the summary as JSON."""
    with atomic_file(path) as part:
        part.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_film(path: Path, recording: Recording, progress: Any = iter) -> None:
    """Frame with tracks and PCA overlay side by side: every feature map once, from its stamp to that of the next.

    progress: wraps the iteration over the pairs, as tqdm does.
    """
    pairs = match_frames(recording.published, recording.features)
    write_video(path, _film_frames(recording, progress(pairs)), rate=recording.clip.rate)


def write_stills(path: Path, recording: Recording) -> None:
    """A sheet of some moments, each the frame with its tracks and its features; one PCA for the whole clip."""
    pairs = match_frames(recording.published, recording.features)
    if not pairs:
        return
    colors = fit_pca(np.stack([received.features for _, received in pairs]), pairs[0][1].valid)
    chosen = {pairs[i][1].stamp_ns for i in np.unique(np.linspace(0, len(pairs) - 1, _STILLS).round().astype(int))}
    images, captions = [], []
    for frame, received, image, tracked in _with_images(recording, pairs):
        if received.stamp_ns in chosen:
            painted = overlay(image, colors.color(received.features), received.grid_to_image, alpha=1.0)
            images.append(side_by_side([_shrunk(tracked), _shrunk(painted)]))
            seconds = (frame.stamp_ns - recording.published[0].stamp_ns) / 1e9
            captions.append(f"{seconds:.2f} s, features {received.latency_ms:.0f} ms after the stamp")
    sheet = contact_sheet(images, 2, captions)
    with atomic_file(path) as part:
        part.write_bytes(cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())


def _film_frames(
    recording: Recording, pairs: Sequence[tuple[PublishedFrame, ReceivedFeatures]]
) -> Iterator[tuple[int, UInt8Array]]:
    """(time in ms, image) of the film; times rise by at least one."""
    pca, last = RunningPCA(), -1
    start = recording.published[0].stamp_ns if recording.published else 0
    for frame, received, image, tracked in _with_images(recording, pairs):
        pca.update(received.features, received.valid)
        painted = overlay(image, pca.color(received.features), received.grid_to_image, _FILM_ALPHA)
        last = max(last + 1, (frame.stamp_ns - start) // 10**6)
        yield last, side_by_side([tracked, painted])


def _with_images(
    recording: Recording, pairs: Sequence[tuple[PublishedFrame, ReceivedFeatures]]
) -> Iterator[tuple[PublishedFrame, ReceivedFeatures, UInt8Array, UInt8Array]]:
    """Each pair with the video's RGB image (H, W, 3), and with that on which its tracks are drawn.

    The pairs come in the video's order.
    """
    images = enumerate(read_frames(recording.clip.video))
    tails = TrackTails()
    for frame, features in pairs:
        bgr = next((image for number, image in images if number == frame.frame), None)
        if bgr is None:
            raise VideoError(f"frame {frame.frame} of {recording.clip.video} was published but cannot be read again")
        image = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
        received = recording.tracks.get(features.stamp_ns)
        if received is None:
            yield frame, features, image, image
            continue
        tails.update(received.tracks)
        yield frame, features, image, draw_tracks(image, received.tracks, tails=tails, labels=received.labels)


def _shrunk(image: UInt8Array) -> UInt8Array:
    height, width = image.shape[:2]
    if width <= _STILL_WIDTH:
        return image
    size = (_STILL_WIDTH, max(1, round(height * _STILL_WIDTH / width)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _status(
    diagnostics: Mapping[str, dict[str, str]], *, name_end: str = "", hardware_id: str | None = None
) -> dict[str, str]:
    for name, values in diagnostics.items():
        if name.endswith(name_end) and hardware_id in (None, values.get("hardware_id")):
            return values
    return {}


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else before - after


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return round(float(np.percentile(values, percent)), 2) if values else None


def _text(value: object) -> str:
    return "?" if value is None else str(value)
