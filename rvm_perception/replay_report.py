"""The report page of a replay: report.html with its pictures in report/, from the files of the replay's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rvm_core.atomic import atomic_file
from rvm_core.bench_plot import PlotError
from rvm_core.html_page import details, facts, figure, heading, link, page, paragraph, table, tiles
from rvm_core.tracking.base import Status
from rvm_perception import replay_plots
from rvm_perception.replay_pictures import Stability, examine
from rvm_perception.replay_results import (
    FRAMES,
    TIMING,
    FloatArray,
    FrameTable,
    TrackHistory,
    read_features,
    read_frames,
    read_times,
    read_tracks,
)
from rvm_perception.replay_summary import TIMING as RUN_TIMING
from rvm_perception.replay_summary import CameraSummary, ReplaySummary, ReplayTiming, read_summary, read_timing

REPORT, PICTURES = "report.html", "report"
_MOST_ROWS = 200
"""Of a table of resets or tracks; the files have them all."""

Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Wraps an iteration over frames, its description and its length, as tqdm does."""


def _plain(items: Iterable[Any], text: str, total: int) -> Iterable[Any]:
    return items


def write_report(folder: Path, progress: Progress = _plain) -> None:
    """Writes report.html and report/*.png into the folder of a finished replay.

    Raises `SummaryError` or `ResultsError` for files that are missing or damaged. Without matplotlib the page has no
    plots and says so.
    """
    summary = read_summary(folder)
    timing = read_timing(folder) if (folder / RUN_TIMING).exists() else None
    (folder / PICTURES).mkdir(exist_ok=True)
    plots = _Plots(folder)
    body = [*_marks(summary), tiles(_overview(summary, timing))]
    if plots.missing:
        body.append(paragraph(plots.missing, note=True))
    for number in range(len(summary.cameras)):
        camera = _Camera.read(folder, summary, number, progress)
        body += _camera_parts(camera, timing, plots)
    body += _origin(summary)
    with atomic_file(folder / REPORT) as file:
        file.write_text(page(_title(summary), body), encoding="utf-8")


@dataclass(kw_only=True)
class _Camera:
    """What there is of a camera."""

    summary: CameraSummary
    prefix: str
    """Of its pictures' names."""
    frames: FrameTable
    times: dict[str, FloatArray]
    tracks: list[TrackHistory]
    stability: Stability | None
    """None without features."""

    @classmethod
    def read(cls, folder: Path, summary: ReplaySummary, number: int, progress: Progress) -> _Camera:
        camera = summary.cameras[number]
        frames = read_frames(folder / camera.name / FRAMES)
        prefix = f"camera{number}"
        tables = [folder / name for name in camera.tables if Path(name).stem.endswith("_tracks")]
        stability = None
        if camera.features and camera.processed:
            maps = progress(read_features(folder / camera.features), f"report {camera.name}", camera.processed)
            film = folder / camera.overlay if camera.overlay else None
            strip = folder / PICTURES / f"{prefix}-strip.png"
            stability = examine(maps, frames, camera, summary.parameters, film, strip)
        return cls(
            summary=camera,
            prefix=prefix,
            frames=frames,
            times=read_times(folder / camera.name / TIMING),
            tracks=[track for path in tables for track in read_tracks(path, frames)],
            stability=stability,
        )


@dataclass
class _Plots:
    """Draws plots beside the page."""

    folder: Path
    missing: str = field(default="", init=False)
    """Why there are none."""

    def __post_init__(self) -> None:
        try:
            replay_plots.require_plots()
        except PlotError as error:
            self.missing = str(error)

    def figure(self, name: str, text: str, draw: replay_plots.Draw, **size: Any) -> str:
        """The plot as HTML; `text` says what is seen, also to those who do not see it."""
        if self.missing:
            return ""
        width, height = replay_plots.write_plot(self.folder / PICTURES / f"{name}.png", draw, **size)
        light, dark = (f"{PICTURES}/{name}{suffix}.png" for suffix in ("", replay_plots.DARK))
        return figure(light, text, dark=dark, width=width, height=height)


def _title(summary: ReplaySummary) -> str:
    return f"Replay of {summary.bag}" + (" (recovered)" if summary.recovered else "")


def _marks(summary: ReplaySummary) -> list[str]:
    """What must be known before anything else is looked at."""
    parts = []
    if summary.recovered:
        lost = "an unknown number of" if summary.lost is None else str(summary.lost)
        parts.append(
            paragraph(
                "Recovered: only the readable part of this recording was evaluated. "
                f"{summary.recovered.rstrip('.')}. Not readable: {lost} messages.",
                warning=True,
            )
        )
    if summary.engine.random_weights:
        text = "Random weights: the model was not trained, so features and tracks mean little."
        parts.append(paragraph(text, warning=True))
    return parts


