"""What `rvm eval NAME` shows of a run: a table beside published values, JSON, CSV and an HTML page with pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rvm_core.atomic import atomic_file
from rvm_core.exit_codes import disk_full_errors
from rvm_core.html_page import curve_plot, facts, figure, figures, heading, page, paragraph, table
from rvm_training.evaluation.benchmark import Aggregate, Metric, Row
from rvm_training.evaluation.runner import Run, finite
from rvm_training.evaluation.store import KeptPicture, ResultStore

FORMAT_VERSION = 1
"""Of report.json. Grows when an older reader would misread it."""

Json = dict[str, Any]


def make_report(run: Run, aggregate: Aggregate, machine: Json, *, pictures: Sequence[KeptPicture] = ()) -> Json:
    """Everything there is to say of a run, as JSON has it; figures unscaled, None where there is none."""
    benchmark = run.benchmark
    return {
        "format_version": FORMAT_VERSION,
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "interrupted": run.interrupted,
        "machine": machine,
        "fingerprint": run.fingerprint,
        "identity": run.identity,
        "metrics": [asdict(metric) for metric in benchmark.metrics],
        "rows": [_json_row(row, run) for row in aggregate.rows],
        "published": [_json_row(row, run) for row in benchmark.published],
        "not_comparable": reasons(run),
        "notes": list(aggregate.notes),
        "videos_of_benchmark": run.all_videos,
        "videos": [
            {"id": result.video, "seconds": result.seconds, "summary": finite(result.summary)}
            | {"pictures": [asdict(picture) for picture in result.pictures]}
            for result in run.results.values()
        ],
        "failed": run.failed,
        "curves": [asdict(curve) for curve in aggregate.curves],
        "pictures": [asdict(picture) for picture in pictures],
    }


def _json_row(row: Row, run: Run) -> Json:
    return {"name": row.name or run.encoder_name, "values": finite(row.values), "source": row.source}


def reasons(run: Run) -> list[str]:
    """Why the figures cannot be compared with the published ones; empty if they can."""
    found = list(run.benchmark.deviations)
    if run.random:
        found.append("the weights are random")
    if not run.complete:
        found.append(f"only {len(run.results)} of {run.all_videos} videos are counted")
    return found


def make_table(report: Json) -> str:
    """Plain text: the measured rows, then the published ones with their sources."""
    header, lines, sources = _table_cells(report, detail=False)
    cells = [header, *lines]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    texts = []
    for line, source in zip(cells, ["", *sources], strict=True):
        numbers = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        texts.append("  ".join([line[0].ljust(widths[0]), *numbers, source]).rstrip())
    return "\n".join(texts)


def _table_cells(report: Json, *, detail: bool) -> tuple[list[str], list[list[str]], list[str]]:
    metrics = [Metric(**metric) for metric in report["metrics"] if detail or not metric["detail"]]
    lines, sources = [], []
    for row in report["rows"] + report["published"]:
        lines.append([row["name"], *(shown(row["values"].get(metric.key), metric) for metric in metrics)])
        sources.append(f"published: {row['source']}" if row["source"] else "")
    return ["", *(metric.title for metric in metrics)], lines, sources


def shown(value: float | None, metric: Metric) -> str:
    """A figure as the table has it."""
    return "-" if value is None else format(value * metric.scale, metric.form)


def legend(report: Json) -> list[str]:
    """What the columns mean."""
    return [f"{m['title']}: {m['description']}" for m in report["metrics"] if m["description"]]


def warnings(report: Json) -> list[str]:
    """What to keep in mind with the figures."""
    found = []
    if report["not_comparable"] and report["published"]:
        found.append("not comparable with the published values: " + "; ".join(report["not_comparable"]))
    if report["failed"]:
        found.append(f"{len(report['failed'])} videos could not be used and are not counted")
    if report["interrupted"]:
        found.append("interrupted; the other videos were not measured")
    return found


def write_report(report: Json, folder: Path) -> list[Path]:
    """Writes report.json, report.csv and report.html. Raises `DiskFullError`, or another `OSError`."""
    texts = {
        "report.json": json.dumps(report, indent=1, allow_nan=False) + "\n",
        "report.csv": make_csv(report),
        "report.html": make_page(report),
    }
    for name, text in texts.items():
        with disk_full_errors(str(folder / name)), atomic_file(folder / name) as file:
            file.write_text(text, encoding="utf-8", newline="")
    return [folder / name for name in texts]


def make_csv(report: Json) -> str:
    """A line for each row of the table and for each video; figures unscaled, empty where there is none."""
    keys = [metric["key"] for metric in report["metrics"]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kind", "name", *keys, "source"])
    for kind, rows in (("measured", report["rows"]), ("published", report["published"])):
        for row in rows:
            writer.writerow([kind, row["name"], *(_csv(row["values"].get(key)) for key in keys), row["source"]])
    for video in report["videos"]:
        writer.writerow(["video", video["id"], *(_csv(video["summary"].get(key)) for key in keys), ""])
    for video, why in report["failed"].items():
        writer.writerow(["failed", video, *([""] * len(keys)), why])
    return text.getvalue()


def _csv(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def make_page(report: Json) -> str:
    """The HTML page; pictures by their paths relative to it."""
    header, lines, sources = _table_cells(report, detail=True)
    rows = [[*line, source] for line, source in zip(lines, sources, strict=True)]
    body = [paragraph(text, warning=True) for text in warnings(report)]
    body.append(table([*header, ""], rows, strong=range(len(report["rows"]))))
    body += [paragraph(text) for text in report["notes"]]
    body.append(facts({m["title"]: m["description"] for m in report["metrics"] if m["description"]}))
    plots = [
        curve_plot(curve["lines"], title=curve["title"], x_title=curve["x_title"], y_title=curve["y_title"])
        for curve in report["curves"]
    ]
    if plots or report["pictures"]:
        body.append(figures([*plots, *map(_figure, report["pictures"])]))
    body += _page_videos(report)
    identity = report["identity"]
    body += [
        heading("What was measured"),
        facts(
            {f"fingerprint, {name}": value for name, value in report["fingerprint"].items()}
            | {f"encoder, {name}": value for name, value in identity["encoder"].items()}
            | {f"code, {name}": value for name, value in identity["code"].items()}
            | {f"setting {name}": value for name, value in identity["settings"].items()}
        ),
        heading("Machine"),
        facts(report["machine"]),
    ]
    return page(f"rvm eval {report['benchmark']}", body, lead=report["title"])


def _page_videos(report: Json) -> list[str]:
    metrics = [Metric(**metric) for metric in report["metrics"]]
    metrics = [m for m in metrics if any(video["summary"].get(m.key) is not None for video in report["videos"])]
    body = [heading(f"Videos ({len(report['videos'])} of {report['videos_of_benchmark']})")]
    pictured = [_figure(picture) for video in report["videos"] for picture in video["pictures"]]
    if pictured:
        body.append(figures(pictured))
    lines = [
        [v["id"], *(shown(v["summary"].get(m.key), m) for m in metrics), f"{v['seconds']:.1f}"]
        for v in report["videos"]
    ]
    if lines:
        body.append(table(["video", *(m.title for m in metrics), "s"], lines))
    if report["failed"]:
        body += [heading("Videos that could not be used"), facts(report["failed"])]
    return body


def _figure(picture: Json) -> str:
    return figure(picture["path"], picture["caption"], width=picture["width"], height=picture["height"])


def report_run(run: Run, folder: Path, machine: Json) -> tuple[Json, list[Path]]:
    """Aggregates a run that has at least one result and writes its report. Returns it and the files."""
    aggregate = run.benchmark.aggregate({video: result.scores for video, result in run.results.items()})
    pictures = ResultStore(folder).keep_pictures("all", aggregate.pictures)
    report = make_report(run, aggregate, machine, pictures=pictures)
    return report, write_report(report, folder)
