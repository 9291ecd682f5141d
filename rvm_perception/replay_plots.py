"""Plots of a replay's report, drawn with matplotlib, which only this file of the package imports.

Each is drawn twice, for light and for dark pages: `write_plot` gets a function that draws on axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rvm_core.bench_plot import PlotError
from rvm_core.tracking.base import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rvm_perception.replay_results import TrackHistory

FloatArray = npt.NDArray[np.floating]

DARK = "-dark"
"""Before the suffix of the file for dark pages."""

_INCHES, _DPI = (6.4, 2.6), 140
_TRACK_INCHES, _MOST_TRACKS = 0.16, 60
_COLOURS = ("#3a7fd0", "#e08a3a", "#5aa85a", "#a468bd", "#d05050", "#808080")
_RESET = "#d03030"
_MOST_RESET_NAMES, _MOST_LETTERS = 12, 32
_STATUS_COLOURS = {Status.VISIBLE: "#3a7fd0", Status.OCCLUDED: "#e0a83a", Status.LOST: _RESET}
_BINS = 60
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")


@dataclass(frozen=True)
class _Page:
    """What a plot lies on."""

    suffix: str
    ink: str
    grid: str


_PAGES = (_Page("", "#202428", "#d8dce0"), _Page(DARK, "#d8dce2", "#3c4248"))

Draw = Callable[["Axes"], None]


def require_plots() -> None:
    """Raises `PlotError` if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise PlotError("no plots: matplotlib is missing; pip install 'rvm_perception[bench]'") from error


