"""The HTML page of `rvm compare`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rvm_core.html_page import (
    curve_plot,
    details,
    facts,
    figure,
    figures,
    heading,
    link,
    page,
    paragraph,
    table,
)
from rvm_training.compare_report import curves, growth_cells, growth_lines, legend, table_cells, warnings

Json = dict[str, Any]

_AXES = {
    "ms": ("Latency of a frame", "frames seen", "ms"),
    "peak_mb": ("Memory", "frames seen", "MB"),
    "propagation": ("Stability in synthetic scenes", "frames", "J&F, %"),
    "davis2017": ("Stability on DAVIS 2017", "frames", "J&F, %"),
}


def make_page(report: Json, sheets: Mapping[str, str]) -> str:
    """sheets: pictures of strips by video, paths relative to the page."""
    body = [paragraph(text, warning=True) for text in warnings(report)]
    body.append(table(*table_cells(report)))
    body.append(details("What the columns are", facts(dict(line.split(": ", 1) for line in legend(report)))))
    body += [heading("Same protocol for all"), *map(paragraph, report["protocol"])]
    body += _growth(report)
    body += _stability(report)
    if sheets:
        body.append(heading("Your videos"))
        body.append(
            paragraph(
                "Colours are each model's own: alike colours in one strip are alike features; between strips they mean "
                "nothing.",
                note=True,
            )
        )
        for video, path in sheets.items():
            body += [heading(video, level=3), figures([figure(path, video)])]
    body += _noise(report)
    body.append(heading("Models"))
    for model in report["models"]:
        body.append(details(model["name"], facts({**model["facts"], **_named(model["fingerprints"])})))
    body += [heading("Machine"), facts(report["machine"])]
    body += [heading("Files"), *(link(name, name) for name in ("compare.json", "compare.csv"))]
    names = ", ".join(model["name"] for model in report["models"])
    return page("rvm compare", body, lead=names)


def _growth(report: Json) -> Iterable[str]:
    if not growth_lines(report):
        return []
    parts = [heading("Latency and memory against the number of frames seen")]
    for key in ("ms", "peak_mb"):
        parts += [figures([_plot(report, key)]), table(*growth_cells(report, key))]
    return parts


def _stability(report: Json) -> Iterable[str]:
    drawn = [_plot(report, key) for key in ("propagation", "davis2017") if key in curves(report)]
    return [heading("Label propagation over time"), figures(drawn)] if drawn else []


def _plot(report: Json, key: str) -> str:
    title, x_title, y_title = _AXES[key]
    return curve_plot(curves(report)[key], title=title, x_title=x_title, y_title=y_title)


def _noise(report: Json) -> Iterable[str]:
    found = []
    for model in report["models"]:
        kept = model["videos"].get("noise_square", {})
        paths = [path for video in kept.values() for path in video["pictures"]][:1]
        for path in paths:
            found.append(details(model["name"], figure(f"{model['folder']}/noise_square/{path}", model["name"])))
    return [heading("The square of noise"), *found] if found else []


def _named(fingerprints: Mapping[str, str]) -> dict[str, str]:
    return {f"fingerprint, {measure}": value for measure, value in fingerprints.items()}
