"""What `rvm eval synthetic` shows: the means of what was measured, a table and a JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rvm_core.atomic import atomic_file
from rvm_training.evaluators.calibration import Reliability, reliability
from rvm_training.evaluators.synthetic import Cases, Evaluation, SceneScores
from rvm_training.evaluators.tap_vid import THRESHOLDS, mean_metrics

FORMAT_VERSION = 1
"""Of the JSON file. Grows when an older reader would misread it."""

Row = dict[str, Any]

_COLUMNS: tuple[tuple[str, str, float, str], ...] = (
    ("average_jaccard", "AJ", 100, ".1f"),
    ("position_accuracy", "<d_avg", 100, ".1f"),
    ("occlusion_accuracy", "OA", 100, ".1f"),
    ("box_iou", "box IoU", 100, ".1f"),
    ("mask_iou", "mask IoU", 100, ".1f"),
    ("features_ms", "features ms", 1, ".2f"),
    ("tracking_ms", "tracking ms", 1, ".2f"),
    ("point_calibration_error", "point ECE", 100, ".1f"),
    ("box_calibration_error", "box ECE", 100, ".1f"),
    ("mask_calibration_error", "mask ECE", 100, ".1f"),
)
LEGEND = (
    "points as TAP-Vid has it: Average Jaccard, position accuracy, occlusion accuracy; IoU without the first frame; "
    "all in %\nms: median of a frame, features apart from tracking; "
    "ECE: expected calibration error of the confidence, in %"
)
"""What the columns mean."""


def make_report(evaluation: Evaluation, machine: Row, options: Row, *, interrupted: bool) -> Row:
    """Everything that was measured, as JSON has it: shares in [0, 1], times in milliseconds, None for NaN."""
    rows = []
    for index, name in enumerate(evaluation.methods):
        rows.append(_row(name, [scene[index] for scene in evaluation.scores]))
    report = {
        "format_version": FORMAT_VERSION,
        "interrupted": interrupted,
        "machine": machine,
        "options": options,
        "scene": asdict(evaluation.config),
        "seeds": evaluation.seeds,
        "rows": rows,
    }
    cleaned: Row = _without_nan(report)
    return cleaned


def _row(name: str, scenes: Sequence[SceneScores]) -> Row:
    if not scenes:
        return {"name": name, "scenes": []} | {key: None for key, *_ in _COLUMNS}
    points = mean_metrics([scene.points for scene in scenes])
    reliabilities = {
        "point": _reliability([scene.point_cases for scene in scenes]),
        "box": _reliability([scene.box_cases for scene in scenes]),
        "mask": _reliability([scene.mask_cases for scene in scenes]),
    }
    return {
        "name": name,
        "average_jaccard": points.average_jaccard,
        "position_accuracy": points.position_accuracy,
        "occlusion_accuracy": points.occlusion_accuracy,
        "jaccard": dict(zip(map(str, THRESHOLDS), points.jaccard, strict=True)),
        "within": dict(zip(map(str, THRESHOLDS), points.within, strict=True)),
        "box_iou": _mean([scene.box_iou for scene in scenes]),
        "mask_iou": _mean([scene.mask_iou for scene in scenes]),
        "features_ms": _median_ms(scenes, lambda scene: scene.encode_ms),
        "tracking_ms": _median_ms(scenes, lambda scene: scene.track_ms),
        **{f"{kind}_calibration_error": value.expected_calibration_error for kind, value in reliabilities.items()},
        "reliability": {kind: asdict(value) for kind, value in reliabilities.items()},
        "scenes": [_scene_row(scene) for scene in scenes],
    }


def _scene_row(scene: SceneScores) -> Row:
    return {
        "average_jaccard": scene.points.average_jaccard,
        "position_accuracy": scene.points.position_accuracy,
        "occlusion_accuracy": scene.points.occlusion_accuracy,
        "box_iou": scene.box_iou,
        "mask_iou": scene.mask_iou,
    }


def _reliability(cases: Sequence[Cases]) -> Reliability:
    confidence = np.concatenate([case.confidence for case in cases])
    return reliability(confidence, np.concatenate([case.truth for case in cases]))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _median_ms(scenes: Sequence[SceneScores], times: Callable[[SceneScores], Any]) -> float:
    # In the first frame of a scene nothing is tracked yet.
    return float(np.median(np.concatenate([times(scene)[1:] for scene in scenes])))


def _without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def make_table(report: Row) -> str:
    """Plain text, one line for each method."""
    lines = [["", *(title for _, title, _, _ in _COLUMNS)]]
    for row in report["rows"]:
        cells = (_cell(row[key], scale, form) for key, _, scale, form in _COLUMNS)
        lines.append([row["name"], *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def _cell(value: float | None, scale: float, form: str) -> str:
    return "-" if value is None else format(value * scale, form)


def write_json(report: Row, path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
