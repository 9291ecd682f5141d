"""What a training of a readout leaves beside the weights: the curve as CSV and PNG, and a summary as JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from rvm_core.atomic import atomic_file
from rvm_core.bench_plot import PlotError
from rvm_training.readout_state import CurvePoint

_COLUMNS = ("learning_rate", "step", "loss", "held_out")


def write_curve(path: Path, curve: Sequence[CurvePoint]) -> None:
    """The curve as CSV: learning_rate, step, loss, held_out; empty where it was not measured."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(_COLUMNS)
        table.writerows(["" if value is None else value for value in asdict(point).values()] for point in curve)


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """JSON."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def draw_curve(path: Path, curve: Sequence[CurvePoint], title: str) -> None:
    """A PNG of both losses over the steps, for each rate. Raises `PlotError` if matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError("no plot: matplotlib is missing; pip install 'rvm_perception[train]'") from error
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for number, (rate, points) in enumerate(groupby(curve, key=lambda point: point.learning_rate)):
        line = list(points)
        colour = f"C{number % 10}"
        trained = [(point.step, point.loss) for point in line if point.loss is not None]
        held_out = [(point.step, point.held_out) for point in line if point.held_out is not None]
        if trained:
            axis.plot(*zip(*trained, strict=True), color=colour, alpha=0.4, label=f"training, rate {rate:g}")
        if held_out:
            axis.plot(
                *zip(*held_out, strict=True), color=colour, marker="o", markersize=3, label=f"held out, rate {rate:g}"
            )
    axis.set(xlabel="step", ylabel="loss", title=title, yscale="log")
    axis.grid(alpha=0.3)
    axis.legend()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
