"""Which videos are there to train on, in the layouts of the datasets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rvm_training.data.layouts import find_videos


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_videos(folder).videos]


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        (["videos/aaa.mp4", "videos/bbb.webm", "videos/sub/ccc.mkv"], []),
        (["train/abseiling/x_000001_000011.mp4"], ["val/abseiling/y_000001_000011.mp4", "test/z_000000_000010.mp4"]),
        (["k700/train/x_000001_000011.mp4"], ["k700/validate/x.mp4"]),
        (["yt_bb_detection_train/cat/a+1.mp4"], ["yt_bb_detection_validation/cat/b+1.mp4"]),
        (["train/ab/abcd.MP4"], ["validate/cd/efgh.mp4", "test/ij/klmn.mp4"]),
    ],
    ids=["HowTo100M", "Kinetics", "Kinetics in a folder", "YouTube-BB", "YouTube-8M"],
)
def test_layouts(tmp_path: Path, train: list[str], held_out: list[str]) -> None:
    folder = touch(tmp_path, *train, *held_out, "readme.txt", ".cache/x.mp4", "train/.part.mp4")
    assert found(folder) == sorted(train)
    assert find_videos(folder).held_out == len(held_out)


@pytest.mark.parametrize("place", ["labels/train.json", "something-something-v2-train.json"])
def test_the_list_of_something_something_decides(tmp_path: Path, place: str) -> None:
    folder = touch(tmp_path, *(f"20bn-something-something-v2/{i}.webm" for i in range(1, 5)), place)
    (folder / place).write_text(json.dumps([{"id": "2", "template": "Holding [something]"}, {"id": "4"}]))
    assert found(folder) == ["20bn-something-something-v2/2.webm", "20bn-something-something-v2/4.webm"]
    assert find_videos(folder).held_out == 2


@pytest.mark.parametrize("text", ["{", '{"id": 1}', "[1]", "[{}]", "[" * 100_000])
def test_a_list_that_makes_no_sense(tmp_path: Path, text: str) -> None:
    touch(tmp_path, "20bn-something-something-v2/1.webm")
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(ValueError, match=r"train.json: expected a list of objects"):
        find_videos(tmp_path)


def test_parts_of_words_hold_nothing_out(tmp_path: Path) -> None:
    assert len(found(touch(tmp_path, "testing food/a.mp4", "carnival/b.mp4", "valley/c.mp4", "latest/d.mp4"))) == 4


def test_no_videos(tmp_path: Path) -> None:
    touch(tmp_path, "val/a.mp4", "notes.txt")
    with pytest.raises(ValueError, match="there is none; 1 in folders for evaluation are not used"):
        find_videos(tmp_path)
    with pytest.raises(ValueError, match="no folder"):
        find_videos(tmp_path / "notes.txt")
