"""The plot of `rvm bench`, drawn with matplotlib, which only this file imports."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvm_core.atomic import atomic_file
from rvm_core.bench_report import Row, workload_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ENGINE, _EAGER, _FAILED = "#2a6fbb", "#a9a9a9", "#b03030"
_COLUMN_INCHES, _BAR_INCHES, _FRAME_INCHES, _SOAK_INCHES = 9.0, 0.42, 0.9, 4.5
_MAX_REASON = 90


class PlotError(RuntimeError):
    """matplotlib is not installed."""


def write_plot(report: Row, path: Path) -> None:
    """Writes a PNG with one panel for each workload, and one for the memory where there was a soak.

    Raises `PlotError` if matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError("no plot: matplotlib is missing; pip install 'rvm_perception[bench]'") from error

    steps = [row for row in report["rows"] if row["kind"] in ("engine", "eager")]
    panels = [(title, list(rows)) for title, rows in groupby(steps, key=workload_title)]
    soaked = [row for row in steps if row["soak_mb"]]
    inches = [len(rows) * _BAR_INCHES + _FRAME_INCHES for _, rows in panels] + [_SOAK_INCHES] * bool(soaked)
    figure = Figure(figsize=(_COLUMN_INCHES, sum(inches) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    machine = report["machine"]
    figure.suptitle(f"{machine['cpu']}, {machine['threads']} threads, {machine['date'][:10]}", fontsize=10)
    axes = list(figure.subplots(len(inches), 1, squeeze=False, height_ratios=inches)[:, 0]) if inches else []
    for axis, (title, rows) in zip(axes, panels, strict=False):
        _draw_times(axis, title, rows)
    if soaked:
        _draw_soak(axes[-1], soaked)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _draw_times(axis: Axes, title: str, rows: Sequence[Row]) -> None:
    """Medians as bars, from p5 to p95 as whiskers, the fastest on top."""
    rows = sorted(rows, key=lambda row: row["median_ms"] or float("inf"), reverse=True)
    # One hiccup of the machine shall not press all bars together; a longer whisker is cut and its end written.
    longest = min(max(row["p95_ms"] or 0 for row in rows), 2 * max(row["median_ms"] or 0 for row in rows))
    for y, row in enumerate(rows):
        median = row["median_ms"]
        if median is None:
            axis.text(0, y, f" {_short(row['failure'] or 'not measured')}", va="center", fontsize=8, color=_FAILED)
            continue
        low = row["p95_ms"] - row["jitter_ms"]
        high = min(longest, row["p95_ms"])
        whiskers = [[max(0, median - low)], [max(0, high - median)]]
        color = _ENGINE if row["kind"] == "engine" else _EAGER
        axis.barh(y, median, color=color, xerr=whiskers, error_kw={"ecolor": "#303030", "capsize": 3, "lw": 1})
        text = _figures(row) + (f" (p95 {_number(row['p95_ms'])})" if high < row["p95_ms"] else "")
        axis.text(max(median, high) + longest * 0.015, y, text, va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [_name(row) for row in rows], fontsize=9)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.set_xlim(0, longest * 1.7 or 1)
    axis.set_xlabel("ms for one step of all cameras (median, p5 to p95); peak: of a large matrix product", fontsize=8)
    axis.set_title(title, fontsize=10, loc="left")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _figures(row: Row) -> str:
    parts = [f"{_number(row['median_ms'])} ms"]
    if row["share_of_peak"] is not None:
        parts.append(f"{row['share_of_peak']:.0%} of peak")
    if row["speedup_over_eager_fp32"] is not None and row["name"] != "eager:fp32":
        parts.append(f"{row['speedup_over_eager_fp32']:.2f} x eager fp32")
    return ", ".join(parts)


def _number(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def _draw_soak(axis: Axes, rows: Sequence[Row]) -> None:
    for row in rows:
        steps, resident = zip(*row["soak_mb"], strict=True)
        growth = [value - resident[0] for value in resident]
        axis.plot(steps, growth, label=f"{workload_title(row)} {_name(row)}", lw=1.2)
    axis.set_xlabel("steps", fontsize=8)
    axis.set_ylabel("MB", fontsize=8)
    axis.set_title("growth of resident memory", fontsize=10, loc="left")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.16), frameon=False)


def _name(row: Row) -> str:
    return f"{row['name']}{'' if row['device'] == 'cpu' else ' ' + row['device']}"


def _short(reason: Any) -> str:
    text = " ".join(str(reason).split())
    return text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 3] + "..."
