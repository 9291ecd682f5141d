"""The report page of a replay: what it says, and what a browser shows of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from browser import look_at, screenshot
from replay_folder import NASTY, REJECTED_FRAME, RESET_FRAME, summary_of, write_replay
from rvm_perception import replay_plots
from rvm_perception.replay_report import write_report
from rvm_perception.replay_results import ResultsError
from rvm_perception.replay_summary import SummaryError

pytest.importorskip("matplotlib", reason="the report's plots are drawn with matplotlib (extra: bench)")

PHONE, DESK = 400, 1200
"""Widths of a window, pixels."""


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay")
    write_replay(folder)
    write_report(folder)
    return folder


class _Page(HTMLParser):
    """Text, tags and addresses of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")], "a handler of events"

    def handle_data(self, data: str) -> None:
        self.text += " ".join(data.split()) + " "


def test_everything_is_told(replay: Path) -> None:
    text = _Page(replay / "report.html").text
    for part in (
        "Replay of drive", "31 frames received", "30 processed", "1 rejected", "1 resets", "2 tracks",
        "rejected: late 1", "20.0 frames a second", "2.00 times real time",
        f"gap {RESET_FRAME} 3.800 1", f"late {REJECTED_FRAME} ", "preprocess", "engine", "tracking",
        "Stability of the features", "point 1 cat 0.00 3.80 17 100% yes", "71%",
        "1 queries, of whose parts 2 were accepted and 1 refused", "torch, fp32, cpu", "cd" * 32,
        "resize_policy letterbox",
    ):  # fmt: skip
        assert part in text, part
    assert "Recovered" not in text and "Random weights" not in text


def test_page_needs_nothing_but_the_files_beside_it(replay: Path) -> None:
    page = _Page(replay / "report.html")
    assert not page.tags & {"script", "iframe", "object", "embed", "form", "base"}
    assert "url(" not in (replay / "report.html").read_text() and "@import" not in (replay / "report.html").read_text()
    assert page.addresses and all((replay / address).is_file() for address in page.addresses), page.addresses
    pictures = {f"report/{path.name}" for path in (replay / "report").iterdir()}
    assert pictures == set(page.addresses) - {"front/overlay.mp4"}


def test_text_of_a_recording_stays_text(replay: Path) -> None:
    """A label and a message with a script in them."""
    source = (replay / "report.html").read_text(encoding="utf-8")
    assert "<script" not in source and NASTY in _Page(replay / "report.html").text


def test_a_browser_shows_all_pictures(replay: Path, tmp_path: Path) -> None:
    for width, dark in ((DESK, False), (PHONE, True)):
        title, pictures, wide = look_at(replay / "report.html", tmp_path / str(width), width=width, dark=dark)
        assert title == "Replay of drive"
        assert len(pictures) == 5 and min(pictures) > 100, pictures
        assert wide <= width + 100, "it must be scrolled sideways"  # a headless window has a least width


def test_a_broken_picture_would_be_noticed(replay: Path, tmp_path: Path) -> None:
    page = replay / "broken.html"
    page.write_text((replay / "report.html").read_text().replace("camera0-strip", "gone"))
    _, pictures, _ = look_at(page, tmp_path / "scratch", width=DESK)
    page.unlink()
    assert pictures.count(0) == 1


def test_it_is_seen_on_light_and_dark_screens(replay: Path, tmp_path: Path) -> None:
    levels = {}
    for dark in (False, True):
        picture = tmp_path / f"{dark}.png"
        screenshot(replay / "report.html", picture, tmp_path / f"scratch{dark}", width=DESK, height=2400, dark=dark)
        image = cv2.imread(str(picture))
        assert image is not None and image.shape == (2400, DESK, 3) and image.std() > 20
        levels[dark] = float(np.median(image))
    assert levels[False] > 230 and levels[True] < 60


