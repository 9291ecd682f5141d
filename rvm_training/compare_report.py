"""What `rvm compare` shows: one table of all models, JSON, CSV and an HTML page with pictures side by side."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.atomic import atomic_file
from rvm_core.bench_report import aligned
from rvm_core.exit_codes import disk_full_errors
from rvm_core.visualize import contact_sheet
from rvm_training.compare import PROPAGATIONS, Comparison, ModelResult, Protocol
from rvm_training.compare_growth import ALL, STEP, WINDOW, to_json
from rvm_training.compare_measures import CLUSTERS
from rvm_training.compare_models import with_unique_names
from rvm_training.evaluation.runner import finite

FORMAT_VERSION = 1
"""Of compare.json. Grows when an older reader would misread it."""

Json = dict[str, Any]
UInt8Array = npt.NDArray[np.uint8]


class Column(NamedTuple):
    """A figure of the table."""

    key: str
    """Measure and figure."""
    title: str
    scale: float
    form: str
    what: str
    """What it is, for the legend."""


COLUMNS = (
    Column("parameters", "M param.", 1e-6, ".1f", "parameters that features depend on, millions"),
    Column("tracking.average_jaccard", "points AJ", 100, ".1f", "points in synthetic scenes, Average Jaccard, %"),
    Column("tracking.box_iou", "box IoU", 100, ".1f", "boxes in synthetic scenes, %"),
    Column("tracking.mask_iou", "mask IoU", 100, ".1f", "masks in synthetic scenes, %"),
    Column("propagation.jf", "J&F", 100, ".1f", "label propagation in synthetic scenes, %"),
    Column("propagation.stability", "stability", 1, ".2f", "J&F of all their frames over that of the first 16"),
    Column("davis2017.jf", "DAVIS J&F", 100, ".1f", "label propagation on DAVIS 2017, 480x880, %"),
    Column("davis2017.stability", "DAVIS stab.", 1, ".2f", "J&F of its longest lengths over that of the first 16"),
    Column("noise_square.kmeans", "noise IoU", 100, ".1f", "a square that only motion shows: k-means, %, chance 25"),
    Column("noise_square.auc", "noise AUC", 100, ".1f", "the same by a linear probe, %, chance 50"),
    Column("noise_square.auc_single", "single AUC", 100, ".1f", "the same where each frame is seen alone: no motion"),
    Column("videos.changes", "changes", 100, ".1f", "cells of your videos that change their cluster in a frame, %"),
    Column("videos.similarity", "similarity", 1, ".3f", "cosine of a cell's features in two frames that follow"),
)


def make_report(comparison: Comparison, machine: Json) -> Json:
    """Everything that was measured, as JSON has it: shares in [0, 1], None where there is nothing."""
    protocol = comparison.protocol
    names = with_unique_names(
        [str((model.facts or {}).get("name", model.spec)) for model in comparison.models],
        [model.spec for model in comparison.models],
    )
    return {
        "format_version": FORMAT_VERSION,
        "interrupted": comparison.interrupted,
        "machine": machine,
        "protocol": protocol_sentences(protocol),
        "measures": protocol.chosen,
        "columns": [column._asdict() for column in columns_of(protocol)],
        "models": [_model(model, name) for model, name in zip(comparison.models, names, strict=True)],
    }


def columns_of(protocol: Protocol) -> list[Column]:
    """Those that the chosen measures fill."""
    return [column for column in COLUMNS if column.key.partition(".")[0] in ("parameters", *protocol.chosen)]


def _model(model: ModelResult, name: str) -> Json:
    facts = model.facts or {}
    values: dict[str, float | None] = {"parameters": facts["parameters"] or None} if facts else {}
    for measure, measured in model.measured.items():
        values |= {f"{measure}.{key}": value for key, value in measured.values.items()}
    return {
        "name": name,
        "spec": model.spec,
        "facts": facts,
        "folder": model.folder,
        "values": values,
        "stability": {
            measure: [list(point) for point in model.measured[measure].stability]
            for measure in PROPAGATIONS
            if measure in model.measured
        },
        "growth": to_json(model.growth),
        "videos": {
            measure: {
                video: {"summary": finite(kept.summary), "pictures": [picture.path for picture in kept.pictures]}
                for video, kept in measured.videos.items()
            }
            for measure, measured in model.measured.items()
        },
        "fingerprints": {measure: measured.fingerprint for measure, measured in model.measured.items()},
        "problems": dict(model.problems),
    }


def protocol_sentences(protocol: Protocol) -> list[str]:
    """What all models went through, for the report."""
    height, width = protocol.image_size
    window = "one clip for every frame, of which it is the last, so that no later frame is seen"
    if not protocol.source.causal:
        window = (
            "windows that follow each other, so that they see the later frames of a window too, which no camera has"
        )
    said = [
        f"Every model is run by torch in float32 on {protocol.source.device}, with the same code for all, on frames of "
        f"{height}x{width} pixels; its features are one vector for every {16}x{16} pixels. A model with patches of "
        "another size gets frames resized so that it has as many.",
        "Recurrent and image encoders take one frame after the other. Clip encoders take "
        f"{window}; what is missing at the end is black. Features are those of the last layer, for 4DS those that its "
        "readouts look at; where there is no [CLS], the mean token stands for it. Nothing is trained but the probe of "
        "the noise square.",
    ]
    if {"tracking", "propagation"} & set(protocol.chosen):
        said.append(
            f"Synthetic scenes: {protocol.scenes} of {protocol.scene_frames} frames, the same for all. Tracking uses "
            "the tracker of this package on each model's features; propagation is that of DAVIS."
        )
    if "davis2017" in protocol.chosen:
        said.append("DAVIS 2017, validation set, by the settings of the release; stability counts its longest videos.")
    if "noise_square" in protocol.chosen:
        said.append(
            f"Noise square: clips of {protocol.noise_frames} frames, {protocol.noise_clips} measured, learned from "
            f"{4 * protocol.noise_groups} others. Seen alone, a frame shows nothing: how far a model is from chance "
            "there tells the error of so few clips."
        )
    if "videos" in protocol.chosen:
        said.append(
            f"Your videos: up to {protocol.video_frames} frames of each, one in {protocol.stride}, cut to the aspect "
            "ratio; "
            f"PCA colours and {CLUSTERS} clusters are fitted to each video and model."
        )
    if "growth" in protocol.chosen:
        said.append(
            "Latency and memory: what the features of one frame take after so many were seen, each model in a process "
            f'of its own: a step; for clip encoders "{WINDOW}", their newest frames once more, and "{ALL}", all that '
            "were seen at once, so that they know of as many as a recurrent encoder does. Memory is the most that the "
            "process has meanwhile (of a GPU: that torch has), program and weights among it."
        )
    return said


def warnings(report: Json) -> list[str]:
    """What to keep in mind with the figures."""
    found = []
    random = [model["name"] for model in report["models"] if model["facts"].get("random_weights")]
    if random:
        found.append(
            f"{', '.join(random)}: features of random weights; figures of quality say what training is worth, not what "
            "the model is. Latency and memory do not depend on weights."
        )
    for model in report["models"]:
        found += [f"{model['name']}, {measure}: {why}" for measure, why in model["problems"].items()]
    if report["interrupted"]:
        found.append("interrupted; the rest was not measured, and the same command goes on from here")
    return found


def table_cells(report: Json) -> tuple[list[str], list[list[str]]]:
    """The header, and a line for each model."""
    columns = [Column(**column) for column in report["columns"]]
    lines = []
    for model in report["models"]:
        values = (model["values"].get(column.key) for column in columns)
        lines.append(
            [model["name"], *(_cell(value, column) for value, column in zip(values, columns, strict=True))]
        )  # fmt: skip
    return ["", *(column.title for column in columns)], lines


def _cell(value: float | None, column: Column) -> str:
    return "-" if value is None else f"{value * column.scale:{column.form}}"


def growth_cells(report: Json, key: str) -> tuple[list[str], list[list[str]]]:
    """Latency ("ms") or memory ("peak_mb") by the number of frames seen: the header, and a line for each model."""
    numbers = sorted({point["frames"] for model in report["models"] for point in model["growth"]})
    form = {"ms": ".1f", "peak_mb": ".0f"}[key]
    lines = []
    for name, points in growth_lines(report).items():
        known = {point["frames"]: f"{point[key]:{form}}" for point in points}
        lines.append([name, *(known.get(number, "-") for number in numbers)])
    title = {"ms": "ms, by frames seen", "peak_mb": "MB, by frames seen"}[key]
    return [title, *map(str, numbers)], lines


def growth_lines(report: Json) -> dict[str, list[Json]]:
    """Points by model and way."""
    found: dict[str, list[Json]] = {}
    for model in report["models"]:
        for point in model["growth"]:
            name = model["name"] if point["way"] == STEP else f"{model['name']}, {point['way']}"
            found.setdefault(name, []).append(point)
    return found


def make_table(report: Json) -> str:
    """Plain text."""
    parts = [_text_table(*table_cells(report))]
    if growth_lines(report):
        parts += [_text_table(*growth_cells(report, key)) for key in ("ms", "peak_mb")]
    return "\n\n".join(parts)


def _text_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    return "\n".join(aligned(line, widths) for line in [header, *lines])


def legend(report: Json) -> list[str]:
    """What the columns are."""
    return [f"{column['title']}: {column['what']}" for column in report["columns"]]


def make_csv(report: Json) -> str:
    """A line for each model; figures unscaled, empty where there is none."""
    keys = [column["key"] for column in report["columns"]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "spec", "kind", "random_weights", *keys])
    for model in report["models"]:
        facts = model["facts"]
        values = (model["values"].get(key) for key in keys)
        writer.writerow(
            [model["name"], model["spec"], facts.get("kind", ""), facts.get("random_weights", "")]
            + ["" if value is None else repr(float(value)) for value in values]
        )
    return text.getvalue()


def write_report(report: Json, folder: Path) -> list[Path]:
    """Writes compare.json, compare.csv, pictures and compare.html. Raises `DiskFullError`, or another `OSError`."""
    from rvm_training.compare_page import make_page

    sheets = dict(write_sheets(report, folder))
    texts = {
        "compare.json": json.dumps(report, indent=1, allow_nan=False) + "\n",
        "compare.csv": make_csv(report),
        "compare.html": make_page(report, sheets),
    }
    for name, text in texts.items():
        with disk_full_errors(str(folder / name)), atomic_file(folder / name) as file:
            file.write_text(text, encoding="utf-8", newline="")
    return [folder / name for name in texts]


def write_sheets(report: Json, folder: Path) -> Iterator[tuple[str, str]]:
    """Strips of all models side by side, a picture for each video; yields the video and the picture's path."""
    videos = dict.fromkeys(video for model in report["models"] for video in model["videos"].get("videos", {}))
    for number, video in enumerate(videos):
        images, captions = _strips(report, video, folder)
        if not images:
            continue
        relative = f"pictures/video_{number:03d}.png"
        path = folder / relative
        path.parent.mkdir(exist_ok=True)
        sheet = contact_sheet(images, 2, captions, gap=6)
        done, data = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
        assert done
        with disk_full_errors(str(path)), atomic_file(path) as file:
            file.write_bytes(data.tobytes())
        yield video, relative


