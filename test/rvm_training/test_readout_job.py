"""`rvm-train readout` as a whole: what it writes, that it loads where it is used, and how it goes on and fails."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rvm_training.readout_job as readout_job
from readout_folders import write_realestate, write_ssv2
from rvm_core.checkpoint import load_checkpoint
from rvm_core.cli import main as rvm
from rvm_core.heads import BoxHead, ClassHead, PointHead, PoseHead
from rvm_core.readout_checkpoint import load_readout
from rvm_core.recurrent_readout import RecurrentReadout
from rvm_core.tracking.create import create_tracker
from rvm_training.train_cli import main
from rvm_training.train_readout import Trained, Training, train

SIZE = 64
TINY = ["--size", str(SIZE), "--scenes", "4", "--held-out", "2", "--steps", "3", "--batch", "2"]
SMALL_HEAD = ["--preset", "small", "--channels", "16", "--heads", "2"]
TRACKS = ["--frames", "4", "--points", "4", "--objects", "2"]


@pytest.fixture
def readout(tmp_path: Path, tiny_path: Path) -> Callable[..., int]:
    def readout(task: str, *options: Any, out: str = "head", code: int = 0) -> int:
        model = [] if "--pixels" in options else ["--weights", tiny_path]
        words = [
            "readout",
            "--task",
            task,
            *model,
            *TINY,
            *SMALL_HEAD,
            "--out",
            tmp_path / f"{out}.safetensors",
            *options,
        ]
        found = main([str(word) for word in words])
        assert found == code
        return found

    return readout


@pytest.mark.parametrize(
    ("task", "head", "kind"),
    [
        ("points", "recurrent", RecurrentReadout),
        ("boxes", "recurrent", RecurrentReadout),
        ("points", "window", PointHead),
        ("boxes", "window", BoxHead),
    ],
)
def test_tracks_load_in_the_tracker(
    readout: Callable[..., int], tmp_path: Path, tiny_path: Path, task: str, head: str, kind: type
) -> None:
    readout(task, "--head", head, *TRACKS)
    path = tmp_path / "head.safetensors"
    assert isinstance(load_readout(path), kind)
    heads: dict[str, Any] = {"point_head" if task == "points" else "box_head": path}
    tracker = create_tracker((4, 4), load_checkpoint(tiny_path).config.width, **heads)
    assert tracker.grid == (4, 4)
    summary = json.loads((tmp_path / "head.json").read_text())
    metrics = summary["metrics"]
    assert metrics.keys() == {"trained", "before training", "training-free tracker"}
    figure = "average_jaccard" if task == "points" else "box_iou"
    assert all(0 <= values[figure] <= 1 for values in metrics.values())
    rows = list(csv.DictReader((tmp_path / "head.csv").open()))
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3] and float(rows[-1]["held_out"]) > 0
    assert not list(tmp_path.glob("*.resume.safetensors")) and not list(tmp_path.glob(".*"))


def test_the_curve_is_drawn(readout: Callable[..., int], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib, of the extra train")
    readout("points", *TRACKS, "--pixels", "--learning-rates", 1e-3, 1e-4)
    assert (tmp_path / "head.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((tmp_path / "head.json").read_text())["rates"]) == 2


def test_one_cache_serves_points_and_boxes(readout: Callable[..., int], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    readout("points", *TRACKS, "--cache", cache)
    made = {path: path.stat().st_mtime_ns for path in cache.glob("*/features.npy")}
    assert len(made) == 2
    readout("boxes", *TRACKS, "--cache", cache, out="boxes")
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*/features.npy")} == made


def test_features_may_be_made_again_for_each_batch(readout: Callable[..., int], tmp_path: Path) -> None:
    readout("points", *TRACKS, "--pixels", "--features", "live", out="live")
    readout("points", *TRACKS, "--pixels", "--features", "memory", "--cache-dtype", "float32", out="memory")
    curves = [(tmp_path / f"{name}.csv").read_text() for name in ("live", "memory")]
    assert curves[0] == curves[1]


def test_a_stopped_training_is_resumed(
    readout: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readout("points", *TRACKS, out="whole")

    def stopping(training: Training, *, resume: bool = False) -> Trained:
        stops = iter((False, True))
        object.__setattr__(training, "stop", lambda: next(stops))
        return train(training, resume=resume)

    monkeypatch.setattr(readout_job, "train", stopping)
    readout("points", *TRACKS, code=130)
    assert "--resume goes on" in capsys.readouterr().err
    assert not (tmp_path / "head.safetensors").exists()
    monkeypatch.setattr(readout_job, "train", train)
    readout("points", *TRACKS, "--resume")
    # The library writes the metadata in any order.
    parts, whole = (load_readout(tmp_path / f"{name}.safetensors").state_dict() for name in ("head", "whole"))
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    readout("points", *TRACKS, "--resume", code=1)
    assert "no stopped training" in capsys.readouterr().err


def test_classes_of_synthetic_motions(readout: Callable[..., int], tmp_path: Path) -> None:
    readout("class", "--frames", 4)
    head = load_readout(tmp_path / "head.safetensors", kind="classes")
    assert isinstance(head, ClassHead) and head.config.classes == 8
    assert 0 <= json.loads((tmp_path / "head.json").read_text())["metrics"]["trained"]["top_1"] <= 1


def test_classes_of_videos_load_in_the_benchmark(readout: Callable[..., int], tmp_path: Path, tiny_path: Path) -> None:
    data = write_ssv2(tmp_path / "ssv2")
    (data / "labels" / "train.json").write_bytes((data / "labels" / "validation.json").read_bytes())
    readout("class", "--frames", 4, "--data", f"ssv2:{data}")
    arguments = ["eval", "classes", "--data", data, "--head", tmp_path / "head.safetensors", "--weights", tiny_path]
    options = ["--size", f"{SIZE}x{SIZE}", "--out", tmp_path / "eval"]
    assert rvm([str(word) for word in (*arguments, *options)]) == 0


def test_poses_keep_two_frames(readout: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_realestate(tmp_path / "realestate")
    (data / "test").rename(data / "train")
    (data / "frames" / "test").rename(data / "frames" / "train")
    readout(
        "pose", "--frames", 4, "--data", f"realestate:{data}", "--held-out-split", "train", "--cache", tmp_path / "c"
    )
    assert isinstance(load_readout(tmp_path / "head.safetensors", kind="pose"), PoseHead)
    shapes = {np.load(path, mmap_mode="r").shape[1] for path in (tmp_path / "c").glob("*/features.npy")}
    assert shapes == {2}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (
            ["--head", "recurrent", "--task", "class"],
            1,
            "there are recurrent readouts of points and boxes, not of class",
        ),
        (["--task", "depth"], 1, "synthetic has no truth for depth; these have: mujoco, movi, scannet"),
        (["--data", "nothing"], 2, "unknown data 'nothing'; known: synthetic, mujoco, movi"),
        (["--data", "movi"], 2, "expected --data movi:PATH"),
        (["--data", "movi:/nowhere"], 1, "looked for MOVi"),
        (["--size", "60"], 2, "multiples of 16"),
        (["--features", "disk"], 1, "--cache DIR"),
        (["--warmup", "9"], 1, "warmup_steps must be 0 to 3"),
        (["--out", "head.pt"], 2, "ends with .safetensors"),
        (["--learning-rates", "-1"], 2, "expected a number"),
    ],
)
def test_wrong_usage_is_explained(
    readout: Callable[..., int], options: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    readout("points", *TRACKS, *options, code=code)
    assert said in capsys.readouterr().err


def test_a_loss_that_is_not_finite_has_an_exit_code(
    readout: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readout("points", *TRACKS, "--pixels", "--learning-rates", 1e30, "--warmup", 0, code=6)
    assert "use a lower one" in capsys.readouterr().err
    assert not (tmp_path / "head.safetensors").exists()
