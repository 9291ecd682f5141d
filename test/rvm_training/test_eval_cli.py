"""`rvm eval synthetic` from end to end, on tiny scenes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import pytest

import rvm_core.cli
import rvm_training.eval_cli
import rvm_training.evaluators.synthetic
from rvm_core.bench_plot import PlotError
from rvm_core.cli import main
from rvm_core.model import RVM
from rvm_training.eval_cli import register

TINY = ["--size", "64x96", "--scenes", "2", "--frames", "5", "--points", "6", "--objects", "2"]
ROWS = ["raw pixels", "colour histogram", "optical flow"]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, whether or not this version of the package is installed."""
    entry = rvm_core.cli.EntryPoint("eval", "rvm_training.eval_cli:register", rvm_core.cli.GROUP)
    monkeypatch.setattr(rvm_core.cli, "entry_points", lambda group: [entry])


def test_writes_a_table_a_report_and_pictures(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "results"
    assert main(["eval", "synthetic", "--weights", str(tiny_path), "--out", str(out), "--seed", "3", *TINY]) == 0
    report = json.loads((out / "synthetic.json").read_text())
    names = [f"rvm_custom ({tiny_path.name})", *ROWS]
    assert [row["name"] for row in report["rows"]] == names
    assert report["seeds"] == [3, 4] and not report["interrupted"] and report["scene"]["height"] == 64
    assert not report["options"]["random_weights"]
    for row in report["rows"]:
        for key in ("average_jaccard", "position_accuracy", "occlusion_accuracy", "box_iou", "mask_iou"):
            assert 0 <= row[key] <= 1
        assert row["tracking_ms"] > 0 and len(row["scenes"]) == 2
        assert sum(row["reliability"]["point"]["count"]) > 0
    shown = capsys.readouterr().out
    for name in names:
        assert any(line.startswith(name) for line in shown.splitlines())
    assert "AJ" in shown and "tracking ms" in shown
    sheet = cv2.imread(str(out / "tracks.png"))
    # The truth and four methods below each other, four frames beside each other, enlarged seven times.
    assert sheet is not None and sheet.shape[1] == 4 * 7 * 96 and sheet.shape[0] > 5 * 7 * 64
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".png") == ["synthetic.json"]


def test_the_plot(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="is of the extra `bench`")
    assert main(["eval", "synthetic", "--weights", str(tiny_path), "--out", str(tmp_path), *TINY]) == 0
    plot = cv2.imread(str(tmp_path / "synthetic.png"))
    assert plot is not None and plot.std() > 5
    assert str(tmp_path / "synthetic.png") in capsys.readouterr().out


def test_without_matplotlib_the_rest_is_written(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(report: object, path: Path) -> None:
        raise PlotError("no plot: matplotlib is missing")

    monkeypatch.setattr("rvm_training.eval_plot.write_plot", missing)
    assert main(["eval", "synthetic", "--weights", str(tiny_path), "--out", str(tmp_path), *TINY]) == 0
    assert (tmp_path / "synthetic.json").exists() and not (tmp_path / "synthetic.png").exists()
    assert "matplotlib is missing" in capsys.readouterr().err


def test_random_weights_are_named_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: RVM) -> None:
    monkeypatch.setattr("rvm_core.encoders.make_encoder", lambda name: tiny_model)
    assert main(["eval", "synthetic", "--model", "rvm_s16", "--out", str(tmp_path), *TINY]) == 0
    report = json.loads((tmp_path / "synthetic.json").read_text())
    assert report["rows"][0]["name"] == "rvm_s16 (random weights)" and report["options"]["random_weights"]


@pytest.fixture(scope="module")
def tiny_model(tiny_path: Path) -> RVM:
    from rvm_core.checkpoint import load_checkpoint

    return load_checkpoint(tiny_path)


def test_the_same_seed_gives_the_same_scores(tiny_path: Path, tmp_path: Path) -> None:
    reports = []
    for folder in ("a", "b"):
        assert main(["eval", "synthetic", "--weights", str(tiny_path), "--out", str(tmp_path / folder), *TINY]) == 0
        reports.append(json.loads((tmp_path / folder / "synthetic.json").read_text()))
    assert [row["scenes"] for row in reports[0]["rows"]] == [row["scenes"] for row in reports[1]["rows"]]


def test_an_interrupt_keeps_whole_scenes(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_at_scene(monkeypatch, 2)
    assert main(["eval", "synthetic", "--weights", str(tiny_path), "--out", str(tmp_path), *TINY]) == 130
    report = json.loads((tmp_path / "synthetic.json").read_text())
    assert report["interrupted"] and len(report["seeds"]) == 1
    assert "interrupted; the other scenes were not measured" in capsys.readouterr().err


def test_an_interrupt_in_the_first_scene_writes_nothing(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_at_scene(monkeypatch, 1)
    assert main(["eval", "synthetic", "--weights", str(tiny_path), "--out", str(tmp_path), *TINY]) == 130
    assert capsys.readouterr().err.endswith("rvm: interrupted\n") and list(tmp_path.iterdir()) == []


def interrupt_at_scene(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Has Ctrl-C come when a scene is made, counted from 1."""
    module = rvm_training.evaluators.synthetic
    generate, made = module.generate_scene, []

    def interrupted(*args: object) -> object:
        made.append(args)
        if len(made) == number:
            raise KeyboardInterrupt
        return generate(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "generate_scene", interrupted)


def test_a_folder_that_cannot_be_written_is_refused_first(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rvm_training.eval_cli, "_methods", lambda args: pytest.fail("the model was loaded"))
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(["eval", "synthetic", "--weights", str(tiny_path), "--out", str(out), *TINY]) == 1
        error = capsys.readouterr().err
        assert error.startswith("rvm: error:") and str(out) in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "100x96"], "multiple"),
        (["--size", "96"], "expected HEIGHTxWIDTH, such as 256x256, got '96'"),
        (["--scenes", "0"], "expected a whole number of 1 or more, got '0'"),
        (["--frames", "1"], "expected a whole number of 2 or more, got '1'"),
        (["--seed", "-1"], "argument"),
        (["--model", "rvm_x"], "invalid choice: 'rvm_x'"),
        (["--model", "rvm_s16", "--weights", "x"], "not allowed with argument"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "synthetic", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_weights_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "synthetic", "--weights", "nothing.npz", "--out", str(tmp_path)]) == 1
    assert "no checkpoint at nothing.npz" in capsys.readouterr().err


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    with pytest.raises(SystemExit):
        parser.parse_args(["eval", "synthetic", "--help"])
    shown = capsys.readouterr().out
    for option in ("--weights", "--model", "--scenes", "--size", "--backend", "--out", "--seed"):
        assert option in shown
