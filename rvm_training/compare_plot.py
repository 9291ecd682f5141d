"""The plot of `rvm compare`, drawn with matplotlib, which only this file imports here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rvm_core.atomic import atomic_file
from rvm_core.bench_plot import PlotError
from rvm_training.compare_growth import ALL, WINDOW
from rvm_training.compare_report import COLUMNS, curves

Json = dict[str, Any]

_CURVES = {
    "ms": ("latency of a frame, ms", "frames seen"),
    "peak_mb": ("memory, MB", "frames seen"),
    "propagation": ("J&F in synthetic scenes, %", "frames"),
    "davis2017": ("J&F on DAVIS 2017, %", "frames"),
}
_BARS = ("tracking.average_jaccard", "tracking.mask_iou", "propagation.jf", "davis2017.jf", "noise_square.auc")


def write_plot(report: Json, path: Path) -> None:
    """Writes a PNG with a panel for each curve and each main figure.

    Raises `PlotError` if matplotlib is missing, or there is nothing to draw.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError("no plot: matplotlib is missing; pip install 'rvm_perception[eval]'") from error

    found = curves(report)
    bars = [column for column in COLUMNS if column.key in _BARS and _has(report, column.key)]
    if not found and not bars:
        raise PlotError("no plot: nothing was measured yet")
    names = [model["name"] for model in report["models"]]
    colours = {name: colormaps["tab10"](index % 10) for index, name in enumerate(names)}
    rows = [-(-len(panels) // 2) for panels in (found, bars) if panels]
    figure = Figure(figsize=(13, 4.2 * sum(rows) + 0.22 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    # Apart, as the names beside bars take room.
    parts = iter(figure.subfigures(len(rows), 1, squeeze=False, height_ratios=rows).flat)
    if found:
        _draw_curves(next(parts), found, colours)
    if bars:
        _draw_bars(next(parts), report, bars, colours)
    for axis in figure.axes:
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_curves(part: Any, found: Any, colours: dict[str, Any]) -> None:
    """Solid lines; dotted where a clip encoder sees only its window."""
    axes = iter(part.subplots(-(-len(found) // 2), 2, squeeze=False).flat)
    named: dict[str, Any] = {}
    for key, lines in found.items():
        axis, (title, x_title) = next(axes), _CURVES[key]
        for name, points in lines.items():
            model = max((own for own in colours if name.startswith(own)), key=len)
            style = ":" if name.endswith(f", {WINDOW}") else "-"
            (line,) = axis.plot(*zip(*points, strict=True), "o", ls=style, ms=3, lw=1.6, color=colours[model])
            # A clip encoder has its line of latency for all of its own.
            if key in ("ms", "peak_mb") or f"{model}, {ALL}" not in named:
                named.setdefault(name, line)
        if key in ("ms", "peak_mb"):
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
        if key == "ms":
            axis.set_yscale("log")
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel(x_title, fontsize=8)
    for axis in axes:
        axis.remove()
    part.legend(list(named.values()), list(named), loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def _draw_bars(part: Any, report: Json, bars: list[Any], colours: dict[str, Any]) -> None:
    axes = iter(part.subplots(-(-len(bars) // 2), 2, squeeze=False, sharey=True).flat)
    for column in bars:
        axis = next(axes)
        values = [(model["values"].get(column.key) or 0) * column.scale for model in report["models"]]
        axis.barh(range(len(colours)), values, color=list(colours.values()))
        axis.set_yticks(range(len(colours)), list(colours), fontsize=8)
        axis.set_ylim(len(colours) - 0.4, -0.6)
        axis.set_title(f"{column.title}: {column.what}", fontsize=9, loc="left")
    for axis in axes:
        axis.remove()


def _has(report: Json, key: str) -> bool:
    return any(model["values"].get(key) is not None for model in report["models"])
