"""What `rvm-train frame-memory` shows: PSNR against the number of frames seen, as a table, as JSON and as a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rvm_core.atomic import atomic_file
from rvm_core.bench_plot import PlotError
from rvm_training.frame_memory import LAST, MEAN, FrameMemory, Result, tasks, write_json

Row = dict[str, Any]
_COLOURS = {"rvm": "#2a6fbb", "trecvit": "#b03030", LAST: "#8a8a8a", MEAN: "#c4c4c4"}


def make_report(
    memory: FrameMemory,
    results: Sequence[Result],
    baselines: Mapping[str, Mapping[str, Mapping[str, float]]],
    machine: Mapping[str, Any],
) -> Row:
    """Everything that was measured so far, for JSON. baselines: by source and name."""
    rows: list[Row] = []
    for source in memory.sources:
        for model in memory.models:
            found = [result for result in results if (result["source"], result["model"]) == (source, model)]
            if found:
                rows.append(_row(memory, source, model, [result["psnr"] for result in found], found))
        for name, scores in baselines.get(source, {}).items():
            rows.append(_row(memory, source, name, [scores], []))
    return {
        "format_version": 1,
        "machine": dict(machine),
        "plan": memory.plain(),
        "rows": rows,
        "complete": len(results) == len(tasks(memory)),
    }


def _row(
    memory: FrameMemory, source: str, name: str, scores: Sequence[Mapping[str, float]], results: Sequence[Result]
) -> Row:
    values = {str(count): [score[str(count)] for score in scores] for count in memory.test_frames}
    return {
        "source": source,
        "name": name,
        "seeds": [result["seed"] for result in results],
        "parameters": results[0]["parameters"] if results else 0,
        "psnr": {count: {"mean": math.fsum(of) / len(of), "values": of} for count, of in values.items()},
    }


def make_table(report: Row) -> str:
    """Markdown: one line for each source and model."""
    plan = report["plan"]
    counts = plan["test_frames"]
    lines = [
        f"PSNR (dB) of frame {plan['remembered']}, painted after so many frames; trained to paint it after "
        f"{plan['train_frames']}. {plan['steps']:,} steps of {plan['batch_size']} clips of {plan['image_size']}x"
        f"{plan['image_size']} for all, {plan['train_clips']} clips to learn from, {plan['test_clips']} others in the "
        f"test. Mean over seeds {', '.join(map(str, plan['seeds']))}, in brackets the least and the greatest."
        + ("" if report["complete"] else " NOT COMPLETE."),
        "",
        f"| clips | model | parameters | {' | '.join(f'{count} frames' for count in counts)} |",
        "|---" * (len(counts) + 3) + "|",
    ]
    for row in report["rows"]:
        parameters = f"{row['parameters'] / 1e3:.0f} k" if row["parameters"] else "-"
        cells = " | ".join(_cell(row["psnr"][str(count)]) for count in counts)
        lines.append(f"| {row['source']} | {row['name']} | {parameters} | {cells} |")
    lines += ["", f"{LAST}, {MEAN}: the newest frame, and the mean of all seen so far, in its place; no training."]
    return "\n".join(lines) + "\n"


def _cell(score: Mapping[str, Any]) -> str:
    values = score["values"]
    mean = f"{score['mean']:.1f}"
    return mean if len(values) < 2 else f"{mean} ({min(values):.1f}..{max(values):.1f})"


def write_report(report: Row, folder: Path) -> list[Path]:
    """Writes frame_memory.json, .md and, with matplotlib, .png. Returns what was written.

    Raises `PlotError`, after the others are written, if matplotlib is missing.
    """
    paths = [folder / f"frame_memory.{suffix}" for suffix in ("json", "md", "png")]
    write_json(paths[0], report)
    with atomic_file(paths[1]) as temporary:
        temporary.write_text(make_table(report), encoding="utf-8")
    _plot(report, paths[2])
    return paths


def _plot(report: Row, path: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError("no plot: matplotlib is missing; pip install 'rvm_perception[train]'") from error

    plan = report["plan"]
    sources, counts = list(plan["sources"]), plan["test_frames"]
    figure = Figure(figsize=(5.5 * len(sources), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, source in zip(figure.subplots(1, len(sources), squeeze=False)[0], sources, strict=True):
        for row in report["rows"]:
            if row["source"] == source:
                scores = [row["psnr"][str(count)] for count in counts]
                colour = _COLOURS[row["name"]]
                axis.plot(counts, [score["mean"] for score in scores], "o-", color=colour, label=row["name"])
                low, high = ([pick(score["values"]) for score in scores] for pick in (min, max))
                axis.fill_between(counts, low, high, color=colour, alpha=0.2)
        axis.axvline(plan["train_frames"], color="black", linestyle=":", linewidth=1)
        axis.set_title(f"{source}: frame {plan['remembered']}, dotted: as in training", fontsize=9)
        axis.set_xlabel("frames seen")
        axis.set_ylabel("PSNR, dB")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
