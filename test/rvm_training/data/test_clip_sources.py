"""Folders of shards and of videos as sources of clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from rvm_training.data.clip_sources import ShardSource, VideoSource, open_source
from rvm_training.data.shards import ClipError, ShardError
from training_clips import frame_of, numbered_clips, write_numbered_video, write_shards


def test_frames_of_shards_in_any_order(tmp_path: Path) -> None:
    source = open_source(str(write_shards(tmp_path / "shards", numbered_clips(5, frames=6))), 32)
    assert isinstance(source, ShardSource) and len(source) == 5
    clip = source.clip(4)
    assert clip.length == 6
    frames = clip.read([5, 0, 3, 3])
    assert [frame_of(frame[..., 0]) for frame in frames] == [5, 0, 3, 3]
    assert {frame_of(frame[..., 1]) for frame in frames} == {4}


@pytest.mark.parametrize("places", [[0, 1, 2, 3], [20, 21, 22, 69, 30, 30], [69], [5, 40, 10]])
def test_frames_of_videos_in_any_order(tmp_path: Path, places: list[int]) -> None:
    write_numbered_video(tmp_path / "train" / "a.mp4", 70)
    source = open_source(str(tmp_path), 24)
    assert isinstance(source, VideoSource) and len(source) == 1
    clip = source.clip(0)
    assert clip.length == 70
    frames = clip.read(places)
    assert [frame_of(frame) for frame in frames] == places
    assert frames[0].shape == (24, 32, 3)


def test_a_video_that_ends_early_is_a_damaged_clip(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.avi", 70)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ClipError, match="a.avi"):
        clip = open_source(str(tmp_path), 24).clip(0)
        clip.read([0, 69])


def test_an_unfinished_folder_of_shards_is_no_folder_of_videos(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", numbered_clips(1, frames=2))
    (folder / "shards.json").unlink()
    with pytest.raises(ShardError, match="not finished"):
        open_source(str(folder), 32)


def test_a_folder_of_neither(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="looked for videos"):
        open_source(str(tmp_path), 32)
