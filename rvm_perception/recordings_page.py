"""The overview of many replays: recordings.json, the same in every run, index.html with links, and a table as text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rvm_core.atomic import atomic_file
from rvm_core.exit_codes import disk_full_errors
from rvm_core.html_page import heading, page, paragraph, table, tiles
from rvm_perception.recording_worker import Outcome
from rvm_perception.recordings import Recording
from rvm_perception.replay_summary import SUMMARY, ReplaySummary, SummaryError, read_summary, read_timing

OVERVIEW, PAGE = "recordings.json", "index.html"
FORMAT_VERSION = 1
"""Of recordings.json. Grows when an older reader would misread it."""

_REPORT = "report.html"
_HEADER = ("recording", "result", "cameras", "frames", "rejected", "resets", "tracks", "frames/s")
_WITH_RESULTS = ("done", "recovered")

Json = dict[str, Any]


class OverviewError(RuntimeError):
    """The results of many recordings cannot be written to this folder."""


def check_folder(out: Path) -> None:
    """Raises `OverviewError` if `out` is a file or holds the replay of a single recording."""
    if (out / SUMMARY).exists() or (out.exists() and not out.is_dir()):
        raise OverviewError(f"{out} is a file or holds the replay of one recording: give another --out")


def write_overview(out: Path, recordings: Sequence[Recording], outcomes: Sequence[Outcome]) -> None:
    """Writes both files into `out`, the folder in which the results of the recordings are."""
    overview = make_overview(out, recordings, outcomes)
    with disk_full_errors(str(out / OVERVIEW)):
        out.mkdir(parents=True, exist_ok=True)
        with atomic_file(out / OVERVIEW) as file:
            file.write_text(json.dumps(overview, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        with atomic_file(out / PAGE) as file:
            file.write_text(_page(out, overview), encoding="utf-8")


def make_overview(out: Path, recordings: Sequence[Recording], outcomes: Sequence[Outcome]) -> Json:
    """What recordings.json holds: for each recording its outcome and the most important of its summary."""
    entries = [_entry(out, recording, outcome) for recording, outcome in zip(recordings, outcomes, strict=True)]
    counts = Counter(entry["result"] for entry in entries)
    return {"format_version": FORMAT_VERSION, "results": dict(sorted(counts.items())), "recordings": entries}


def _entry(out: Path, recording: Recording, outcome: Outcome) -> Json:
    entry: Json = {"name": outcome.name, "bag": recording.path.name, "result": outcome.status}
    if outcome.message and outcome.status not in _WITH_RESULTS:
        # Paths of this machine are no result.
        entry["error"] = outcome.message.replace(f"{recording.path.absolute()}", recording.path.name)
    if outcome.status in _WITH_RESULTS:
        entry |= _figures(read_summary(out / outcome.name))
    return entry


def _figures(summary: ReplaySummary) -> Json:
    cameras = summary.cameras
    return {
        "recovered": summary.recovered,
        "lost": summary.lost,
        "cameras": [camera.name for camera in cameras],
        "received": sum(camera.received for camera in cameras),
        "processed": summary.frames,
        "rejected": dict(sorted(sum((Counter(camera.rejected) for camera in cameras), Counter()).items())),
        "resets": sum(len(camera.resets) for camera in cameras),
        "tracks": sum(sum(camera.tracks.values()) for camera in cameras),
        "fingerprint": summary.fingerprint,
    }


def table_text(out: Path) -> str:
    """The overview as plain text, from its file and the times beside."""
    overview = json.loads((out / OVERVIEW).read_text(encoding="utf-8"))
    lines = [list(_HEADER), *_lines(out, overview)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADER))]
    texts = []
    for line in lines:
        left = (cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True))
        right = (cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True))
        texts.append("  " + "  ".join([*left, *right]).rstrip())
    return "\n".join([*texts, f"  written to {out}: {PAGE}, {OVERVIEW}"])


def _lines(out: Path, overview: Json) -> list[list[str]]:
    """Cells of the table."""
    lines = []
    for entry in overview["recordings"]:
        if entry["result"] in _WITH_RESULTS:
            rejected = sum(entry["rejected"].values())
            numbers = [len(entry["cameras"]), entry["processed"], rejected, entry["resets"], entry["tracks"]]
            lines.append([entry["name"], entry["result"], *map(str, numbers), _speed(out / entry["name"])])
        else:
            lines.append([entry["name"], entry["result"], *[""] * (len(_HEADER) - 2)])
    return lines


def _speed(folder: Path) -> str:
    try:
        return f"{read_timing(folder).frames_per_s:.1f}"
    except SummaryError:
        return ""


def _page(out: Path, overview: Json) -> str:
    entries = overview["recordings"]
    usable = [entry for entry in entries if entry["result"] in _WITH_RESULTS]
    body = [
        tiles({
            "recordings": str(len(entries)),
            **{name: str(count) for name, count in overview["results"].items()},
            "frames": str(sum(entry["processed"] for entry in usable)),
            "rejected": str(sum(sum(entry["rejected"].values()) for entry in usable)),
            "tracks": str(sum(entry["tracks"] for entry in usable)),
        }),
        table(_HEADER, _lines(out, overview), text=(1,)),
    ]  # fmt: skip
    if problems := [entry for entry in entries if entry.get("error") or entry.get("recovered")]:
        body.append(heading("Problems"))
        body += [
            paragraph(f"{entry['name']}: {entry.get('error') or entry['recovered']}", warning=True)
            for entry in problems
        ]
    body += [heading("Reports"), "<ul>"]
    for entry in usable:
        if (out / entry["name"] / _REPORT).exists():
            address = escape(quote(f"{entry['name']}/{_REPORT}"))
            body.append(f'<li><a href="{address}">{escape(entry["name"])}</a></li>')
    body.append("</ul>")
    return page("Replay of recordings", body)