def _overview(summary: ReplaySummary, timing: ReplayTiming | None) -> dict[str, str]:
    cameras = summary.cameras
    counts = {
        "cameras": len(cameras),
        "frames received": sum(camera.received for camera in cameras),
        "processed": summary.frames,
        "rejected": sum(sum(camera.rejected.values()) for camera in cameras),
        "resets": sum(len(camera.resets) for camera in cameras),
        "tracks": sum(sum(camera.tracks.values()) for camera in cameras),
    }
    shown = {name: str(count) for name, count in counts.items()}
    if timing is not None:
        shown |= {
            "frames a second": f"{timing.frames_per_s:.1f}",
            "times real time": f"{timing.real_time_factor:.2f}",
        }
    return shown


def _camera_parts(camera: _Camera, timing: ReplayTiming | None, plots: _Plots) -> list[str]:
    summary = camera.summary
    sizes = ", ".join(f"{width} × {height}" for height, width in summary.image_sizes) or "none"
    return [
        heading(summary.name),
        paragraph(f"{summary.topic} ({summary.message_type}), images {sizes}, {summary.duration_s:.2f} s"),
        *_stability_parts(camera, plots),
        *_strip_parts(camera),
        *_count_parts(summary),
        *_reset_parts(summary),
        *_rejection_parts(summary),
        *_latency_parts(camera, timing, plots),
        *_track_parts(camera, plots),
    ]


def _count_parts(camera: CameraSummary) -> list[str]:
    rows = [
        ("received", camera.received),
        ("processed", camera.processed),
        *((f"rejected: {reason}", count) for reason, count in sorted(camera.rejected.items())),
        ("dropped (a newer one came first)", 0),
        ("resets of the state", len(camera.resets)),
        ("put in the order of their stamps", camera.out_of_order),
    ]
    return [
        heading("Frames", level=3),
        table(("", "frames"), [(name, str(count)) for name, count in rows]),
        paragraph("In a replay every frame has its turn, so none is dropped.", note=True),
    ]


def _stability_parts(camera: _Camera, plots: _Plots) -> list[str]:
    title = heading("Stability of the features", level=3)
    found = camera.stability
    if found is None:
        return [title, paragraph("No features were kept, so there is nothing to compare.")]
    frames = camera.frames
    text = "Cosine of each cell's features with those of the frame before: median and, shaded, 5th percentile of cells."
    if frames.resets():
        text += " Dashed: the state started anew, so there is nothing to compare with."
    parts = [title]
    if np.isfinite(found.median).any():
        lowest = int(np.nanargmin(found.median))
        parts.append(
            paragraph(
                f"Median over all frames {np.nanmedian(found.median):.4f}; lowest {found.median[lowest]:.4f}, "
                f"at {frames.seconds[lowest]:.2f} s, frame {frames.frame[lowest]}."
            )
        )
    draw = replay_plots.stability(frames.seconds, found.median, found.low, frames.resets())
    return [*parts, plots.figure(f"{camera.prefix}-stability", text, draw)]


def _strip_parts(camera: _Camera) -> list[str]:
    if camera.stability is None:
        return []
    width, height = camera.stability.strip_size
    text = "Three principal components of the features as colours, the same for the whole recording."
    overlay = camera.summary.overlay
    if overlay:
        text = f"Frames of the overlay film; below each, the features alone. {text}"
    source = f"{PICTURES}/{camera.prefix}-strip.png"
    parts = [heading("What the features tell apart", level=3), figure(source, text, width=width, height=height)]
    return [*parts, link(overlay, "The overlay as a film")] if overlay else parts


def _latency_parts(camera: _Camera, timing: ReplayTiming | None, plots: _Plots) -> list[str]:
    percentiles = timing.cameras.get(camera.summary.name, {}) if timing is not None else {}
    times = {name: values for name, values in camera.times.items() if len(values) == len(camera.frames.frame)}
    if not percentiles and not times:
        return []
    parts = [heading("Latencies", level=3)]
    if percentiles:
        rows = [
            (name.removesuffix("_ms"), *(f"{value:.2f}" for value in (p.p50, p.p95, p.p99, p.max)))
            for name, p in percentiles.items()
        ]
        parts.append(table(("ms a frame", "p50", "p95", "p99", "max"), rows))
    if any(len(values) for values in times.values()):
        text = "How often a frame took how long."
        parts.append(plots.figure(f"{camera.prefix}-latency", text, replay_plots.latencies(times)))
        draw = replay_plots.times_over_time(camera.frames.seconds, times)
        parts.append(plots.figure(f"{camera.prefix}-times", "How long each frame took.", draw))
    return parts


