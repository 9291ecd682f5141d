"""What `rvm-train ablate` shows: means over seeds beside their spread, as a table, as JSON, CSV and a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rvm_core.atomic import atomic_file
from rvm_core.bench_plot import PlotError
from rvm_training.ablation import RAW_PIXELS, UNTRAINED, Ablation, Result

Row = dict[str, Any]


class Column(NamedTuple):
    """A measure."""

    key: str
    title: str
    scale: float
    higher_is_better: bool


COLUMNS = (
    Column("loss", "reconstruction loss (1e-3)", 1e3, False),
    Column("average_jaccard", "point AJ", 100, True),
    Column("box_iou", "box IoU", 100, True),
    Column("mask_iou", "mask J", 100, True),
    Column("noise_kmeans", "noise square IoU", 100, True),
    Column("noise_auc", "noise square AUC", 100, True),
)
_FAR = 5.0
"""A bar that is longer than so many medians is cut off in the plot, with its number."""
LEGEND = (
    "mean over seeds, and in brackets the least and the greatest. Reconstruction loss: mean square over all pixels of "
    "held-out targets, pixels in [0, 1]; for raw pixels that of taking the last source frame for each target. "
    "Tracking: by the features alone, in held-out synthetic scenes, in %. Noise square: 4 clips in which only motion "
    "shows a square; chance: IoU at most 25, AUC 50."
)


class Finding(NamedTuple):
    """Something the paper found, and whether it is seen here."""

    text: str
    better: str
    worse: str


FINDINGS = (
    Finding("four source frames are better than two", "4_frames", "2_frames"),
    Finding("two source frames are better than one", "2_frames", "1_frame"),
    Finding("the recurrent core is better than self-attention", "4_frames", "self_attention"),
)


def make_report(ablation: Ablation, results: Mapping[str, Sequence[Result]], machine: Row) -> Row:
    """Everything that was measured so far, for JSON."""
    rows = [_row(name, results[name]) for name in (*ablation.variants, UNTRAINED, RAW_PIXELS) if name in results]
    first = ablation.first
    return {
        "format_version": 1,
        "machine": machine,
        "budget": {
            "steps": first.optimizer.steps,
            "batch_size": first.batch_size,
            "examples": first.optimizer.steps * first.batch_size,
            "image_size": first.sampling.image_size,
        },
        "seeds": list(ablation.seeds),
        "scenes": ablation.scenes,
        "rows": rows,
        "findings": _findings(rows),
        "complete": all(len(results.get(name, ())) == len(ablation.seeds) for name in (*ablation.variants, UNTRAINED))
        and RAW_PIXELS in results,
    }


def _row(name: str, results: Sequence[Result]) -> Row:
    scores = {}
    for column in COLUMNS:
        values = [result["scores"][column.key] for result in results]
        known = [value for value in values if value is not None]
        scores[column.key] = {
            "mean": math.fsum(known) / len(known) if known else None,
            "low": min(known, default=None),
            "high": max(known, default=None),
            "values": values,
        }
    return {"name": name, "seeds": [result["seed"] for result in results], "scores": scores}


def _findings(rows: Sequence[Row]) -> list[Row]:
    """Each finding of the paper in each measure: seen (in the means, and no seed contradicts), not seen, or unclear."""
    by_name = {row["name"]: row for row in rows}
    found = []
    for finding in FINDINGS:
        better, worse = (next((r for n, r in by_name.items() if n.endswith(end)), None) for end in finding[1:])
        if better and worse:
            verdicts = {c.key: _verdict(better["scores"][c.key], worse["scores"][c.key], c) for c in COLUMNS}
            found.append({"text": finding.text, "better": better["name"], "worse": worse["name"], "verdicts": verdicts})
    return found


def _verdict(better: Row, worse: Row, column: Column) -> str:
    if better["mean"] is None or worse["mean"] is None:
        return "not measured"
    sign = 1 if column.higher_is_better else -1
    if sign * (better["mean"] - worse["mean"]) <= 0:
        return "not seen"
    apart = better["low"] > worse["high"] if column.higher_is_better else better["high"] < worse["low"]
    return "seen" if apart else "within the spread of the seeds"


def make_table(report: Row) -> str:
    """Markdown: one line for each row, then what the paper found and whether it is seen here."""
    budget = report["budget"]
    lines = [
        f"{budget['examples']:,} examples each ({budget['steps']:,} steps of {budget['batch_size']}), "
        f"{budget['image_size']}x{budget['image_size']}, seeds {', '.join(map(str, report['seeds']))}, "
        f"{report['scenes']} held-out scenes" + ("" if report["complete"] else "; NOT COMPLETE"),
        "",
        f"| | {' | '.join(column.title for column in COLUMNS)} |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for row in report["rows"]:
        cells = (_cell(row["scores"][column.key], column) for column in COLUMNS)
        lines.append(f"| {row['name'].replace('_', ' ')} | {' | '.join(cells)} |")
    lines += ["", LEGEND, ""]
    for finding in report["findings"]:
        verdicts = "; ".join(f"{column.title}: {finding['verdicts'][column.key]}" for column in COLUMNS)
        lines.append(f"- The paper: {finding['text']}. Here: {verdicts}.")
    return "\n".join(lines) + "\n"


def _cell(score: Row, column: Column) -> str:
    if score["mean"] is None:
        return "-"
    mean = f"{score['mean'] * column.scale:.1f}"
    if len(score["values"]) < 2:
        return mean
    return f"{mean} ({score['low'] * column.scale:.1f}..{score['high'] * column.scale:.1f})"


def write_report(report: Row, folder: Path) -> list[Path]:
    """Writes ablation.json, ablation.md and, with matplotlib, ablation.png. Returns what was written.

    Raises `PlotError`, after the others are written, if matplotlib is missing.
    """
    written = []
    for name, text in (
        ("ablation.json", json.dumps(report, indent=1, allow_nan=False) + "\n"),
        ("ablation.md", make_table(report)),
    ):
        with atomic_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written.append(folder / name)
    _plot(report, folder / "ablation.png")
    return [*written, folder / "ablation.png"]


def _plot(report: Row, path: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError("no plot: matplotlib is missing; pip install 'rvm_perception[train]'") from error

    figure = Figure(figsize=(13, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    names = [row["name"].replace("_", " ") for row in report["rows"]]
    for axis, column in zip(figure.subplots(2, 3).flat, COLUMNS, strict=True):
        scores = [row["scores"][column.key] for row in report["rows"]]
        end = _axis_end([score["high"] * column.scale for score in scores if score["high"] is not None])
        for place, score in enumerate(scores):
            if score["mean"] is not None:
                mean = score["mean"] * column.scale
                axis.barh(place, min(mean, end), color="#2a6fbb", alpha=0.5)
                values = [value * column.scale for value in score["values"] if value is not None]
                axis.plot(values, [place] * len(values), "o", color="#1c2430", markersize=4)
                if mean > end:
                    axis.text(end, place, f"{mean:.0f} \u2192 ", ha="right", va="center", fontsize=8)
        axis.set_xlim(0, end)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.invert_yaxis()
        better = "higher" if column.higher_is_better else "lower"
        axis.set_title(f"{column.title}, {better} is better", fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    budget = report["budget"]
    figure.suptitle(f"{budget['examples']:,} examples each; bars: mean over seeds, dots: each seed", fontsize=10)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _axis_end(values: Sequence[float]) -> float:
    """Beyond all values but those that are so large that nothing could be told of the others."""
    usual = _FAR * float(np.median(values)) if values else 0.0
    return 1.1 * max((value for value in values if value <= usual), default=0.0) or 1.0
