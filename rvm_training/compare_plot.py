"""The plot of `rvm compare`, drawn with matplotlib, which only this file imports here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rvm_core.atomic import atomic_file
from rvm_core.bench_plot import PlotError
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
    panels = len(found) + len(bars)
    if not panels:
        raise PlotError("no plot: nothing was measured yet")
    names = [model["name"] for model in report["models"]]
    colours = {name: colormaps["tab10"](index % 10) for index, name in enumerate(names)}
    figure = Figure(figsize=(13, 4.2 * -(-panels // 2) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = iter(figure.subplots(-(-panels // 2), 2, squeeze=False).flat)
    for key, lines in found.items():
        axis, (title, x_title) = next(axes), _CURVES[key]
        for name, points in lines.items():
            model = max((own for own in names if name.startswith(own)), key=len)
            style = ":" if name.endswith(", window") else "-"
            axis.plot(*zip(*points, strict=True), "o", ls=style, ms=3, lw=1.6, color=colours[model], label=name)
        if key in ("ms", "peak_mb"):
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
        if key == "ms":
            axis.set_yscale("log")
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel(x_title, fontsize=8)
        axis.legend(fontsize=7, frameon=False)
    for column in bars:
        axis = next(axes)
        values = [(model["values"].get(column.key) or 0) * column.scale for model in report["models"]]
        axis.barh(range(len(names)), values, color=[colours[name] for name in names])
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.invert_yaxis()
        axis.set_title(f"{column.title}: {column.what}", fontsize=9, loc="left")
    for axis in figure.axes:
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
    for axis in axes:
        axis.set_axis_off()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _has(report: Json, key: str) -> bool:
    return any(model["values"].get(key) is not None for model in report["models"])