def _strips(report: Json, video: str, folder: Path) -> tuple[list[UInt8Array], list[str]]:
    """The frames, then PCA and clusters of each model."""
    images: list[UInt8Array] = []
    captions: list[str] = []
    for model in report["models"]:
        kept = model["videos"].get("videos", {}).get(video)
        paths = {Path(path).stem.rpartition("-")[2]: path for path in kept["pictures"]} if kept else {}
        strips = {
            kind: image
            for kind, path in paths.items()
            if (image := _read(folder / model["folder"] / "videos" / path)) is not None
        }
        if not {"input", "pca", "kmeans"} <= strips.keys():
            continue
        if not images:
            images += [strips["input"], strips["input"]]
            captions += ["frames", "frames"]
        images += [strips["pca"], strips["kmeans"]]
        name = _ascii(model["name"])
        captions += [f"{name}: PCA", f"{name}: k-means"]
    return images, captions


def _read(path: Path) -> UInt8Array | None:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    return None if image is None else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def curves(report: Json) -> Mapping[str, Mapping[str, list[tuple[float, float]]]]:
    """Lines by model, by what they show: keys "ms", "peak_mb", "propagation" and "davis2017"; empty ones left out."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for key in ("ms", "peak_mb"):
        found[key] = {name: [(p["frames"], p[key]) for p in points] for name, points in growth_lines(report).items()}
    for measure in PROPAGATIONS:
        found[measure] = {
            model["name"]: [(x, 100 * y) for x, y in model["stability"][measure]]
            for model in report["models"]
            if len(model["stability"].get(measure, ())) > 1
        }
    return {key: lines for key, lines in found.items() if lines}
