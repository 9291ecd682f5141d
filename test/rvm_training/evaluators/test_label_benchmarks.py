"""davis2017, vip, jhmdb and stability from end to end, on miniature datasets in the real folder layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import rvm_core.cli
from mini_datasets import ColourEncoder, make_davis, make_jhmdb, make_vip, true_joints
from rvm_core.cli import main
from rvm_core.tracking.propagation import TrackingConfig
from rvm_training.datasets.davis import Davis2017
from rvm_training.datasets.jhmdb import Jhmdb
from rvm_training.datasets.vip import CLASSES, Vip
from rvm_training.evaluation.benchmark import DatasetError
from rvm_training.evaluation.runner import run
from rvm_training.evaluators import davis2017, jhmdb, stability, vip
from rvm_training.evaluators.davis2017 import Davis2017Benchmark
from rvm_training.evaluators.jhmdb import JhmdbBenchmark, joint_hits, pck
from rvm_training.evaluators.stability import StabilityBenchmark
from rvm_training.evaluators.vip import VipBenchmark, class_ious, confusion

SMALL = (96, 160)
"""Processing size, so that the tests are quick; the command runs at the real one."""
COARSE = 0.65
"""IoU that is reached in a grid of 6x10 cells, in which an object is hardly three cells wide; a lost one has 0."""


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, whether or not this version of the package is installed."""
    entry = rvm_core.cli.EntryPoint("eval", "rvm_training.eval_cli:register", rvm_core.cli.GROUP)
    monkeypatch.setattr(rvm_core.cli, "entry_points", lambda group: [entry])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Davis2017Benchmark, VipBenchmark, JhmdbBenchmark, StabilityBenchmark):
        monkeypatch.setattr(kind, "image_size", SMALL)


def call(name: str, data: Path, out: Path, weights: Path, *more: str) -> tuple[int, dict[str, Any]]:
    code = main(
        ["eval", name, "--data", str(data), "--out", str(out), "--weights", str(weights), "--precision", "fp32", *more]
    )
    path = out / name / "report.json"
    return code, json.loads(path.read_text()) if path.exists() else {}


