"""`rvm show --depth`, with a tiny 4DS."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from readout_data import write_release
from rvm_core import cli
from rvm_core.clip_depth import ClipDepth
from rvm_perception.show_clip import Frame, Part, VideoClip
from rvm_perception.show_depth import DepthView, measure_depth
from rvm_perception.video import VideoError, read_frames
from video_clip import FRAMES, HEIGHT, WIDTH, make_clip

pytest.importorskip("av", reason="films are written with PyAV (extra: demo)")

RVM = Path(__file__).parents[1] / "data" / "rvm_tiny_official_format.npz"
SUMMARY_OF_ROUNDING = 0.02
"""float16 keeps three digits of the depths."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release("fourds_tiny", tmp_path_factory.mktemp("weights"))


def show(folder: Path, *arguments: str) -> int:
    return cli.main(["show", str(make_clip(folder)), "--out", str(folder / "out"), *arguments])


def test_depth_is_drawn_beside_the_video(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(tmp_path, "--depth", str(weights)) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["depth.mp4", "depth.png", "summary.json"]
    film = list(read_frames(tmp_path / "out" / "depth.mp4"))
    assert len(film) == FRAMES and film[0].shape == (HEIGHT, 2 * WIDTH + 4, 3)
    assert film[0][:, WIDTH + 4 :].std() > 20
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["frames"] == FRAMES and summary["model"] == "4ds_custom" and summary["image_size"] == "64x64"
    depth = summary["views"]["depth"]
    assert depth["frames_at_once"] == 16 and depth["near"] < depth["far"]
    assert "RANDOM" not in capsys.readouterr().err


def test_depth_comes_with_other_views(tmp_path: Path, weights: Path) -> None:
    engine = ["--weights", str(RVM), "--backend", "torch", "--precision", "fp32", "--size", "48x80"]
    assert show(tmp_path, "--depth", str(weights), "--views", "depth", "pca", "--seconds", "0.4", *engine) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["views"]) == ["pca", "depth"] and summary["model"] == "rvm_custom" and summary["frames"] == 10


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--views", "depth"], 2, "depth needs --depth FILE"),
        (["--depth", "gone.npz"], 1, "no checkpoint at gone.npz"),
        (["--depth", str(RVM)], 1, "expected 4DS, found the parameters of RVM"),
    ],
)
def test_what_is_missing_is_told(
    tmp_path: Path, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(tmp_path, *arguments) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Given:
    """A clip of given frames."""

    name, rate, recovered = "given", 10.0, ""

    def __init__(self, frames: list[Frame]) -> None:
        self._frames = frames
        self.expected: int | None = None

    def frames(self) -> Iterator[Frame]:
        yield from self._frames


def test_window_starts_anew_where_the_stream_does(tmp_path: Path, weights: Path) -> None:
    """So that no window looks across a cut."""
    model = ClipDepth.load(weights)
    frames = list(VideoClip(make_clip(tmp_path), Part()).frames())[:20]
    cut = [frame._replace(starts=number == 5) for number, frame in enumerate(frames)]
    with tempfile.TemporaryFile() as one, tempfile.TemporaryFile() as two, tempfile.TemporaryFile() as three:
        whole, seconds = measure_depth(Given(cut), cut, model, one)
        first, _ = measure_depth(Given(cut[:5]), cut[:5], model, two)
        rest, _ = measure_depth(Given(cut[5:]), cut[5:], model, three)
        assert seconds == [frame.seconds for frame in frames]
        assert np.array_equal(whole, np.concatenate([first, rest]))
        view = DepthView(clip=Given(cut), model=model, depths=whole)
        pictures = list(view.pictures())
    assert len(pictures) == 20 and pictures[3].caption == "0.12 s"
    summary = view.summary()
    assert summary["far"] - summary["near"] == pytest.approx(
        np.ptp(np.percentile(whole, (2, 98))), abs=SUMMARY_OF_ROUNDING
    )


def test_clip_without_frames_is_refused(weights: Path) -> None:
    with tempfile.TemporaryFile() as file, pytest.raises(VideoError, match="has no frame"):
        measure_depth(Given([]), [], ClipDepth.load(weights), file)
