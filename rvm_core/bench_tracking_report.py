"""What `rvm bench-tracking` shows: tables and a JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from rvm_core.bench_report import Row, Summary, aligned, paired_ratio
from rvm_core.bench_tracking import SizeMeasurement, Times, TrackingOptions
from rvm_core.config import PATCH_SIZE

FORMAT_VERSION = 1
"""Of the JSON file. Grows when an older reader would misread it."""


_FOUND = ("max_abs_difference", "different_cells", "other_labels", "tied_cells", "identical")


def make_report(
    sizes: Sequence[SizeMeasurement],
    options: TrackingOptions,
    model: str,
    machine: dict[str, Any],
    *,
    interrupted: bool,
) -> Row:
    """Everything that was measured, as JSON has it. `model`: whose features, in words."""
    return {
        "format_version": FORMAT_VERSION,
        "interrupted": interrupted,
        "machine": machine | {"threads": torch.get_num_threads()},
        "model": model,
        "options": asdict(options),
        "propagation": [_propagation_row(size, options) for size in sizes],
        "trackers": [row for size in sizes for row in _tracker_rows(size, options)],
    }


def _propagation_row(size: SizeMeasurement, options: TrackingOptions) -> Row:
    found = size.propagation
    rows, columns = (pixels // PATCH_SIZE for pixels in size.image_size)
    return {
        "image_size": list(size.image_size),
        "cells": rows * columns,
        "width": size.width,
        "context": options.context,
        "straightforward": _times(found.straightforward),
        "streaming": _times(found.streaming),
        "times_faster": paired_ratio(found.straightforward, found.streaming),
        "compared_cells": found.compared_cells,
        **{name: getattr(found, name) if found.compared_cells else None for name in _FOUND},
    }


def _tracker_rows(size: SizeMeasurement, options: TrackingOptions) -> list[Row]:
    """The engine's step first, then the trackers."""
    common = {"image_size": list(size.image_size)}
    rows: list[Row] = [
        common
        | {"name": f"{size.engine or 'engine'} step", "context": None, "starts": None, "share_of_engine": None}
        | _times(size.engine_times)
    ]
    for tracker in size.trackers:
        frames = "1 frame" if tracker.starts == 1 else f"{tracker.starts} frames"
        rows.append(
            common
            | {
                "name": f"{options.points} points, {options.boxes} boxes of {frames}, context {tracker.context}",
                "context": tracker.context,
                "starts": tracker.starts,
                "share_of_engine": paired_ratio(tracker.times, size.engine_times),
            }
            | _times(tracker.times)
        )
    return rows


def _times(times: Times) -> Row:
    if not times:
        return {"median_ms": None, "p95_ms": None, "rounds_ms": {}}
    summary = Summary.of(times)
    rounds = {str(number): [round(seconds * 1e3, 4) for seconds in steps] for number, steps in times.items()}
    return {"median_ms": summary.median * 1e3, "p95_ms": summary.p95 * 1e3, "rounds_ms": rounds}


# ---- tables ---------------------------------------------------------------------------------------------------------


def make_tables(report: Row) -> str:
    """Plain text: label propagation, then the trackers."""
    propagation = [["label propagation, ms", "cells", "context", "as stated", "p95", "streaming", "p95"]]
    propagation[0] += ["times faster", "max difference", "cells that differ", "ties"]
    for row in report["propagation"]:
        cells = [_size(row), str(row["cells"]), str(row["context"])]
        for way in ("straightforward", "streaming"):
            cells += [_number(row[way]["median_ms"], ".2f"), _number(row[way]["p95_ms"], ".2f")]
        cells += [_number(row["times_faster"], ".2f"), _number(row["max_abs_difference"], ".1e")]
        propagation.append([*cells, _number(row["different_cells"], "d"), _number(row["tied_cells"], "d")])
    trackers = [["tracking, ms", "median", "p95", "of the engine's step"]]
    for row in report["trackers"]:
        cells = [f"{_size(row)}  {row['name']}", _number(row["median_ms"], ".2f"), _number(row["p95_ms"], ".2f")]
        trackers.append([*cells, _number(row["share_of_engine"], ".0%")])
    return f"{_table(propagation)}\n\n{_table(trackers)}"


def _size(row: Row) -> str:
    return "x".join(map(str, row["image_size"]))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(aligned(row, widths) for row in rows)