def test_davis_by_the_command(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_davis(tmp_path / "DAVIS", {"walk": 4, "run": 5})
    code, report = call("davis2017", data, tmp_path / "out", tiny_path)
    assert code == 0
    values = report["rows"][0]["values"]
    assert values["jf"] == pytest.approx((values["j"] + values["f"]) / 2) and 0 < values["j"] <= 1
    assert [video["id"] for video in report["videos"]] == ["walk", "run"] and report["not_comparable"] == [
        "the dataset's list has 2 videos, not 30"
    ]
    assert report["identity"]["encoder"]["image_size"] == [480, 880]
    assert report["identity"]["settings"] | {"resize": ""} == {
        "resize": "", "n_context": 20, "top_k": 7, "temperature": 0.7, "radius": None
    }  # fmt: skip
    kept = [json.loads(path.read_text()) for path in (tmp_path / "out/davis2017/videos").iterdir()]
    # Two objects; the first and the last frame do not count.
    assert sorted(np.shape(result["scores"]["j"]) for result in kept) == [(2, 2), (2, 3)]
    shown = capsys.readouterr().out
    assert "2 of 2 videos" in shown and "RVM-L" in shown and "66.0" in shown and "4 objects in 2 videos" in shown
    page = (tmp_path / "out/davis2017/report.html").read_text()
    for video in report["videos"]:
        picture = video["pictures"][0]
        image = cv2.imread(str(tmp_path / "out/davis2017" / picture["path"]))
        assert image is not None and image.shape[:2] == (picture["height"], picture["width"])
        assert picture["path"] in page
    assert call("davis2017", data, tmp_path / "out", tiny_path)[0] == 0
    assert "2 of 2 videos, 2 of them by an earlier run" in capsys.readouterr().out


def test_vip_by_the_command(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_vip(tmp_path / "VIP_Fine", {"videos1": 3})
    code, report = call("vip", data, tmp_path / "out", tiny_path)
    assert code == 0 and report["identity"]["settings"]["top_k"] == 10
    assert report["identity"]["encoder"]["image_size"] == [448, 880]
    values = report["rows"][0]["values"]
    known = [values[name] for name in ("background", "hat", "face")]
    assert values["miou"] == pytest.approx(np.mean(known)) and values["dress"] is None and min(known) > 0
    assert "RVM-L" in capsys.readouterr().out


def test_jhmdb_by_the_command(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scipy", reason="is of the extra `eval`")
    data = make_jhmdb(tmp_path / "JHMDB", {"jump/first": 4, "wave/second": 3})
    code, report = call("jhmdb", data, tmp_path / "out", tiny_path)
    assert code == 0 and [video["id"] for video in report["videos"]] == ["jump/first", "wave/second"]
    values = list(report["rows"][0]["values"].values())
    assert len(values) == 5 and values == sorted(values) and 0 <= values[0] and values[-1] <= 1
    assert "PCK@0.1" in capsys.readouterr().out


def test_stability_by_the_command(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_davis(tmp_path / "DAVIS", {"short": 4, "long": 7})
    code, report = call("stability", data, tmp_path / "out", tiny_path, "--lengths", "3", "5", "7")
    assert code == 0 and [video["id"] for video in report["videos"]] == ["long"]
    values = report["rows"][0]["values"]
    assert values["relative_3"] == 1 and values["relative_7"] == pytest.approx(values["jf_7"] / values["jf_3"])
    assert report["curves"][0]["lines"]["this model"] == [[n, values[f"relative_{n}"]] for n in (3, 5, 7)]
    assert "<polyline" in (tmp_path / "out/stability/report.html").read_text()
    assert "1 videos of 7 frames or more" in capsys.readouterr().out


@pytest.mark.usefixtures("small")
def test_features_of_colours_follow_boxes_of_colours(tmp_path: Path) -> None:
    benchmark = Davis2017Benchmark(
        Davis2017(make_davis(tmp_path / "DAVIS", {"walk": 8})), ColourEncoder(), TrackingConfig()
    )
    done = run(benchmark, ColourEncoder(), tmp_path / "out")
    values = done.results["walk"].summary
    assert values["j"] > COARSE and values["j_recall"] == 1  # type: ignore[operator]
    again = benchmark.aggregate({"walk": done.results["walk"].scores}).rows[0].values
    assert again == values


@pytest.mark.usefixtures("small")
def test_objects_count_the_same_whatever_the_video(tmp_path: Path) -> None:
    data = Davis2017(make_davis(tmp_path / "DAVIS", {"walk": 4}))
    benchmark = Davis2017Benchmark(data, ColourEncoder(), TrackingConfig())
    results = {"one": {"j": [[1.0, 1.0]], "f": [[1.0, 1.0]]}, "two": {"j": [[0.0], [0.6]], "f": [[0.0], [0.3]]}}
    values = benchmark.aggregate(results).rows[0].values
    assert values["j"] == pytest.approx(1.6 / 3) and values["f"] == pytest.approx(1.3 / 3)
    assert values["jf"] == pytest.approx(2.9 / 6)
    assert values["j_recall"] == pytest.approx(2 / 3) and values["f_recall"] == pytest.approx(1 / 3)


@pytest.mark.usefixtures("small")
def test_joints_of_colours_are_followed(tmp_path: Path) -> None:
    pytest.importorskip("scipy", reason="is of the extra `eval`")
    data = Jhmdb(make_jhmdb(tmp_path / "JHMDB", {"jump/first": 6}))
    np.testing.assert_allclose(data.joints("jump/first"), true_joints(6), rtol=0, atol=1e-4)
    benchmark = JhmdbBenchmark(data, ColourEncoder(), TrackingConfig())
    result = benchmark.evaluate("jump/first", pictures=True, advance=lambda share: None)
    assert np.sum(result.scores["counted"]) == 5 * 15 and result.summary["pck_0.5"] > 0.9  # type: ignore[operator]
    assert len(result.pictures) == 1


def test_a_joint_of_which_nothing_is_said_does_not_count() -> None:
    truth = np.zeros((3, 15, 2), np.float32)
    truth[:, :, 0] = np.arange(15) * 10
    guess = truth.copy()
    guess[1, 3:] = -1
    guess[2] = -1
    guess[:, 0, 1] = 3
    found, counted = joint_hits(truth, guess)
    assert counted.tolist() == [1, 1, 1] + [0] * 12
    # Only the joints that are said make the box: 20 pixels, and 3 of 0.6 * 20 is 0.25.
    assert found[:, 0].tolist() == [0, 0, 1, 1, 1] and found[:, 1].tolist() == [1] * 5
    assert pck(found, counted)["pck_0.1"] == pytest.approx(2 / 3)


def test_a_class_that_is_not_there_does_not_count() -> None:
    counts = confusion(np.array([[0, 0, 1, 255]]), np.array([[0, 1, 1, 0]]))
    ious = class_ious(counts)
    assert counts.sum() == 3 and ious["background"] == 0.5 and ious["hat"] == 0.5 and ious["miou"] == 0.5
    assert all(np.isnan(ious[name]) for name in CLASSES[2:])


@pytest.mark.usefixtures("small")
def test_vip_sums_pixels_over_videos(tmp_path: Path) -> None:
    data = Vip(make_vip(tmp_path / "VIP", {"a": 3, "b": 4}))
    benchmark = VipBenchmark(data, ColourEncoder(), TrackingConfig(top_k=10))
    results = {v: benchmark.evaluate(v, pictures=False, advance=lambda share: None).scores for v in ("a", "b")}
    counts = np.sum([scores["counts"] for scores in results.values()], axis=0)
    # All frames, the first ones too, without the corner of 3x3 pixels that is of no class.
    assert counts.sum() == 7 * (90 * 160 - 9)
    assert benchmark.aggregate(results).rows[0].values["miou"] == class_ious(counts)["miou"] > COARSE


@pytest.mark.usefixtures("small")
def test_stability_is_j_and_f_of_the_first_frames(tmp_path: Path) -> None:
    data = Davis2017(make_davis(tmp_path / "DAVIS", {"walk": 9}))
    long = StabilityBenchmark(data, ColourEncoder(), TrackingConfig(), [5, 9])
    values = long.evaluate("walk", pictures=False, advance=lambda share: None).summary
    short = Davis2017Benchmark(
        Davis2017(make_davis(tmp_path / "short" / "DAVIS", {"walk": 5})), ColourEncoder(), TrackingConfig()
    )
    alone = short.evaluate("walk", pictures=False, advance=lambda share: None).summary
    assert values["jf_5"] == pytest.approx(alone["jf"])


def test_stability_needs_long_videos(tmp_path: Path) -> None:
    data = Davis2017(make_davis(tmp_path / "DAVIS", {"walk": 4}))
    with pytest.raises(DatasetError, match="no video of .* has 80 frames, the longest has 4"):
        StabilityBenchmark(data, ColourEncoder(), TrackingConfig())
    with pytest.raises(ValueError, match="lengths that rise"):
        StabilityBenchmark(data, ColourEncoder(), TrackingConfig(), [4, 3])


@pytest.mark.usefixtures("small")
def test_frames_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Davis2017(make_davis(tmp_path / "DAVIS", {"walk": 6}))
    encoder = ColourEncoder()
    read = davis2017.read_image
    ahead: list[int] = []

    def counted(path: Path) -> Any:
        ahead.append(int(path.stem) - encoder.encoded)
        return read(path)

    monkeypatch.setattr("rvm_training.evaluators.label_propagation.read_image", counted)
    Davis2017Benchmark(data, encoder, TrackingConfig()).evaluate("walk", pictures=False, advance=lambda share: None)
    assert ahead == [0] * 6


@pytest.mark.parametrize(
    ("arguments", "reason"), [(["--context", "3"], "n_context is 3, not 20"), (["--radius", "20"], "radius is 20.0")]
)
def test_settings_of_ones_own_cannot_be_compared(
    arguments: list[str], reason: str, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_davis(tmp_path / "DAVIS", {"walk": 3})
    code, report = call("davis2017", data, tmp_path / "out", tiny_path, *arguments)
    assert code == 0 and any(reason in line for line in report["not_comparable"])
    assert "not comparable with the published values" in capsys.readouterr().out


def test_a_broken_frame_fails_its_video_only(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_davis(tmp_path / "DAVIS", {"walk": 3, "run": 3})
    (data / "JPEGImages/480p/walk/00001.jpg").write_bytes(b"no image")
    code, report = call("davis2017", data, tmp_path / "out", tiny_path)
    assert code == 3 and list(report["failed"]) == ["walk"] and [v["id"] for v in report["videos"]] == ["run"]
    assert "00001.jpg" in capsys.readouterr().err
    (data / "JPEGImages/480p/run/00001.jpg").write_bytes(b"no image")
    assert call("davis2017", data, tmp_path / "other", tiny_path)[0] == 1
    assert "no video could be evaluated" in capsys.readouterr().err


def test_a_full_disk_has_its_own_exit_code(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_davis(tmp_path / "DAVIS", {"walk": 3})

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert call("davis2017", data, tmp_path / "out", tiny_path)[0] == 4
    assert "the disk is full: a picture of walk could not be written" in capsys.readouterr().err


def test_an_interrupt_goes_on_later(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_davis(tmp_path / "DAVIS", {"walk": 3, "run": 3})
    read, calls = davis2017.read_objects, []

    def interrupted(path: Path) -> Any:
        calls.append(path)
        if path.parent.name == "run" and path.stem == "00001":
            raise KeyboardInterrupt
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(davis2017, "read_objects", interrupted)
        code, report = call("davis2017", data, tmp_path / "out", tiny_path)
    assert code == 130 and report["interrupted"] and [video["id"] for video in report["videos"]] == ["walk"]
    assert "the same command goes on from here" in capsys.readouterr().err
    code, report = call("davis2017", data, tmp_path / "out", tiny_path)
    assert code == 0 and len(report["videos"]) == 2 and "1 of them by an earlier run" in capsys.readouterr().out


def test_the_wrong_folder_is_refused(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_davis(tmp_path / "DAVIS", {"walk": 3})
    assert call("davis2017", tmp_path, tmp_path / "out", tiny_path)[0] == 1
    error = capsys.readouterr().err
    assert "ImageSets/2017/val.txt" in error and f"{tmp_path / 'DAVIS'} has them: give that to --data" in error
    assert call("davis2017", tmp_path / "nowhere", tmp_path / "out", tiny_path)[0] == 1
    assert "there is nothing at" in capsys.readouterr().err
    assert main(["eval", "davis2017"]) == 2


def test_each_module_makes_its_benchmark() -> None:
    for module in (davis2017, jhmdb, stability, vip):
        assert callable(module.create)