def write_plot(path: Path, draw: Draw, *, inches: tuple[float, float] = _INCHES) -> tuple[int, int]:
    """Writes path.png for light and path-dark.png for dark pages; returns their (width, height) in pixels."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for page in _PAGES:
        style: dict[Any, Any] = {"font.size": 9, "grid.color": page.grid, "text.parse_math": False}
        style |= dict.fromkeys(_INKED, page.ink)
        with rc_context(style):
            figure = Figure(figsize=inches, layout="constrained", facecolor="none")
            FigureCanvasAgg(figure)
            _draw(figure, draw)
            figure.savefig(path.with_name(f"{path.stem}{page.suffix}.png"), format="png", dpi=_DPI, transparent=True)
    return round(inches[0] * _DPI), round(inches[1] * _DPI)


def _draw(figure: Figure, draw: Draw) -> None:
    axis = figure.subplots()
    axis.grid(True, lw=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    draw(axis)


def latencies(times: Mapping[str, FloatArray]) -> Draw:
    """How often a frame took how long: name -> milliseconds of each frame."""

    def draw(axis: Axes) -> None:
        known = {name: values[values > 0] for name, values in times.items()}
        known = {name: values for name, values in known.items() if len(values)}
        if not known:
            axis.text(0.5, 0.5, "no times", ha="center", transform=axis.transAxes)
            return
        low, high = min(v.min() for v in known.values()), max(v.max() for v in known.values())
        bins = np.geomspace(low * 0.98, high * 1.02, _BINS).tolist()
        for (name, values), colour in zip(known.items(), _COLOURS, strict=False):
            axis.hist(values, bins, histtype="stepfilled", color=colour, alpha=0.45, label=name)
            axis.axvline(float(np.median(values)), color=colour, lw=1)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlabel("ms a frame; lines: medians")
        axis.set_ylabel("frames")
        axis.legend(frameon=False)

    return draw


def times_over_time(seconds: FloatArray, times: Mapping[str, FloatArray]) -> Draw:
    """Milliseconds of each frame at its time in the recording."""

    def draw(axis: Axes) -> None:
        for (name, values), colour in zip(times.items(), _COLOURS, strict=False):
            axis.plot(seconds, values, lw=0.9, color=colour, label=name)
        axis.set_ylim(0)
        axis.set_xlabel("s of the recording")
        axis.set_ylabel("ms")
        axis.legend(frameon=False)

    return draw


def stability(seconds: FloatArray, median: FloatArray, low: FloatArray, resets: Sequence[tuple[float, str]]) -> Draw:
    """Similarity of each frame's features to those of the frame before, and where the state started anew.

    seconds, median, low (T,): NaN where there is no frame before.
    """

    def draw(axis: Axes) -> None:
        axis.fill_between(seconds, low, median, color=_COLOURS[0], alpha=0.25, lw=0)
        # Single frames between resets have no neighbours that a line could join them with.
        axis.plot(seconds, median, "-", marker="." if len(seconds) < 60 else "", ms=3, lw=1.1, color=_COLOURS[0])
        _mark_resets(axis, resets)
        axis.set_xlabel("s of the recording")
        axis.set_ylabel("cosine")
        axis.set_ylim(top=1.005)

    return draw


def _mark_resets(axis: Axes, resets: Sequence[tuple[float, str]]) -> None:
    for number, (at, reason) in enumerate(resets):
        axis.axvline(at, color=_RESET, lw=1, ls="--")
        if number < _MOST_RESET_NAMES:
            axis.annotate(
                reason, (at, 0.02), xycoords=("data", "axes fraction"), xytext=(2, 0), textcoords="offset points",
                rotation=90, va="bottom", fontsize=7, color=_RESET,
            )  # fmt: skip


def tracks(histories: Sequence[TrackHistory], seconds: FloatArray, resets: Sequence[tuple[float, str]]) -> Draw:
    """When each track was visible, occluded or lost; a row for each, up to `tracks_drawn`."""

    def draw(axis: Axes) -> None:
        step = float(np.median(np.diff(seconds))) if len(seconds) > 1 else 0.1
        shown = histories[:_MOST_TRACKS]
        for row, history in enumerate(shown):
            for status, colour in _STATUS_COLOURS.items():
                axis.broken_barh(_runs(history, status, seconds, step), (row - 0.35, 0.7), color=colour, lw=0)
        _mark_resets(axis, [(at, "") for at, _ in resets])
        axis.set_yticks(range(len(shown)), [_short(history.name) for history in shown], fontsize=7)
        axis.set_xlim(-step, float(seconds[-1]) + 2 * step)
        axis.set_ylim(len(shown) - 0.4, -0.6)
        axis.set_xlabel("s of the recording; blue: visible, yellow: occluded, red: ended by a reset")
        axis.grid(axis="y", visible=False)

    return draw


def _runs(history: TrackHistory, status: int, seconds: FloatArray, step: float) -> list[tuple[float, float]]:
    """(start, length) in seconds of the times in which a track had a status; its last frame lasts `step`."""
    frames = history.frames[history.status == status]
    if not len(frames):
        return []
    # A run ends where the next frame is not the following one, or comes much later.
    ends = np.flatnonzero((np.diff(frames) > 1) | (np.diff(seconds[frames]) > 3 * step))
    starts = np.concatenate([[0], ends + 1])
    stops = np.concatenate([ends, [len(frames) - 1]])
    return [
        (float(seconds[frames[a]]), float(seconds[frames[b]] - seconds[frames[a]]) + step)
        for a, b in zip(starts.tolist(), stops.tolist(), strict=True)
    ]


def _short(text: str) -> str:
    """A name as a stranger's recording may have it, in one short line."""
    line = "".join(c if c.isprintable() else "?" for c in text)
    return line if len(line) <= _MOST_LETTERS else line[: _MOST_LETTERS - 3] + "..."


def tracks_inches(histories: Sequence[TrackHistory]) -> tuple[float, float]:
    """Size of the plot of tracks."""
    return _INCHES[0], 0.9 + _TRACK_INCHES * min(len(histories), _MOST_TRACKS)


def tracks_drawn(histories: Sequence[TrackHistory]) -> int:
    """How many of the tracks the plot shows."""
    return min(len(histories), _MOST_TRACKS)
