"""Bags as clips for `rvm show`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("rosbags", reason="bags are read with rosbags (extra: replay)")

from bag_files import WEIGHTS, Shot, clip_bag, cut, storage_file, write_bag
from rvm_core import cli
from rvm_perception.bag_reader import Bag, BagError
from rvm_perception.show_bag import BagClip
from rvm_perception.show_clip import Frame, Part
from video_clip import level_of


def frames_of(path: Path, part: Part | None = None, topic: str | None = None) -> list[Frame]:
    with Bag(path) as bag:
        clip = BagClip(bag, part or Part(), topic=topic)
        frames = list(clip.frames())
        again = list(clip.frames())
    assert [frame.seconds for frame in frames] == [frame.seconds for frame in again]
    return frames


def test_frames_of_a_bag(tmp_path: Path) -> None:
    bag = clip_bag(tmp_path, frames=8)
    frames = frames_of(bag)
    assert [frame.seconds for frame in frames] == pytest.approx([i / 25 for i in range(8)])
    assert [frame.starts for frame in frames] == [True] + 7 * [False]
    assert [frame.image[-4, -4].mean() for frame in frames] == pytest.approx([level_of(i) for i in range(8)], abs=4)
    with Bag(bag) as opened:
        clip = BagClip(opened, Part())
        assert (clip.name, clip.expected, clip.recovered) == ("bag /camera/image_raw", 8, "")
        assert clip.rate == pytest.approx(25)


def test_part_of_a_bag(tmp_path: Path) -> None:
    frames = frames_of(clip_bag(tmp_path), Part(start=0.08, seconds=0.12))
    assert [frame.seconds for frame in frames] == pytest.approx([0.08, 0.12, 0.16])
    assert [frame.starts for frame in frames] == [True, False, False]


def test_frames_are_in_order_and_start_anew_where_the_node_would(tmp_path: Path) -> None:
    """Frames 2 and 1 were received in the wrong order, 4 has an unknown encoding, 200 comes after a gap."""
    shots = [
        Shot(stamp=0), Shot(stamp=2, received=1.1), Shot(stamp=1, received=2.1), Shot(stamp=3),
        Shot(stamp=4, encoding="yuv9"), Shot(stamp=200), Shot(stamp=201),
    ]  # fmt: skip
    frames = frames_of(write_bag(tmp_path / "bag", [shot.raw() for shot in shots]))
    assert [frame.seconds for frame in frames] == pytest.approx([i / 25 for i in (0, 1, 2, 3, 200, 201)])
    assert [frame.starts for frame in frames] == [True, False, False, False, True, False]


def test_clock_that_is_set_back_goes_on(tmp_path: Path) -> None:
    shots = [Shot(stamp=100, received=0), Shot(stamp=101, received=1), Shot(stamp=2), Shot(stamp=3)]
    frames = frames_of(write_bag(tmp_path / "bag", [shot.raw() for shot in shots]))
    assert [frame.seconds for frame in frames] == pytest.approx([i / 25 for i in range(4)])
    assert [frame.starts for frame in frames] == [True, False, True, False]


def test_one_of_several_cameras_is_chosen(tmp_path: Path) -> None:
    shots = [Shot(stamp=0), Shot(stamp=0, topic="/left/image_raw", size=(32, 32)), Shot(stamp=1)]
    bag = write_bag(tmp_path / "bag", [shot.raw() for shot in shots])
    assert [frame.image.shape for frame in frames_of(bag, topic="/left/image_raw")] == [(32, 32, 3)]
    with pytest.raises(BagError, match="/right"):
        frames_of(bag, topic="/right")


def show(bag: Path, *arguments: str) -> int:
    engine = ["--weights", str(WEIGHTS), "--backend", "torch", "--precision", "fp32", "--size", "32x48"]
    return cli.main(["show", str(bag), "--out", str(bag.parent / "out"), *engine, "--views", "pca", *arguments])


def test_bag_is_shown(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="films are written with PyAV (extra: demo)")
    bag = clip_bag(tmp_path)
    assert show(bag) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["recording"] == "bag /camera/image_raw" and summary["frames"] == 8
    assert (tmp_path / "out" / "pca.mp4").exists()
    (tmp_path / "out" / "pca.mp4").unlink()
    assert show(storage_file(bag)) == 0, "one of its files"


def test_damaged_bag_is_an_error_and_can_be_recovered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av", reason="films are written with PyAV (extra: demo)")
    bag = clip_bag(tmp_path, frames=20, storage="sqlite3")
    cut(storage_file(bag), 0.7)
    assert show(bag) == 1
    assert "damaged" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert show(bag, "--recover") == 3
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["recovered"] and 0 < summary["frames"] < 20
    assert "only the readable part is shown" in capsys.readouterr().out


def test_what_is_no_bag_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert show(tmp_path / "empty") == 1
    assert "is no bag" in capsys.readouterr().err
    assert show(tmp_path / "gone.mcap") == 1
    assert "there is no bag" in capsys.readouterr().err