def test_recovered_runs_are_marked_before_everything_else(tmp_path: Path) -> None:
    write_replay(tmp_path / "replay", summary_of(recovered="drive is damaged: it ends early", lost=12))
    write_report(tmp_path / "replay")
    page = (tmp_path / "replay" / "report.html").read_text()
    assert "<title>Replay of drive (recovered)</title>" in page and "<h1>Replay of drive (recovered)</h1>" in page
    mark = re.search(r'<p class="warning">Recovered: only the readable part .*</p>', page)
    assert mark and "ends early" in mark[0] and "12 messages" in mark[0]
    assert mark.start() < page.index("frames received") and "no; 12 messages lost" in page


def test_unknown_losses_and_random_weights_are_told(tmp_path: Path) -> None:
    summary = summary_of(recovered="no index", lost=None)
    write_replay(tmp_path / "replay", replace(summary, engine=replace(summary.engine, random_weights=True)))
    write_report(tmp_path / "replay")
    text = _Page(tmp_path / "replay" / "report.html").text
    assert "an unknown number of messages" in text and "Random weights: the model was not trained" in text


def test_what_is_missing_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No features, film, tracks, times and no matplotlib."""
    summary = summary_of()
    camera = replace(summary.cameras[0], features="", overlay="", tables=("front/frames.csv",), queries=0, tracks={})
    write_replay(tmp_path / "replay", replace(summary, cameras=(camera,)))
    (tmp_path / "replay" / "timing.json").unlink()
    (tmp_path / "replay" / "front" / "timing.csv").unlink()
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    write_report(tmp_path / "replay")
    page = _Page(tmp_path / "replay" / "report.html")
    assert "No features were kept" in page.text and "pip install 'rvm_perception[bench]'" in page.text
    assert not page.addresses and "Latencies" not in page.text and "Tracks" not in page.text


def test_camera_without_a_processed_frame(tmp_path: Path) -> None:
    summary = summary_of()
    camera = replace(
        summary.cameras[0], processed=0, rejected={"encoding": 31}, resets=(), features="", overlay="", tables=(),
        image_sizes=(), first_stamp_ns=None, last_stamp_ns=None, duration_s=0.0, queries=0, tracks={},
    )  # fmt: skip
    write_replay(tmp_path / "replay", replace(summary, cameras=(camera,)))
    for name in ("frames", "timing"):
        path = tmp_path / "replay" / "front" / f"{name}.csv"
        path.write_text(path.read_text().splitlines()[0] + "\n")
    write_report(tmp_path / "replay")
    assert "rejected: encoding 31" in _Page(tmp_path / "replay" / "report.html").text


def test_names_that_matplotlib_would_read_as_formulas(tmp_path: Path) -> None:
    write_replay(tmp_path / "replay")
    table = tmp_path / "replay" / "front" / "point_tracks.csv"
    table.write_text(table.read_text().replace("cat", "$\\frac$"))
    write_report(tmp_path / "replay")
    assert "$\\frac$" in _Page(tmp_path / "replay" / "report.html").text


def test_progress_is_told(tmp_path: Path) -> None:
    write_replay(tmp_path / "replay")
    told = []

    def progress(items: Iterator[object], text: str, total: int) -> Iterator[object]:
        told.append((text, total))
        return items

    write_report(tmp_path / "replay", progress)  # type: ignore[arg-type]
    assert told == [("report front", 30)]


def test_damaged_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SummaryError, match="does not exist"):
        write_report(tmp_path)
    write_replay(tmp_path / "replay")
    features = tmp_path / "replay" / "front" / "features.npz"
    np.savez(features, features=np.zeros((3, 8, 12, 4), np.float16))
    with pytest.raises(ResultsError, match="should hold 30 feature maps"):
        write_report(tmp_path / "replay")
    assert not (tmp_path / "replay" / "report.html").exists()


def test_many_tracks_are_cut() -> None:
    assert replay_plots.tracks_drawn([None] * 500) == 60  # type: ignore[list-item]
    assert replay_plots.tracks_inches([None] * 500)[1] < 12  # type: ignore[list-item]
