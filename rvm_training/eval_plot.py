"""The plot of `rvm eval synthetic`, drawn with matplotlib, which only this file of the package imports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rvm_core.atomic import atomic_file
from rvm_core.bench_plot import PlotError
from rvm_training.eval_report import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#2a6fbb", "#d07a2a", "#4f9a4f", "#9a5fb0", "#b03030", "#606060")
_SCORES = (
    ("average_jaccard", "AJ"),
    ("position_accuracy", "<δ_avg"),
    ("occlusion_accuracy", "OA"),
    ("box_iou", "box IoU"),
    ("mask_iou", "mask IoU"),
)
_KINDS = (
    ("point", "points: visible and within 8 px"),
    ("box", "boxes: IoU over 0.5"),
    ("mask", "masks: IoU over 0.5"),
)


def write_plot(report: Row, path: Path) -> None:
    """Writes a PNG: scores, Jaccard by threshold, and how often confidences are right.

    Raises `PlotError` if matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError("no plot: matplotlib is missing; pip install 'rvm_perception[bench]'") from error

    rows = [row for row in report["rows"] if row["scenes"]]
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    scene = report["scene"]
    figure.suptitle(
        f"{len(report['seeds'])} synthetic scenes of {scene['num_frames']} frames, {scene['height']}x{scene['width']}"
        + (" (interrupted)" if report["interrupted"] else ""),
        fontsize=11,
    )
    axes = figure.subplots(2, 3)
    grid = axes[0, 0].get_gridspec()
    for axis in axes[0, :2]:
        axis.remove()
    scores = figure.add_subplot(grid[0, :2])
    _draw_scores(scores, rows)
    _draw_thresholds(axes[0, 2], rows)
    for axis, (kind, title) in zip(axes[1], _KINDS, strict=True):
        _draw_reliability(axis, rows, kind, title)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _draw_scores(axis: Axes, rows: Sequence[Row]) -> None:
    width = 0.8 / max(1, len(rows))
    for index, row in enumerate(rows):
        places = [number + (index - (len(rows) - 1) / 2) * width for number in range(len(_SCORES))]
        values = [100 * (row[key] or 0) for key, _ in _SCORES]
        bars = axis.bar(places, values, width, label=row["name"], color=_COLOURS[index % len(_COLOURS)])
        axis.bar_label(bars, [f"{value:.0f}" for value in values], fontsize=7)
    axis.set_xticks(range(len(_SCORES)), [title for _, title in _SCORES])
    axis.set_ylim(0, 105)
    axis.set_ylabel("%")
    axis.legend(fontsize=8, frameon=False, ncols=2, loc="upper left")
    _plain(axis)


def _draw_thresholds(axis: Axes, rows: Sequence[Row]) -> None:
    for index, row in enumerate(rows):
        limits = list(row["jaccard"])
        values = [100 * (row["jaccard"][limit] or 0) for limit in limits]
        axis.plot(range(len(limits)), values, "o-", ms=3, lw=1.2, color=_COLOURS[index % len(_COLOURS)])
        axis.set_xticks(range(len(limits)), limits)
    axis.set_ylim(0, 100)
    axis.set_xlabel("threshold, px of a 256x256 image", fontsize=8)
    axis.set_title("Jaccard, %", fontsize=9, loc="left")
    _plain(axis)


def _draw_reliability(axis: Axes, rows: Sequence[Row], kind: str, title: str) -> None:
    """Discs as large as their share of the cases; on the diagonal, confidence is the probability of being right."""
    axis.plot((0, 1), (0, 1), color="#b0b0b0", lw=0.8)
    for index, row in enumerate(rows):
        bins = row["reliability"][kind]
        filled = [i for i, count in enumerate(bins["count"]) if count]
        x, y = ([bins[name][i] for i in filled] for name in ("confidence", "frequency"))
        sizes = [8 + 240 * bins["count"][i] / sum(bins["count"]) for i in filled]
        colour = _COLOURS[index % len(_COLOURS)]
        axis.plot(x, y, lw=1, color=colour, alpha=0.7)
        axis.scatter(x, y, sizes, color=colour, alpha=0.7, linewidths=0)
    axis.set_xlim(-0.03, 1.03)
    axis.set_ylim(-0.03, 1.03)
    axis.set_xlabel("confidence", fontsize=8)
    axis.set_ylabel("share that is right", fontsize=8)
    axis.set_title(title, fontsize=9, loc="left")
    _plain(axis)


def _plain(axis: Axes) -> None:
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