def _reset_parts(camera: CameraSummary) -> list[str]:
    title = heading("Resets", level=3)
    if not camera.resets:
        return [title, paragraph("None: one state from the first frame to the last.")]
    first = camera.first_stamp_ns or 0
    rows = [
        (reset.reason, str(reset.frame), f"{(reset.stamp_ns - first) / 1e9:.3f}", str(reset.epoch))
        for reset in camera.resets[:_MOST_ROWS]
    ]
    header = ("reason", "frame", "s", "epoch that starts")
    return [title, table(header, rows), *_more(len(rows), len(camera.resets), FRAMES)]


def _rejection_parts(camera: CameraSummary) -> list[str]:
    if not camera.rejections:
        return []
    total = sum(camera.rejected.values())
    rows = [(r.reason, str(r.frame), str(r.stamp_ns), r.message) for r in camera.rejections]
    found = table(("reason", "frame", "stamp, ns", "what was wrong"), rows, text=(3,))
    inside = "".join([found, *_more(len(rows), total, FRAMES)])
    return [heading("Rejected frames", level=3), details(f"{total} frame{'s' * (total != 1)}", inside)]


def _track_parts(camera: _Camera, plots: _Plots) -> list[str]:
    summary, tracks = camera.summary, camera.tracks
    if not (tracks or summary.queries or any(summary.tracks.values())):
        return []
    counts = ", ".join(f"{count} {kind}" for kind, count in summary.tracks.items() if count) or "none"
    asked = (
        f"{summary.queries} queries, of whose parts {summary.queries_accepted} were accepted and "
        f"{summary.queries_refused} refused. Tracks: {counts}."
    )
    parts = [heading("Tracks", level=3), paragraph(asked)]
    if not tracks:
        return parts
    seconds = camera.frames.seconds
    shown = replay_plots.tracks_drawn(tracks)
    text = "When each track was visible, occluded or ended."
    text += f" The first {shown} of {len(tracks)}." if shown < len(tracks) else ""
    draw = replay_plots.tracks(tracks, seconds, camera.frames.resets())
    parts.append(plots.figure(f"{camera.prefix}-tracks", text, draw, inches=replay_plots.tracks_inches(tracks)))
    rows = [_track_row(track, seconds) for track in tracks[:_MOST_ROWS]]
    parts.append(table(("track", "from, s", "to, s", "frames", "visible", "ended by a reset"), rows))
    return [*parts, *_more(len(rows), len(tracks), "the tables of the camera")]


def _track_row(track: TrackHistory, seconds: FloatArray) -> Sequence[str]:
    told = len(track.frames) - track.count(Status.LOST)
    visible = f"{track.count(Status.VISIBLE) / told:.0%}" if told else "-"
    start, end = (f"{seconds[i]:.2f}" for i in (track.frames[0], track.frames[-1]))
    return track.name, start, end, str(told), visible, "yes" if track.count(Status.LOST) else ""


def _origin(summary: ReplaySummary) -> list[str]:
    engine = summary.engine
    lost = "unknown" if summary.lost is None else summary.lost
    found = facts(
        {
            "recording": f"{summary.bag} ({summary.bag_storage}), {summary.bag_messages} messages of the topics read",
            "read whole": "yes" if not summary.recovered else f"no; {lost} messages lost",
            "model": f"{engine.model}, input {engine.image_size[1]} × {engine.image_size[0]}",
            "weights": engine.weights or "random",
            "weights, sha256": engine.weights_hash,
            "engine": f"{engine.backend}, {engine.precision}, {engine.device}",
            "tracker": engine.tracker or "none",
            "code version": summary.code_version,
            "fingerprint": summary.fingerprint,
        }
    )
    messages = [(topic, str(count)) for topic, count in sorted(summary.messages.items())]
    return [
        heading("What computed"),
        found,
        details("messages in replay.mcap", table(("topic", "messages"), messages)),
        details("parameters", facts({name: _value(value) for name, value in sorted(summary.parameters.items())})),
    ]


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "-"
    return str(value) if value != "" else "-"


def _more(shown: int, total: int, where: str) -> list[str]:
    return [paragraph(f"The first {shown} of {total}; {where} has them all.", note=True)] if shown < total else []
