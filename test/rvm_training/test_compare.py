"""`rvm compare` as a whole: what is kept, what is shown, and what happens to what cannot be measured."""

from __future__ import annotations

import csv
import gc
import io
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

from mini_datasets import make_davis
from rvm_core.cli import main
from rvm_training import compare_growth
from rvm_training.compare import MEASURES, Protocol, compare
from rvm_training.compare_growth import GrowthPoint
from rvm_training.compare_models import Compared, Source, open_compared
from rvm_training.compare_report import make_report, make_table, warnings

CLIP = Path(__file__).parents[2] / "rvm_core" / "data" / "clip.mp4"
SMALL = [
    "--size", "64x64", "--frames", "6", "--scenes", "1", "--scene-frames", "6", "--noise-clips", "1",
    "--noise-frames", "10", "--growth-frames", "4",
]  # fmt: skip


@pytest.fixture
def quick_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency and memory in this process; that they are measured in others has tests of its own."""

    def measure(job: compare_growth.GrowthJob, kind: str, progress: Callable[[str], None]) -> Any:
        points = []
        for way in compare_growth.ways_of(kind):
            for frames in job.points:
                progress(way)
                points.append(GrowthPoint(way=way, frames=frames, ms=float(frames), peak_mb=100.0))
        return points, []

    monkeypatch.setattr("rvm_training.compare.measure_growth", measure)


def protocol(*measures: str, **more: Any) -> Protocol:
    small: dict[str, Any] = {"image_size": (64, 64), "video_frames": 6, "scenes": 1, "scene_frames": 6}
    return Protocol(measures=measures, **(small | {"growth_frames": 4, "noise_frames": 10, "noise_clips": 1} | more))


def silent(text: str, done: float) -> None:
    return None


def test_command_writes_everything_and_finds_it_again(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], quick_growth: None
) -> None:
    davis = make_davis(tmp_path / "davis", {"boxes": 4})
    command = ["compare", "--models", str(tiny_path), "pixels", "--data", str(CLIP), "--davis", str(davis), *SMALL]
    command += ["--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == 0
    report = json.loads((tmp_path / "out/compare.json").read_text())
    assert report["measures"] == list(MEASURES)
    assert [model["name"] for model in report["models"]] == [f"rvm_custom ({tiny_path.name})", "raw pixels"]
    for model in report["models"]:
        known = {key for key, value in model["values"].items() if value is not None}
        assert {"tracking.mask_iou", "propagation.jf", "davis2017.jf", "noise_square.auc", "videos.changes"} <= known
        assert [point["frames"] for point in model["growth"]] == [1, 2, 4]
    printed = capsys.readouterr().out
    assert "points AJ" in printed and "ms, by frames seen" in printed and "raw pixels" in printed
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/compare.csv").read_text())))
    assert float(rows[0]["propagation.jf"]) == report["models"][0]["values"]["propagation.jf"]
    page = (tmp_path / "out/compare.html").read_text()
    assert "Same protocol for all" in page and "float32 on cpu" in page
    assert 'src="pictures/video_000.png"' in page
    sheet = cv2.imread(str(tmp_path / "out/pictures/video_000.png"))
    # Frames, and PCA and clusters of two models, in two columns.
    assert sheet is not None and sheet.shape[0] > 3 * 112 and sheet.shape[1] > 2 * 6 * 112
    assert cv2.imread(str(tmp_path / "out/compare.png")) is not None

    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/models").rglob("*.json")}
    assert len(kept) == 2 * len(MEASURES)
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/models").rglob("*.json")} == kept
    again = json.loads((tmp_path / "out/compare.json").read_text())
    assert again["models"] == report["models"]


def test_models_that_fail_do_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "--models", "gone.npz", "pixels", "--measures", "propagation", *SMALL]
    assert main([*command, "--out", str(tmp_path)]) == 3
    report = json.loads((tmp_path / "compare.json").read_text())
    assert "no checkpoint at gone.npz" in report["models"][0]["problems"]["model"]
    assert report["models"][1]["values"]["propagation.jf"] is not None
    assert "gone.npz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--models", "gone.npz", "--measures", "propagation"], "gone.npz: no checkpoint"),
        (["--models", "pixels", "--measures", "videos"], "nothing to measure"),
        (["--models", "pixels", "--data", "nowhere"], "there is nothing at nowhere"),
        (["--models", "pixels", "--davis", "nowhere"], "nowhere"),
    ],
)
def test_errors_in_one_line(options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *options, "--out", str(tmp_path)]) == 1
    assert said in capsys.readouterr().err


def test_what_a_measure_raises_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory\nwith a long story")

    monkeypatch.setattr("rvm_training.compare_measures.follow", fail)
    found = compare(["pixels"], protocol("tracking", "propagation"), tmp_path, silent)
    assert found.models[0].problems == {"tracking": "out of memory"}
    assert list(found.models[0].measured) == ["propagation"]
    assert "raw pixels, tracking: out of memory" in warnings(make_report(found, {}))


def test_interrupted_it_keeps_what_is_there_and_goes_on(tmp_path: Path, quick_growth: None) -> None:
    def interrupt(text: str, done: float) -> None:
        if "propagation" in text:
            raise KeyboardInterrupt

    chosen = protocol("tracking", "propagation", "growth")
    stopped = compare(["pixels"], chosen, tmp_path, interrupt)
    assert stopped.interrupted
    assert list(stopped.models[0].measured) == ["tracking"]
    report = make_report(stopped, {})
    assert report["models"][0]["values"]["tracking.mask_iou"] is not None
    assert any("interrupted" in line for line in warnings(report))
    assert "raw pixels" in make_table(report)
    finished = compare(["pixels"], chosen, tmp_path, silent)
    assert not finished.interrupted
    assert finished.models[0].measured["tracking"].reused == 1
    assert finished.models[0].measured["propagation"].reused == 0


def test_interrupted_within_a_video_it_stops_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rvm_training.compare_measures.follow", interrupt)
    stopped = compare(["pixels", "other.npz"], protocol("tracking", "propagation"), tmp_path, silent)
    assert stopped.interrupted
    assert [model.spec for model in stopped.models] == ["pixels"]
    assert make_report(stopped, {})["models"][0]["values"] == {"parameters": None}


def test_other_settings_and_damaged_files_are_measured_again(tmp_path: Path, quick_growth: None) -> None:
    compare(["pixels"], protocol("growth", "tracking"), tmp_path, silent)
    (path,) = tmp_path.rglob("growth.json")
    kept = path.read_text()
    path.write_text(kept[:-20])
    compare(["pixels"], protocol("growth"), tmp_path, silent)
    assert path.read_text() == kept
    other = compare(["pixels"], protocol("growth", "tracking", scene_frames=7, growth_frames=2), tmp_path, silent)
    assert other.models[0].measured["tracking"].reused == 0
    assert [point.frames for point in other.models[0].growth] == [1, 2]


def test_models_are_let_go_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Any]] = []

    def open_and_note(spec: str, source: Source) -> Compared:
        gc.collect()
        assert [known for known in alive if known() is not None] == []
        found = open_compared(spec.partition("#")[0], source)
        alive.append(weakref.ref(found.encoder))
        return found

    monkeypatch.setattr("rvm_training.compare.open_compared", open_and_note)
    found = compare(["pixels#1", "pixels#2"], protocol("propagation"), tmp_path, silent)
    assert [list(model.measured) for model in found.models] == [["propagation"]] * 2
    assert not found.models[0].problems and len(alive) == 2


def test_progress_adds_up_to_the_measures(tmp_path: Path, quick_growth: None) -> None:
    told: list[float] = []
    compare(["pixels", "gone.npz"], protocol("propagation", "growth"), tmp_path, lambda _, done: told.append(done))
    assert sum(told) == pytest.approx(4)


def test_random_weights_are_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rvm_core.config import TRecViTConfig
    from rvm_core.trecvit import TRecViT

    config = TRecViTConfig(width=32, depth=1, heads=2, mlp_width=32, recurrent_width=32, recurrent_heads=2)
    monkeypatch.setattr("rvm_training.compare_models.make_encoder", lambda name: TRecViT(config))
    found = compare(["random:trecvit_b16"], protocol("propagation"), tmp_path, silent)
    report = make_report(found, {})
    assert report["models"][0]["name"] == "trecvit_b16 (random weights)"
    assert "features of random weights" in warnings(report)[0]


def test_a_protocol_that_cannot_be() -> None:
    for options, said in (
        ({"scenes": 0}, "expected scenes of 1 or more, got 0"),
        ({"growth_frames": 0}, "1 or more frames"),
        ({"measures": ("quality",)}, "unknown measure 'quality'"),
    ):
        with pytest.raises(ValueError, match=said):
            Protocol(**options)
