"""The frame: every video once, what was done is found again, and nothing half done is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mini_datasets import ColourEncoder
from rvm_core.exit_codes import DiskFullError
from rvm_training.evaluation import runner
from rvm_training.evaluation.benchmark import (
    Advance,
    Aggregate,
    DatasetError,
    Metric,
    Picture,
    Row,
    Scores,
    VideoResult,
)
from rvm_training.evaluation.report import make_csv, make_page, make_report, make_table, reasons, report_run
from rvm_training.evaluation.runner import Run, run


class Sum:
    """A benchmark of text files with a number each; its figure is the mean."""

    name = "sum"
    title = "Numbers in files"
    metrics = (Metric(key="mean", title="mean", scale=1, form=".2f", description="of all numbers"),)
    published = (Row(name="paper", values={"mean": 2.5}, source="a journal"),)
    image_size = (32, 48)

    def __init__(self, root: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.root = root
        self.settings = settings or {"scale": 1}
        self.deviations: Sequence[str] = ()
        self.evaluated: list[str] = []
        self.before: Callable[[str], None] = lambda video: None

    def videos(self) -> list[str]:
        return sorted(path.relative_to(self.root).with_suffix("").as_posix() for path in self.root.rglob("*.txt"))

    def files(self, video: str) -> list[Path]:
        return [self.root / f"{video}.txt"]

    def evaluate(self, video: str, *, pictures: bool, advance: Advance) -> VideoResult:
        self.before(video)
        self.evaluated.append(video)
        advance(0.5)
        text = self.files(video)[0].read_text()
        if text == "bad":
            raise DatasetError("no number in it")
        picture = Picture(name="number", image=np.full((4, 6, 3), 200, np.uint8), caption=f"<{video}>")
        return VideoResult(
            scores={"number": float(text)},
            summary={"mean": float(text), "other": float("nan")},
            pictures=[picture] if pictures else [],
        )

    def aggregate(self, results: Mapping[str, Scores]) -> Aggregate:
        return Aggregate(rows=[Row(name="", values={"mean": float(np.mean([r["number"] for r in results.values()]))})])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name, number in (("a", 1), ("b", 2), ("deep/c", 6)):
        path = folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(number))
    return folder


def go(root: Path, out: Path, benchmark: Sum | None = None, **options: Any) -> tuple[Run, Sum]:
    benchmark = benchmark or Sum(root)
    encoder = options.pop("encoder", ColourEncoder())
    return run(benchmark, encoder, out, root=root, **options), benchmark


def test_every_video_is_done_once(root: Path, tmp_path: Path) -> None:
    first, benchmark = go(root, tmp_path / "out")
    assert benchmark.evaluated == ["a", "b", "deep/c"] and first.complete and first.reused == 0
    again, benchmark = go(root, tmp_path / "out")
    assert benchmark.evaluated == [] and again.reused == 3
    assert again.results == first.results and again.fingerprint == first.fingerprint


def test_only_what_changed_is_done_again(root: Path, tmp_path: Path) -> None:
    before, _ = go(root, tmp_path / "out")
    (root / "b.txt").write_text("30")
    (root / "d.txt").write_text("4")
    after, benchmark = go(root, tmp_path / "out")
    assert benchmark.evaluated == ["b", "d"]
    assert after.fingerprint["data"] != before.fingerprint["data"]
    assert after.fingerprint["method"] == before.fingerprint["method"]


@pytest.mark.parametrize("what", ["weights", "settings", "code"])
def test_other_weights_settings_or_code_do_all_again(
    what: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = go(root, tmp_path / "out")
    encoder = ColourEncoder("2" if what == "weights" else "1")
    if what == "code":
        monkeypatch.setattr(runner, "code_version", lambda: {"version": "9", "sources_sha256": "0"})
    settings = {"scale": 2} if what == "settings" else None
    after, benchmark = go(root, tmp_path / "out", Sum(root, settings), encoder=encoder)
    assert len(benchmark.evaluated) == 3 and after.fingerprint["all"] != before.fingerprint["all"]
    # The results of both are kept side by side.
    assert go(root, tmp_path / "out")[1].evaluated == [] if what != "code" else True


def test_data_is_told_by_its_content_if_asked_for(root: Path, tmp_path: Path) -> None:
    before, _ = go(root, tmp_path / "out", hash_contents=True)
    os.utime(root / "a.txt", (0, 0))
    again, benchmark = go(root, tmp_path / "out", hash_contents=True)
    assert benchmark.evaluated == [] and again.fingerprint == before.fingerprint
    (root / "a.txt").write_text("7")
    assert go(root, tmp_path / "out", hash_contents=True)[1].evaluated == ["a"]


def test_a_change_of_time_or_size_is_a_change_otherwise(root: Path, tmp_path: Path) -> None:
    go(root, tmp_path / "out")
    os.utime(root / "a.txt", (0, 0))
    assert go(root, tmp_path / "out")[1].evaluated == ["a"]


@pytest.mark.parametrize("damage", ["{", "[]", '{"format_version": 1}', '{"format_version": 99}', "null"])
def test_a_damaged_result_is_done_again(damage: str, root: Path, tmp_path: Path) -> None:
    before, _ = go(root, tmp_path / "out")
    kept = next((tmp_path / "out" / "videos").glob("a.*.json"))
    kept.write_text(damage)
    after, benchmark = go(root, tmp_path / "out")
    assert benchmark.evaluated == ["a"]
    assert [r.scores for r in after.results.values()] == [r.scores for r in before.results.values()]


def test_an_interrupt_gives_up_one_video(root: Path, tmp_path: Path) -> None:
    benchmark = Sum(root)
    benchmark.before = interrupt_at("b")
    done, _ = go(root, tmp_path / "out", benchmark)
    assert done.interrupted and list(done.results) == ["a"]
    assert not list((tmp_path / "out").rglob("*.tmp")) and len(list((tmp_path / "out" / "videos").iterdir())) == 1
    after, benchmark = go(root, tmp_path / "out")
    assert benchmark.evaluated == ["b", "deep/c"] and after.reused == 1 and not after.interrupted


def interrupt_at(name: str) -> Callable[[str], None]:
    def before(video: str) -> None:
        if video == name:
            raise KeyboardInterrupt

    return before


def test_a_bad_video_does_not_stop_the_others(root: Path, tmp_path: Path) -> None:
    (root / "b.txt").write_text("bad")
    done, _ = go(root, tmp_path / "out")
    assert list(done.results) == ["a", "deep/c"] and done.failed == {"b": "no number in it"} and not done.complete


def test_another_error_stops_the_run_and_keeps_what_is_done(root: Path, tmp_path: Path) -> None:
    benchmark = Sum(root)
    benchmark.before = lambda video: 1 / 0 if video == "b" else None  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        go(root, tmp_path / "out", benchmark)
    assert go(root, tmp_path / "out")[1].evaluated == ["b", "deep/c"]


def test_a_full_disk_keeps_what_is_done(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(root, tmp_path / "out", videos=["a"])
    write = Path.write_text

    def full(path: Path, *args: Any, **options: Any) -> int:
        if path.parent.name == "videos":
            raise OSError(28, "No space left on device")
        return write(path, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(DiskFullError, match="the result of b could not be written"):
            go(root, tmp_path / "out")
    assert [path.name[0] for path in (tmp_path / "out" / "videos").iterdir()] == ["a"]
    assert go(root, tmp_path / "out")[1].evaluated == ["b", "deep/c"]


def test_some_videos_only(root: Path, tmp_path: Path) -> None:
    done, benchmark = go(root, tmp_path / "out", videos=["deep/c"])
    assert benchmark.evaluated == ["deep/c"] and reasons(done) == ["only 1 of 3 videos are counted"]
    with pytest.raises(DatasetError, match="no such video: x; there are 3, such as a, b, deep/c"):
        go(root, tmp_path / "out", videos=["x"])


def test_lost_pictures_are_made_again(root: Path, tmp_path: Path) -> None:
    go(root, tmp_path / "out", pictured=1)
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 1
    assert go(root, tmp_path / "out", pictured=1)[1].evaluated == []
    assert go(root, tmp_path / "out", pictured=2)[1].evaluated == ["b"]
    next((tmp_path / "out" / "pictures").glob("a-*")).unlink()
    assert go(root, tmp_path / "out", pictured=2)[1].evaluated == ["a"]


def test_videos_whose_names_look_alike_in_files_stay_apart(root: Path, tmp_path: Path) -> None:
    (root / "deep_c.txt").write_text("8")
    done, _ = go(root, tmp_path / "out")
    again, benchmark = go(root, tmp_path / "out")
    assert benchmark.evaluated == [] and again.results["deep/c"].scores != again.results["deep_c"].scores
    paths = [picture.path for result in done.results.values() for picture in result.pictures]
    assert len(set(paths)) == 4


def test_progress_adds_up_to_the_number_of_videos(root: Path, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    go(root, tmp_path / "out", progress=lambda text, done: told.append((text, done)))
    assert sum(done for _, done in told) == pytest.approx(3) and {text for text, _ in told} == {"a", "b", "deep/c"}
    assert min(done for _, done in told) >= 0


def test_the_report(root: Path, tmp_path: Path) -> None:
    (root / "b.txt").write_text("bad")
    out = tmp_path / "out"
    done, _ = go(root, out)
    report, written = report_run(done, out, {"cpu": "<a processor>"})
    assert [path.name for path in written] == ["report.json", "report.csv", "report.html"]
    assert json.loads(written[0].read_text()) == report
    assert report["rows"] == [{"name": "colours", "values": {"mean": 3.5}, "source": ""}]
    assert report["not_comparable"] == ["only 2 of 3 videos are counted"]
    assert report["identity"]["settings"] == {"scale": 1} and report["fingerprint"] == done.fingerprint
    table = make_table(report).splitlines()
    assert table[0].split() == ["mean"] and table[1].split() == ["colours", "3.50"]
    assert table[2].split() == ["paper", "2.50", "published:", "a", "journal"]
    assert written[1].read_text().splitlines() == [
        "kind,name,mean,source",
        "measured,colours,3.5,",
        "published,paper,2.5,a journal",
        "video,a,1.0,",
        "video,deep/c,6.0,",
        "failed,b,,no number in it",
    ]
    page = written[2].read_text()
    assert "&lt;a processor&gt;" in page and "<a processor>" not in page
    assert "not comparable with the published values" in page and "could not be used" in page
    for result in done.results.values():
        for picture in result.pictures:
            assert f'src="{picture.path}"' in page and (out / picture.path).is_file()


def test_a_figure_that_is_not_a_number_is_none(root: Path, tmp_path: Path) -> None:
    done, benchmark = go(root, tmp_path / "out")
    report = make_report(done, Aggregate(rows=[Row(name="", values={"mean": float("nan")})]), {})
    assert report["rows"][0]["values"] == {"mean": None}
    assert make_table(report).splitlines()[1].split() == ["colours", "-"]
    assert make_csv(report).splitlines()[1] == "measured,colours,," and "colours" in make_page(report)
    assert done.results["a"].summary == {"mean": 1.0, "other": None}


def test_all_that_can_be_compared_says_nothing_against_it(root: Path, tmp_path: Path) -> None:
    benchmark = Sum(root)
    done, _ = go(root, tmp_path / "out", benchmark)
    assert reasons(done) == []
    benchmark.deviations = ["scale is 2, not 1"]
    done.random = True
    assert reasons(done) == ["scale is 2, not 1", "the weights are random"]
