"""The loss curve of a pretraining run, drawn with matplotlib, which only this file imports for training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rvm_core.atomic import atomic_file
from rvm_core.bench_plot import PlotError
from rvm_training.run_folder import RunFolder
from rvm_training.train_log import Row, read_scalars

_LOSS, _HELD_OUT, _NORM, _RATE = "#2a6fbb", "#d07a2a", "#4f9a4f", "#9a5fb0"


def draw_run(folder: RunFolder) -> None:
    """Draws what a run has logged so far. Raises `PlotError` if matplotlib is missing."""
    write_curve(read_scalars(folder.scalars), folder.curve, folder.path.resolve().name)


def write_curve(rows: Sequence[Row], path: Path, title: str) -> None:
    """Writes a PNG: the loss of training and of held-out clips by the step, gradient norm and learning rate below.

    Raises `PlotError` if matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError("no plot: matplotlib is missing; pip install 'rvm_perception[train]'") from error

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    loss, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for key, colour, label in (("loss", _LOSS, "training"), ("eval_loss", _HELD_OUT, "held-out clips")):
        steps, values = _column(rows, key)
        if len(steps):
            loss.plot(steps, values, "o-" if key == "eval_loss" else "-", ms=3, lw=1, color=colour, label=label)
    loss.set_yscale("log")
    loss.set_ylabel("mean square error", fontsize=8)
    if loss.lines:
        loss.legend(fontsize=8, frameon=False)
    right = lower.twinx()
    for axis, key, colour, label in (
        (lower, "gradient_norm", _NORM, "gradient norm"),
        (right, "learning_rate", _RATE, "learning rate"),
    ):
        axis.plot(*_column(rows, key), lw=1, color=colour)
        axis.set_ylabel(label, fontsize=8, color=colour)
    lower.set_xlabel("step", fontsize=8)
    for axis in (loss, lower, right):
        axis.tick_params(labelsize=8)
        axis.spines["top"].set_visible(False)
    loss.grid(alpha=0.25)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _column(rows: Sequence[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    found = [(row["step"], row[key]) for row in rows if key in row]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.asarray(steps, np.int64), np.asarray(values, np.float64)
