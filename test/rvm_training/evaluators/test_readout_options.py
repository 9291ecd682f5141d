"""What the benchmarks with tracks and readouts refuse: heads that do not fit, other folders, wrong usage."""

from __future__ import annotations

from pathlib import Path

import pytest

from readout_folders import (
    write_davis,
    write_mot,
    write_realestate,
    write_scannet,
    write_ssv2,
)
from readout_heads import SMALL, TRACKS, converted, head_file
from rvm_core.cli import main
from rvm_core.heads import (
    BoxHead,
    BoxHeadConfig,
    ClassHead,
    ClassHeadConfig,
    DepthHead,
    DepthHeadConfig,
    PointHead,
    PointHeadConfig,
    PoseHead,
    PoseHeadConfig,
)
from rvm_core.readout_checkpoint import Readout
from rvm_training.converters.mot import convert_mot

pytestmark = pytest.mark.usefixtures("eval_command")


@pytest.mark.parametrize("name", ["depth", "classes", "pose", "tapvid", "boxes"])
def test_heads_that_do_not_fit(tmp_path: Path, tiny_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    makers = {"depth": write_scannet, "classes": write_ssv2, "pose": write_realestate}
    if name == "tapvid":
        data = converted(tmp_path / "data", write_davis(tmp_path))
    elif name == "boxes":
        convert_mot(write_mot(tmp_path / "train"), data := tmp_path / "data", lambda text, done, total: None)
    else:
        data = makers[name](tmp_path / "data")
    right: dict[str, Readout] = {
        "depth": DepthHead(DepthHeadConfig(frames=4, image_size=(32, 32), features=32, channels=8, num_heads=2)),
        "classes": ClassHead(ClassHeadConfig(classes=3, features=32, channels=8, num_heads=2)),
        "pose": PoseHead(PoseHeadConfig(features=32, channels=8, num_heads=2)),
        "tapvid": PointHead(PointHeadConfig(**TRACKS | {"features": 32})),
        "boxes": BoxHead(BoxHeadConfig(**TRACKS | {"features": 32})),
    }
    wrong = right["pose" if name == "classes" else "classes"]
    for head, message in ((wrong, "expected"), (right[name], "features of 64 channels, got 32")):
        path = head_file(tmp_path / "head.safetensors", head)
        arguments = ["--data", data, "--weights", tiny_path, "--head", path, "--out", tmp_path / "out"]
        assert main(["eval", name, *map(str, arguments)]) == 1
        error = capsys.readouterr().err
        assert message in error and str(path) in error
    arguments = ["--data", data, "--weights", tiny_path, "--head", tmp_path / "no", "--out", tmp_path / "out"]
    assert main(["eval", name, *map(str, arguments)]) == 1


@pytest.mark.parametrize("name", ["depth", "classes", "pose", "tapvid", "boxes"])
def test_folders_that_are_something_else(
    tmp_path: Path, tiny_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    head = head_file(tmp_path / "pose.safetensors", PoseHead(PoseHeadConfig(**SMALL)))
    given = ["--head", str(head)] if name in ("depth", "classes", "pose") else []
    arguments = ["--data", tmp_path / "data", "--weights", tiny_path, "--out", tmp_path / "out", *given]
    assert main(["eval", name, *map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("rvm: error: looked for ") and str(tmp_path / "data") in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["depth", "--data", "x"], "--head"),
        (["tapvid", "--data", "x", "--protocol", "second"], "invalid choice: 'second'"),
        (["tapvid", "--data", "x", "--size", "100x100"], "multiple"),
        (["tapvid", "--data", "x", "--size", "100"], "expected HEIGHTxWIDTH, such as 256x256, got '100'"),
        (["boxes", "--data", "x", "--frames", "0"], "expected a whole number of 1 or more, got '0'"),
        (["classes", "--data", "x", "--head", "x", "--dataset", "imagenet"], "invalid choice: 'imagenet'"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *arguments]) == 2
    assert message in capsys.readouterr().err
