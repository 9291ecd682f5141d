"""`rvm-train shards`: what it prints, and what it answers to what makes no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from rvm_training.train_cli import main
from training_clips import write_numbered_video

SMALL = ["--size", "32", "--clip-frames", "60"]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    write_numbered_video(tmp_path / "in" / "a.mp4", 70)
    return tmp_path / "in"


def test_videos_are_cut_and_measured(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["shards", str(videos), "--out", str(out), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert f"{out}: 1 clips, 60 frames, " in printed and " in 1 shard\n" in printed
    assert "made now: 1 clips, " in printed and "clips/s a core" in printed
    assert main(["shards", str(videos), "--out", str(out), *SMALL]) == 0
    assert "made now" not in capsys.readouterr().out
    assert main(["shards", "--measure", str(out), "--image-size", "32", "--seconds", "0.05"]) == 0
    printed = capsys.readouterr().out
    assert "clips/s a core at 32x32" in printed and "skipped: 0 damaged clips" in printed


def test_videos_that_are_skipped_are_named(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        (videos / f"x{number:02d}.mp4").write_bytes(b"none")
    assert main(["shards", str(videos), "--out", str(tmp_path / "out"), *SMALL]) == 3
    printed = capsys.readouterr().out
    assert "skipped, or used in part: 12 videos" in printed and "  x09.mp4: " in printed
    assert "  and 2 more, see shard-*.json in" in printed and "x10" not in printed


def test_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert (
        main(["shards", "--scenes", "2", "--seed", "5", "--out", str(out), "--size", "32", "--clip-frames", "4"]) == 0
    )
    assert f"{out}: 2 clips, 8 frames" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one of"),
        (["VIDEOS", "--scenes", "3", "--out", "OUT"], "expected one of"),
        (["VIDEOS"], "expected --out DIR"),
        (["--scenes", "0", "--out", "OUT"], "one scene or more"),
        (["VIDEOS", "--out", "OUT", "--quality", "0"], "quality of 1 to 100"),
        (["VIDEOS", "--out", "OUT", "--workers", "0"], "one process or more"),
        (["VIDEOS", "--out", "VIDEOS"], "not empty and holds no shards"),
        (["NOTHING", "--out", "OUT"], "looked for videos in"),
        (["--measure", "NOTHING"], "looked for videos in"),
    ],
)
def test_what_makes_no_sense(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {"VIDEOS": str(videos), "OUT": str(tmp_path / "out"), "NOTHING": str(tmp_path / "nothing")}
    assert main(["shards", *(places.get(word, word) for word in arguments)]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in videos.iterdir()] == ["a.mp4"]
